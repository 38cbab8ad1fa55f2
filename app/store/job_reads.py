"""Reads of jobs and their events. Changes are in app/store/jobs.py."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Row, bindparam, exists, select
from sqlalchemy.orm import Session

from app.store.ids import first_id
from app.store.models import Job, JobEvent, JobStatus

# In rows of the first release, the id's time is slightly later than the time of creation.
_ID_SLACK = timedelta(seconds=1)
# Built once, because building a statement takes longer than running it.
_VERSIONS = select(Job.id, Job.tenant_id, Job.event_count, Job.updated_at).where(
    Job.id.in_(bindparam("job_ids", expanding=True))
)


def get(session: Session, job_id: str, *, tenant_id: str) -> Job | None:
    """A job of this tenant with its artifacts, read afresh; or None."""
    query = select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)
    return session.scalar(query, execution_options={"populate_existing": True})


def get_all(session: Session, job_ids: Collection[str]) -> list[Job]:
    """The existing ones of these jobs, of any tenant, with their artifacts."""
    return list(session.scalars(select(Job).where(Job.id.in_(job_ids))))


def versions(session: Session, job_ids: Collection[str]) -> Sequence[Row[str, str, int, datetime]]:
    """`id`, `tenant_id`, `event_count` and `updated_at` of jobs of any tenant.

    Each change that clients can see changes the last two (app/store/transition.py).
    """
    return session.connection().execute(_VERSIONS, {"job_ids": list(job_ids)}).all()


def page(
    session: Session,
    *,
    tenant_id: str,
    limit: int,
    after: str | None = None,
    status: JobStatus | None = None,
    dataset_id: str | None = None,
    name: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> tuple[list[Job], bool]:
    """The tenant's jobs below the id `after`, newest first; and whether there are more."""
    query = select(Job).where(Job.tenant_id == tenant_id).order_by(Job.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(Job.id < after)
    if status is not None:
        query = query.where(Job.status == status)
    if dataset_id is not None:
        query = query.where(Job.dataset_id == dataset_id)
    if name is not None:
        query = query.where(Job.name == name)
    # The index has ids, which sort by time of creation.
    if created_after is not None:
        earliest = first_id("job", created_after - _ID_SLACK)
        query = query.where(Job.id >= earliest, Job.created_at > created_after)
    if created_before is not None:
        latest = first_id("job", created_before + _ID_SLACK)
        query = query.where(Job.id <= latest, Job.created_at < created_before)
    rows = list(session.scalars(query))
    return rows[:limit], len(rows) > limit


def events(
    session: Session,
    job_id: str,
    *,
    tenant_id: str,
    after: int = 0,
    limit: int = 100,
    type_: str | None = None,
) -> list[JobEvent]:
    """Events of this tenant's job with a sequence above `after`, in order.

    Args:
        session: a reading one.
        job_id: the job.
        tenant_id: its owner.
        after: sequence to start behind.
        limit: most events.
        type_: only events of this type; None: all.
    """
    query = (
        select(JobEvent)
        .where(
            JobEvent.job_id == job_id,
            JobEvent.sequence > after,
            exists().where(Job.id == job_id, Job.tenant_id == tenant_id),
        )
        .order_by(JobEvent.sequence)
        .limit(limit)
    )
    if type_ is not None:
        query = query.where(JobEvent.type == type_)
    return list(session.scalars(query))
