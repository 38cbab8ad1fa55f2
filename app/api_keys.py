"""API keys: their format, and the digest that the database stores.

    td3_01m84jx25zewj3pagw0dhmba0j_9c4t…k7q
        the id without its prefix       160 random bits, then a checksum

The prefix helps people and secret scanners. The checksum detects a mistyped key without a query.
The database stores an HMAC of the whole key: a copy of the database yields no key, and guesses
cannot be tested without the server's secret.
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
_FORMAT = re.compile(
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
    """The id of an API key, or None if the text is no valid key."""
    match = _FORMAT.fullmatch(key)
    if match is None or _checksum(key[:-_CHECKSUM_LENGTH]) != match["checksum"]:
        return None
    return _ID_PREFIX + match["id"]


def issue(
    session: Session,
    settings: Settings,
    *,
    tenant_id: str,
    name: str,
    scope: Scope,
    expires_at: datetime | None,
) -> tuple[ApiKey, str]:
    """Create a key of an existing tenant.

    Returns:
        Its row, and the key itself, which is not stored and cannot be shown again.

    Raises:
        sqlalchemy.exc.IntegrityError: there is no such tenant.
        OSError: the server's secret cannot be written.
    """
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
    """The HMAC that is stored in place of the key."""
    return hmac.new(secret, key.encode(), hashlib.sha256).hexdigest()


def read_secret(settings: Settings) -> bytes | None:
    """The server's secret: from the settings, else from the data folder; None if neither has it."""
    if settings.key_secret is not None:
        return settings.key_secret.get_secret_value().encode()
    try:
        return (settings.data_dir / _SECRET_FILE).read_bytes() or None
    except FileNotFoundError:
        return None


def ensure_secret(settings: Settings) -> bytes:
    """The server's secret; created in the data folder, readable by its owner only, if missing.

    Raises:
        OSError: the file cannot be written.
    """
    secret = read_secret(settings)
    if secret is not None:
        return secret
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir / _SECRET_FILE
    # The file is complete before it is linked to its name, and the first link wins. So concurrent
    # processes get the same secret.
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
        return  # another process was faster


def _checksum(body: str) -> str:
    return encode(zlib.crc32(body.encode()), _CHECKSUM_LENGTH)
