"""Identifiers: a prefix for the kind, and a ULID. They sort by time of creation."""

import secrets
import time
from datetime import datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_LENGTH = 26


def new_id(prefix: str, at: datetime | None = None) -> str:
    """`prefix_` and 26 characters: 48 bits of milliseconds since 1970, then 80 random bits.

    Args:
        prefix: the kind, for example `job`.
        at: time of creation; None: now, by this machine's clock.
    """
    now = time.time() if at is None else at.timestamp()
    number = int(now * 1000) << 80 | secrets.randbits(80)
    return f"{prefix}_{encode(number, _LENGTH)}"


def first_id(prefix: str, at: datetime) -> str:
    """The smallest id of that millisecond."""
    milliseconds = min(max(int(at.timestamp() * 1000), 0), 2**48 - 1)
    return f"{prefix}_{encode(milliseconds << 80, _LENGTH)}"


def encode(number: int, length: int) -> str:
    """The last `length` base-32 digits of a number."""
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(length)))
