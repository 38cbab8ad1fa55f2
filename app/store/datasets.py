"""Datasets in SQL. Their bytes are blobs (app/blobs)."""

from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, exists, select, update
from sqlalchemy.orm import Session

from app.store.engine import database_now, insert_into
from app.store.ids import new_id
from app.store.models import TERMINAL, Dataset, Job


def create(
    session: Session,
    *,
    tenant_id: str,
    name: str,
    fingerprint: str,
    source_sha256: str,
    source_bytes: int,
    statistics: dict[str, Any],
) -> Dataset:
    """The tenant's dataset of this content and name: the existing one, or a new one.

    It cannot be deleted before the end of the transaction. Its blob `fingerprint` has to be stored.

    Raises:
        sqlalchemy.exc.IntegrityError: there is no such blob, or no such tenant.
    """
    now = database_now(session)
    statement = insert_into(session, Dataset).values(
        id=new_id("ds", now),
        tenant_id=tenant_id,
        name=name,
        created_at=now,
        used_at=now,
        fingerprint=fingerprint,
        source_sha256=source_sha256,
        source_bytes=source_bytes,
        statistics=statistics,
    )
    # The update locks and returns a row that exists already.
    statement = statement.on_conflict_do_update(
        index_elements=[Dataset.tenant_id, Dataset.fingerprint, Dataset.name],
        set_={"used_at": now},
    )
    return session.scalars(
        statement.returning(Dataset), execution_options={"populate_existing": True}
    ).one()


def get(session: Session, dataset_id: str, *, tenant_id: str) -> Dataset | None:
    """One dataset of this tenant, or None."""
    return session.scalar(select(Dataset).where(_owned(tenant_id, dataset_id)))


def exists_already(session: Session, *, tenant_id: str, fingerprint: str, name: str) -> bool:
    """Whether the tenant has a dataset of this content and name."""
    duplicate = exists().where(
        Dataset.tenant_id == tenant_id, Dataset.fingerprint == fingerprint, Dataset.name == name
    )
    return bool(session.scalar(select(duplicate)))


def hold(session: Session, dataset_id: str, *, tenant_id: str) -> Dataset | None:
    """Lock the dataset against deletion until the transaction ends. None: there is none."""
    query = select(Dataset).where(_owned(tenant_id, dataset_id))
    # The lock is exclusive: creating a job updates the row, so two shared locks would deadlock.
    return session.scalar(query.with_for_update())


def delete(
    session: Session, dataset_id: str, *, tenant_id: str
) -> Literal["deleted", "in_use", "missing"]:
    """Delete a dataset, unless a job that is not over needs it.

    Its bytes are swept later. The row stays, hidden, because finished jobs refer to it.
    """
    # The lock comes first, so that the condition sees jobs of transactions that held the dataset.
    if session.scalar(select(Dataset.id).where(_owned(tenant_id, dataset_id)).with_for_update()):
        in_use = exists().where(Job.dataset_id == dataset_id, Job.status.not_in(TERMINAL))
        statement = (
            update(Dataset)
            .where(Dataset.id == dataset_id, ~in_use)
            .values(fingerprint=None)
            .returning(Dataset.id)
            .execution_options(synchronize_session=False)
        )
        return "in_use" if session.scalar(statement) is None else "deleted"
    return "missing"


def page(
    session: Session, *, tenant_id: str, limit: int, after: str | None = None
) -> tuple[list[Dataset], bool]:
    """The tenant's datasets below the id `after`, newest first; and whether there are more."""
    query = select(Dataset).where(Dataset.tenant_id == tenant_id, Dataset.fingerprint.is_not(None))
    query = query.order_by(Dataset.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(Dataset.id < after)
    rows = list(session.scalars(query))
    return rows[:limit], len(rows) > limit


def _owned(tenant_id: str, dataset_id: str) -> ColumnElement[bool]:
    return and_(
        Dataset.id == dataset_id,
        Dataset.tenant_id == tenant_id,
        Dataset.fingerprint.is_not(None),
    )
