"""Tenants in SQL: who owns datasets and jobs, and how much."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.store.models import HELD, Artifact, Blob, Dataset, Job, JobStatus, Tenant


@dataclass(frozen=True)
class Usage:
    """What a tenant has."""

    datasets: int
    jobs: dict[JobStatus, int]
    stored_bytes: int


def ensure(session: Session, tenant_id: str) -> None:
    """Make the tenant unless there is one of this name."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(Tenant).values(id=tenant_id, created_at=datetime.now(UTC))
    session.execute(statement.on_conflict_do_nothing())


def exists(session: Session, tenant_id: str) -> bool:
    """Whether there is a tenant of this name."""
    return session.get(Tenant, tenant_id) is not None


def overrides(session: Session, tenant_id: str) -> dict[str, Any] | None:
    """Quotas of this tenant that differ from the settings."""
    return session.scalar(select(Tenant.quotas).where(Tenant.id == tenant_id))


def lock(session: Session, tenant_id: str) -> dict[str, Any] | None:
    """`overrides`, and nobody else gets past here for this tenant before the transaction ends.

    On SQLite every writing transaction has that by itself.
    """
    query = select(Tenant.quotas).where(Tenant.id == tenant_id).with_for_update()
    return session.scalar(query)


def set_overrides(session: Session, tenant_id: str, quotas: dict[str, Any]) -> None:
    """Keep quotas that differ from the settings."""
    session.execute(update(Tenant).where(Tenant.id == tenant_id).values(quotas=quotas or None))


def active_jobs(session: Session, tenant_id: str) -> int:
    """How many jobs are not over."""
    query = select(func.count()).select_from(Job)
    active = Job.status.in_(("queued", *HELD))  # which an index finds
    return session.scalar(query.where(Job.tenant_id == tenant_id, active)) or 0


def has_fewer_jobs(session: Session, tenant_id: str, limit: int) -> bool:
    """Whether there are fewer jobs than `limit`, those that are over as well.

    One statement that reads an index of the tenant's jobs, and of it `limit` entries at most: the
    job that comes after so many others is looked for, in any order.
    """
    last = select(Job.id).where(Job.tenant_id == tenant_id).offset(limit - 1).limit(1)
    return limit > 0 and session.scalar(last) is None


def stored_bytes(session: Session, tenant_id: str) -> int:
    """Bytes of datasets, artifacts and checkpoints; what two of them share counts twice."""
    datasets = select(func.sum(Blob.bytes)).join(Dataset, Dataset.fingerprint == Blob.sha256)
    checkpoints = select(func.sum(Blob.bytes)).join(Job, Job.checkpoint_sha256 == Blob.sha256)
    artifacts = select(func.sum(Artifact.bytes)).join(Job, Job.id == Artifact.job_id)
    sums = (
        datasets.where(Dataset.tenant_id == tenant_id),
        checkpoints.where(Job.tenant_id == tenant_id),
        artifacts.where(Job.tenant_id == tenant_id),
    )
    return sum(int(session.scalar(query) or 0) for query in sums)


def usage(session: Session, tenant_id: str) -> Usage:
    """What the tenant has."""
    counted = select(Job.status, func.count()).where(Job.tenant_id == tenant_id)
    datasets = (
        select(func.count())
        .select_from(Dataset)
        .where(Dataset.tenant_id == tenant_id, Dataset.fingerprint.is_not(None))  # not deleted
    )
    return Usage(
        datasets=session.scalar(datasets) or 0,
        jobs=dict(session.execute(counted.group_by(Job.status)).all()),
        stored_bytes=stored_bytes(session, tenant_id),
    )
