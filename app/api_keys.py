"""API keys as text: how one is made, told from other text, and recognised without being kept.

    td3_01m84jx25zewj3pagw0dhmba0j_9c4t…k7q
        which key: the end of its id    160 random bits, then a checksum

The prefix is for people and for scanners of secrets; the checksum tells a mistyped key from a
wrong one without asking the database. What is stored is an HMAC of the whole text: who reads the
database cannot make a key from it, nor test guesses without the server's secret.
"""

import hashlib
import hmac
import os
import re
import secrets
import zlib
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session

from app.settings import Settings
from app.store import keys
from app.store.ids import encode, new_id
from app.store.models import ApiKey, Scope

KEY_PREFIX = "td3_"
_ID_PREFIX = "key_"
_SECRET_BITS = 160
_SECRET_LENGTH = 32
_CHECKSUM_LENGTH = 7
_ALPHABET = "[0-9a-hjkmnp-tv-z]"
_FORM = re.compile(
    f"{KEY_PREFIX}(?P<id>{_ALPHABET}{{26}})_(?P<secret>{_ALPHABET}{{{_SECRET_LENGTH}}})"
    f"(?P<checksum>{_ALPHABET}{{{_CHECKSUM_LENGTH}}})"
)
_SECRET_FILE = "key.secret"  # noqa: S105 (its name, not what it holds)


def make_key(key_id: str) -> str:
    """A new key for this id (`key_…`)."""
    secret = encode(secrets.randbits(_SECRET_BITS), _SECRET_LENGTH)
    body = f"{KEY_PREFIX}{key_id.removeprefix(_ID_PREFIX)}_{secret}"
    return body + _checksum(body)


def key_id_of(key: str) -> str | None:
    """The id that the text names, or None where it cannot be a key of ours."""
    found = _FORM.fullmatch(key)
    if found is None or _checksum(key[:-_CHECKSUM_LENGTH]) != found["checksum"]:
        return None
    return _ID_PREFIX + found["id"]


def issue(
    session: Session,
    settings: Settings,
    *,
    tenant_id: str,
    name: str,
    scope: Scope,
    expires_at: datetime | None,
) -> tuple[ApiKey, str]:
    """A new key of a tenant that there is: its row, and the key, which nobody can show again."""
    key_id = new_id(_ID_PREFIX.rstrip("_"))
    key = make_key(key_id)
    row = keys.create(
        session,
        key_id=key_id,
        tenant_id=tenant_id,
        name=name,
        scope=scope,
        digest=digest(key, ensure_secret(settings)),
        expires_at=expires_at,
    )
    return row, key


def digest(key: str, secret: bytes) -> str:
    """What is stored in place of the key."""
    return hmac.new(secret, key.encode(), hashlib.sha256).hexdigest()


def read_secret(settings: Settings) -> bytes | None:
    """The server's secret: the setting, or the file in the data folder; None where neither is."""
    if settings.key_secret is not None:
        return settings.key_secret.get_secret_value().encode()
    try:
        return (settings.data_dir / _SECRET_FILE).read_bytes() or None
    except FileNotFoundError:
        return None


def ensure_secret(settings: Settings) -> bytes:
    """The server's secret, made in the data folder (for its owner only) where there is none."""
    found = read_secret(settings)
    if found is not None:
        return found
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir / _SECRET_FILE
    # Complete before it has its name, and the first to give it wins: two processes get one secret.
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(secrets.token_hex(32).encode())
            f.flush()
            os.fsync(f.fileno())
        _link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.read_bytes()


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileExistsError:
        return  # somebody was faster


def _checksum(body: str) -> str:
    return encode(zlib.crc32(body.encode()), _CHECKSUM_LENGTH)
