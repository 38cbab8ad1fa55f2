"""Tenants in SQL: who owns datasets and jobs."""

from datetime import UTC, datetime

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.store.models import Tenant


def ensure(session: Session, tenant_id: str) -> None:
    """Make the tenant unless there is one of this name."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(Tenant).values(id=tenant_id, created_at=datetime.now(UTC))
    session.execute(statement.on_conflict_do_nothing())
