"""Rules for webhooks: allowed URLs and addresses, and signatures (standardwebhooks.com).

Clients choose the URLs and the service calls them from inside its network. So each resolved address
is checked when connecting, because a host name says nothing about where it leads.
"""

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

import httpx

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of every secret
_SECRET_BYTES = range(24, 65)  # by the standard
_LONGEST_URL = 2000
# IPv6 addresses that NAT64 gateways translate to IPv4: the inner address is checked.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# All public IPv6 addresses. `is_global` also accepts other IPv4 wrappers and deprecated site-local
# addresses.
_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")


def check_url(url: str, allowed: Sequence[IPNetwork]) -> None:
    """Check a webhook's URL, except for its host name, which is resolved at each delivery.

    Args:
        url: from a client.
        allowed: non-public networks that may be called. If there are any, plain HTTP is allowed.

    Raises:
        ValueError: the text says what is wrong.
    """
    if len(url) > _LONGEST_URL:
        raise ValueError(f"It has more than {_LONGEST_URL} characters")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"It is not a URL: {error}") from error
    schemes = ("https", "http") if allowed else ("https",)
    if parsed.scheme not in schemes:
        raise ValueError(f"It must begin with {' or '.join(f'{name}://' for name in schemes)}")
    if not parsed.host:
        raise ValueError("It names no host")
    if parsed.port is not None and not 0 < parsed.port < 2**16:
        raise ValueError(f"It is not a URL: there is no port {parsed.port}")
    if parsed.userinfo or parsed.fragment:
        raise ValueError("It must have no user, password or fragment")
    try:
        address = ipaddress.ip_address(parsed.host)
    except ValueError:
        return  # a name
    if not may_call(address, allowed):
        raise ValueError("Its address is not a public one")


def may_call(address: IPAddress, allowed: Sequence[IPNetwork]) -> bool:
    """Whether a webhook may connect to this address: it is public, or in an allowed network."""
    address = _unwrapped(address)
    if any(address in network for network in allowed):
        return True
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_IPV6:
        return False
    return address.is_global and not address.is_multicast


def check_secret(secret: str) -> None:
    """Check that a secret is `whsec_` and base64 of 24 to 64 bytes.

    Raises:
        ValueError: the text says what is wrong.
    """
    try:
        size = len(_secret_bytes(secret))
    except ValueError as error:
        raise ValueError(f"It must be {SECRET_PREFIX} and base64") from error
    if not secret.startswith(SECRET_PREFIX) or size not in _SECRET_BYTES:
        raise ValueError(f"It must be {SECRET_PREFIX} and base64 of 24 to 64 random bytes")


def signed_headers(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that prove a message's sender and time.

    Args:
        secret: of the webhook; `check_secret` accepts it.
        message_id: the same at each attempt.
        timestamp: seconds since 1970.
        body: of the request.
    """
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    digest = hmac.digest(_secret_bytes(secret), signed, hashlib.sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def _secret_bytes(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)


def _unwrapped(address: IPAddress) -> IPAddress:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address.teredo is not None:
        inner = address.teredo[1]
    if inner is None and address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address
