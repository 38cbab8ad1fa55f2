"""Identifiers: a prefix that says what it is, and a ULID, so that ids sort by time of creation."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_LENGTH = 26


def new_id(prefix: str) -> str:
    """`prefix_` and 26 characters: 48 bits of milliseconds since 1970, then 80 random bits."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return f"{prefix}_{encode(number, _LENGTH)}"


def encode(number: int, length: int) -> str:
    """The last `length` base-32 digits of a number."""
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(length)))
