"""Tenants in SQL: owners of datasets, jobs and keys, and how much they store."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.store.engine import insert_into
from app.store.models import HELD, Artifact, Blob, Dataset, Job, JobStatus, Tenant


@dataclass(frozen=True)
class Usage:
    """A tenant's use of the service."""

    datasets: int
    jobs: dict[JobStatus, int]
    stored_bytes: int


def ensure(session: Session, tenant_id: str) -> None:
    """Create the tenant if it does not exist."""
    statement = insert_into(session, Tenant).values(id=tenant_id, created_at=datetime.now(UTC))
    session.execute(statement.on_conflict_do_nothing())


def exists(session: Session, tenant_id: str) -> bool:
    """Whether the tenant exists."""
    return session.get(Tenant, tenant_id) is not None


def overrides(session: Session, tenant_id: str) -> dict[str, Any] | None:
    """The tenant's own quotas, which override the settings."""
    return session.scalar(select(Tenant.quotas).where(Tenant.id == tenant_id))


def lock(session: Session, tenant_id: str) -> dict[str, Any] | None:
    """Like `overrides`, and locks the tenant's row until the transaction ends.

    SQLite needs no lock, because it has one writing transaction at a time.
    """
    query = select(Tenant.quotas).where(Tenant.id == tenant_id).with_for_update()
    return session.scalar(query)


def set_overrides(session: Session, tenant_id: str, quotas: dict[str, Any]) -> None:
    """Set the tenant's own quotas."""
    session.execute(update(Tenant).where(Tenant.id == tenant_id).values(quotas=quotas or None))


def active_jobs(session: Session, tenant_id: str) -> int:
    """The number of jobs that are not over."""
    query = select(func.count()).select_from(Job)
    active = Job.status.in_(("queued", *HELD))  # a form that uses the index
    return session.scalar(query.where(Job.tenant_id == tenant_id, active)) or 0


def has_fewer_jobs(session: Session, tenant_id: str, limit: int) -> bool:
    """Whether the tenant has fewer jobs than `limit`, finished ones included.

    The query looks for the job at offset `limit - 1`, in any order. It therefore reads at most
    `limit` entries of an index, instead of counting all jobs.
    """
    last = select(Job.id).where(Job.tenant_id == tenant_id).offset(limit - 1).limit(1)
    return limit > 0 and session.scalar(last) is None


def stored_bytes(session: Session, tenant_id: str) -> int:
    """Bytes of the tenant's datasets, artifacts and checkpoints. Shared blobs count repeatedly."""
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
    """The tenant's current use."""
    job_counts = select(Job.status, func.count()).where(Job.tenant_id == tenant_id)
    datasets = (
        select(func.count())
        .select_from(Dataset)
        .where(Dataset.tenant_id == tenant_id, Dataset.fingerprint.is_not(None))  # not deleted
    )
    return Usage(
        datasets=session.scalar(datasets) or 0,
        jobs=dict(session.execute(job_counts.group_by(Job.status)).all()),
        stored_bytes=stored_bytes(session, tenant_id),
    )
