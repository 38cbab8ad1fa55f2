"""What a webhook may be, and the signature, by the standard's own example."""

from ipaddress import ip_address, ip_network

import pytest

from app.webhook_rules import check_secret, check_url, may_call, signed_headers

PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.0.2.1", "198.18.0.1",
    "::1", "::", "fe80::1", "fc00::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "::127.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b:1::a00:1", "fec0::1", "4000::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_called(address: str) -> None:
    assert not may_call(ip_address(address), [])


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
)
def test_public_addresses_are(address: str) -> None:
    assert may_call(ip_address(address), [])


def test_allowed_networks() -> None:
    allowed = [ip_network("10.0.0.0/8"), ip_network("fc00::/7")]
    assert may_call(ip_address("10.9.9.9"), allowed)
    assert may_call(ip_address("::ffff:10.9.9.9"), allowed)
    assert may_call(ip_address("fd00::1"), allowed)
    assert not may_call(ip_address("192.168.0.1"), allowed)
    assert may_call(ip_address("93.184.216.34"), allowed)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://example.com", "https"),
        ("ftp://example.com", "https"),
        ("example.com", "https"),
        ("https://", "host"),
        ("https:///x", "host"),
        ("https://u:p@example.com", "user"),
        ("https://example.com/#x", "fragment"),
        ("https://127.0.0.1:8000/x", "public"),
        ("https://[::1]/x", "public"),
        ("https://169.254.169.254/latest", "public"),
        ("https://example.com:99999/", "URL"),
        ("https://example.com/\n", "URL"),
        ("https://example.com/" + "x" * 2000, "characters"),
    ],
)
def test_urls_that_are_refused(url: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        check_url(url, [])


def test_urls_that_are_taken() -> None:
    check_url("https://example.com:8443/hook?x=1", [])
    check_url("https://93.184.216.34/hook", [])
    check_url("http://10.0.0.7/hook", [ip_network("10.0.0.0/8")])


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_!", "whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
)
def test_secrets_that_are_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        check_secret(secret)


def test_the_signature_is_that_of_the_standards_example() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    check_secret(secret)
    message_id = "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert signed_headers(secret, message_id, 1614265330, b'{"test": 2432232314}') == {
        "webhook-id": message_id,
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
