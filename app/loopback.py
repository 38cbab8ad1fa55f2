"""Which addresses only this machine can reach."""

import ipaddress
from functools import lru_cache


@lru_cache(maxsize=1000)
def is_loopback(host: str) -> bool:
    """Whether this IP address or host name can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
