"""Loads a caller's jobs and datasets by id.

An id that is no identifier is never sent to the database: PostgreSQL refuses null characters.
"""

from sqlalchemy.orm import Session

from app.http.auth import Caller
from app.http.context import Context
from app.http.job_views import job_view
from app.http.problems import not_found
from app.http.schemas.jobs import Job
from app.store import datasets, job_reads
from app.store import models as rows


def find_job(session: Session, caller: Caller, job_id: str) -> rows.Job:
    """The caller's job.

    Raises:
        ApiError: 404 `job_not_found`.
    """
    valid = job_id.isidentifier()
    row = job_reads.get(session, job_id, tenant_id=caller.tenant_id) if valid else None
    if row is None:
        raise not_found("job", job_id)
    return row


def load_job(context: Context, caller: Caller, job_id: str) -> Job:
    """The caller's job, as clients see it.

    Raises:
        ApiError: 404 `job_not_found`.
    """
    with context.store.read() as session:
        return job_view(find_job(session, caller, job_id))


def find_dataset(session: Session, caller: Caller, dataset_id: str) -> rows.Dataset:
    """The caller's dataset.

    Raises:
        ApiError: 404 `dataset_not_found`.
    """
    valid = dataset_id.isidentifier()
    row = datasets.get(session, dataset_id, tenant_id=caller.tenant_id) if valid else None
    if row is None:
        raise not_found("dataset", dataset_id)
    return row
