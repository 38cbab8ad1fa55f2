"""API keys in SQL. A key itself is never here, only its digest (app/api_keys.py)."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, bindparam, exists, select, update
from sqlalchemy.orm import Session

from app.store.models import ApiKey, Scope, Tenant

# Built once: to build a statement costs more than to run it.
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
    """A new key of a tenant that there is.

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
    """One key, whoever's it is."""
    return session.get(ApiKey, key_id)


def find_all(session: Session, key_ids: Collection[str]) -> dict[str, Row[Any]]:
    """Keys by id, whosoever they are: the columns of each and its tenant's own `quotas`."""
    found = session.connection().execute(_FIND_ALL, {"key_ids": list(key_ids)})
    return {row.id: row for row in found}


def any_made(session: Session) -> bool:
    """Whether there is a key, or ever was one: revoking the last does not open the service."""
    return bool(session.scalar(select(exists().select_from(ApiKey))))


def get(session: Session, key_id: str, *, tenant_id: str) -> ApiKey | None:
    """One key of this tenant, or None."""
    return session.scalar(select(ApiKey).where(_owned(key_id, tenant_id)))


def page(
    session: Session, *, tenant_id: str, limit: int, after: str | None = None
) -> tuple[list[ApiKey], bool]:
    """The tenant's keys, newest first, older than `after`; and whether there are more."""
    query = select(ApiKey).where(ApiKey.tenant_id == tenant_id)
    query = query.order_by(ApiKey.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(ApiKey.id < after)
    found = list(session.scalars(query))
    return found[:limit], len(found) > limit


def all_keys(session: Session) -> list[ApiKey]:
    """The keys of all tenants, newest first: for the operator's command."""
    return list(session.scalars(select(ApiKey).order_by(ApiKey.id.desc())))


def revoke(session: Session, key_id: str, now: datetime, *, tenant_id: str) -> bool:
    """Never good again, from the commit on. Asking twice is harmless. False: no such key."""
    session.execute(
        update(ApiKey)
        .where(_owned(key_id, tenant_id), ApiKey.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    return get(session, key_id, tenant_id=tenant_id) is not None


def mark_used(session: Session, key_id: str, now: datetime) -> None:
    """The key was good for a request."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now))


def _owned(key_id: str, tenant_id: str) -> ColumnElement[bool]:
    return and_(ApiKey.id == key_id, ApiKey.tenant_id == tenant_id)
