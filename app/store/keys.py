"""API keys in SQL. The database has their digests, never the keys (app/api_keys.py)."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, bindparam, exists, select, update
from sqlalchemy.orm import Session

from app.store.models import ApiKey, Scope, Tenant

# Built once, because building a statement takes longer than running it.
_FIND_ALL = (
    select(ApiKey.__table__, Tenant.quotas)
    .join(Tenant, Tenant.id == ApiKey.tenant_id)
    .where(ApiKey.id.in_(bindparam("key_ids", expanding=True)))
)


def create(
    session: Session,
    *,
    key_id: str,
    tenant_id: str,
    name: str,
    scope: Scope,
    digest: str,
    expires_at: datetime | None,
) -> ApiKey:
    """A new key of an existing tenant.

    Raises:
        sqlalchemy.exc.IntegrityError: there is no such tenant.
    """
    key = ApiKey(
        id=key_id,
        tenant_id=tenant_id,
        name=name,
        scope=scope,
        digest=digest,
        created_at=datetime.now(UTC),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key


def find(session: Session, key_id: str) -> ApiKey | None:
    """A key of any tenant, or None."""
    return session.get(ApiKey, key_id)


def find_all(session: Session, key_ids: Collection[str]) -> dict[str, Row[Any]]:
    """Keys of any tenants, by id: the columns of each key, and `quotas` of its tenant."""
    rows = session.connection().execute(_FIND_ALL, {"key_ids": list(key_ids)})
    return {row.id: row for row in rows}


def any_made(session: Session) -> bool:
    """Whether a key was ever created. Revoked ones count, so that revoking opens no service."""
    return bool(session.scalar(select(exists().select_from(ApiKey))))


def get(session: Session, key_id: str, *, tenant_id: str) -> ApiKey | None:
    """A key of this tenant, or None."""
    return session.scalar(select(ApiKey).where(_owned(key_id, tenant_id)))


def page(
    session: Session, *, tenant_id: str, limit: int, after: str | None = None
) -> tuple[list[ApiKey], bool]:
    """The tenant's keys below the id `after`, newest first; and whether there are more."""
    query = select(ApiKey).where(ApiKey.tenant_id == tenant_id)
    query = query.order_by(ApiKey.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(ApiKey.id < after)
    rows = list(session.scalars(query))
    return rows[:limit], len(rows) > limit


def all_keys(session: Session) -> list[ApiKey]:
    """The keys of all tenants, newest first; for the operator's command."""
    return list(session.scalars(select(ApiKey).order_by(ApiKey.id.desc())))


def revoke(session: Session, key_id: str, now: datetime, *, tenant_id: str) -> bool:
    """Revoke a key for good. Repeating it changes nothing. False: the tenant has no such key."""
    session.execute(
        update(ApiKey)
        .where(_owned(key_id, tenant_id), ApiKey.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    return get(session, key_id, tenant_id=tenant_id) is not None


def mark_used(session: Session, key_id: str, now: datetime) -> None:
    """Record that a request used the key."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now))


def _owned(key_id: str, tenant_id: str) -> ColumnElement[bool]:
    return and_(ApiKey.id == key_id, ApiKey.tenant_id == tenant_id)
