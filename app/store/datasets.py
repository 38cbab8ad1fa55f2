"""Datasets in SQL. Their bytes are in app/blobs."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store.ids import new_id
from app.store.models import Dataset


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
    """A new dataset, whose blob `fingerprint` is already stored.

    Raises:
        sqlalchemy.exc.IntegrityError: there is no such blob, or no such tenant.
    """
    dataset = Dataset(
        id=new_id("ds"),
        tenant_id=tenant_id,
        name=name,
        created_at=datetime.now(UTC),
        fingerprint=fingerprint,
        source_sha256=source_sha256,
        source_bytes=source_bytes,
        statistics=statistics,
    )
    session.add(dataset)
    session.flush()
    return dataset


def get(session: Session, dataset_id: str, *, tenant_id: str) -> Dataset | None:
    """One dataset of this tenant, or None."""
    return session.scalar(
        select(Dataset).where(Dataset.id == dataset_id, Dataset.tenant_id == tenant_id)
    )


def page(
    session: Session, *, tenant_id: str, limit: int, after: str | None = None
) -> tuple[list[Dataset], bool]:
    """The tenant's datasets, newest first, older than `after`; and whether there are more."""
    query = select(Dataset).where(Dataset.tenant_id == tenant_id)
    query = query.order_by(Dataset.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(Dataset.id < after)
    found = list(session.scalars(query))
    return found[:limit], len(found) > limit
