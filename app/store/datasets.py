"""Datasets in SQL. Their bytes are in app/blobs."""

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
    """The tenant's dataset of this content and name: the one that there is, or a new one, whose
    blob `fingerprint` is already stored. It cannot be deleted before the end of the transaction.

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
    # The update also locks the row that there is, and returns it.
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
    """Whether `create` would find the tenant's dataset of this content and name."""
    same = exists().where(
        Dataset.tenant_id == tenant_id, Dataset.fingerprint == fingerprint, Dataset.name == name
    )
    return bool(session.scalar(select(same)))


def hold(session: Session, dataset_id: str, *, tenant_id: str) -> Dataset | None:
    """The dataset, which cannot be deleted before the end of the transaction; or None."""
    query = select(Dataset).where(_owned(tenant_id, dataset_id))
    # Not a shared lock: making a job updates the row, and two sharers would wait for each other.
    return session.scalar(query.with_for_update())


def delete(
    session: Session, dataset_id: str, *, tenant_id: str
) -> Literal["deleted", "in_use", "missing"]:
    """Let go of a dataset's bytes, unless a job that is not over needs them.

    The row stays, hidden: jobs that are over go on saying what they were made of.
    """
    # Locked first: the condition below must see the job of whoever held the dataset until now.
    if session.scalar(select(Dataset.id).where(_owned(tenant_id, dataset_id)).with_for_update()):
        needed = exists().where(Job.dataset_id == dataset_id, Job.status.not_in(TERMINAL))
        statement = (
            update(Dataset)
            .where(Dataset.id == dataset_id, ~needed)
            .values(fingerprint=None)
            .returning(Dataset.id)
            .execution_options(synchronize_session=False)
        )
        return "in_use" if session.scalar(statement) is None else "deleted"
    return "missing"


def page(
    session: Session, *, tenant_id: str, limit: int, after: str | None = None
) -> tuple[list[Dataset], bool]:
    """The tenant's datasets, newest first, older than `after`; and whether there are more."""
    query = select(Dataset).where(Dataset.tenant_id == tenant_id, Dataset.fingerprint.is_not(None))
    query = query.order_by(Dataset.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(Dataset.id < after)
    found = list(session.scalars(query))
    return found[:limit], len(found) > limit


def _owned(tenant_id: str, dataset_id: str) -> ColumnElement[bool]:
    return and_(
        Dataset.id == dataset_id,
        Dataset.tenant_id == tenant_id,
        Dataset.fingerprint.is_not(None),
    )
