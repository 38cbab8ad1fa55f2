"""Deletes old rows: events of finished jobs, finished jobs, and datasets that no job uses.

A finished job never changes again, so its age alone decides. A dataset is locked while a job is
created on it, and the age of its last use is checked under that lock. Each transaction deletes a
bounded number of rows and skips those that another process has locked.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal, Self

from sqlalchemy import (
    ColumnElement,
    Delete,
    Select,
    and_,
    delete,
    exists,
    false,
    func,
    or_,
    select,
    tuple_,
)
from sqlalchemy.orm import Session

from app.settings import Settings
from app.store.engine import Store, database_now
from app.store.models import TERMINAL, Base, Dataset, Job, JobEvent
from app.store.transition import STATUS_EVENT

EVENTS_AT_ONCE = 5000
ROWS_AT_ONCE = 100

# Columns of other tables that refer to a job: their rows are deleted with it.
_JOB_REFERENCES = [
    column
    for table in Base.metadata.sorted_tables
    for column in table.columns
    if column.references(Base.metadata.tables["jobs"].c.id)
]


@dataclass(frozen=True)
class Ages:
    """How long rows are kept. None keeps them for ever.

    Attributes:
        jobs: since the job's end.
        events: since the job's end. Changes of state stay as long as the job.
        datasets: since the upload, or since a job was last created on the dataset.
    """

    jobs: timedelta | None = None
    events: timedelta | None = None
    datasets: timedelta | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The ages of the settings `retain_..._days`."""
        return cls(
            jobs=_days(settings.retain_jobs_days),
            events=_days(settings.retain_events_days),
            datasets=_days(settings.retain_datasets_days),
        )

    def __bool__(self) -> bool:
        return any(age is not None for age in (self.jobs, self.events, self.datasets))


@dataclass(frozen=True)
class Collected:
    """How many rows were deleted, or would be."""

    jobs: int
    events: int  # without the changes of state of deleted jobs
    datasets: int

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in asdict(self).items())


def collect(store: Store, ages: Ages) -> Collected:
    """Delete rows that are older than `ages`. The janitor sweeps their blobs later.

    Raises:
        StorageUnavailableError: the database does not answer; earlier batches are committed.
    """
    with store.read() as session:
        old = _OldRows(ages, database_now(session))
    events = _delete_in_batches(store, lambda session: _delete_events(session, old))
    jobs = _delete_in_batches(store, lambda session: _delete_jobs(session, old))
    datasets = _delete_in_batches(store, lambda session: _delete_datasets(session, old))
    return Collected(jobs, events, datasets)


def remove_job(
    session: Session, job_id: str, *, tenant_id: str
) -> Literal["removed", "not_over", "missing"]:
    """Delete a tenant's job, if it is finished, with the rows that refer to it."""
    owned = and_(Job.id == job_id, Job.tenant_id == tenant_id)
    status = session.scalar(select(Job.status).where(owned).with_for_update())
    if status is None:
        return "missing"
    if status not in TERMINAL:  # a terminal status never changes
        return "not_over"
    _delete_jobs_and_references(session, [job_id])
    return "removed"


def preview(store: Store, ages: Ages) -> Collected:
    """How much `collect` would delete now.

    Raises:
        StorageUnavailableError: the database does not answer.
    """
    with store.read() as session:
        old = _OldRows(ages, database_now(session))

        def count(query: Select[int]) -> int:
            return session.scalar(query) or 0

        # Datasets whose last jobs would be deleted count as well.
        remains = exists().where(Job.dataset_id == Dataset.id, ~old.job)
        return Collected(
            jobs=count(select(func.count()).select_from(Job).where(old.job)),
            events=count(select(func.count()).select_from(JobEvent).join(Job).where(old.event)),
            datasets=count(
                select(func.count()).select_from(Dataset).where(old.dataset_by_age, ~remains)
            ),
        )


class _OldRows:
    """SQL conditions for rows that are old."""

    def __init__(self, ages: Ages, now: datetime) -> None:
        self.job = _finished_before(ages.jobs, now)
        # Events of old jobs too: a long job has more of them than one transaction should delete.
        self.event = and_(
            JobEvent.type != STATUS_EVENT, or_(self.job, _finished_before(ages.events, now))
        )
        self.dataset_by_age: ColumnElement[bool] = (
            false() if ages.datasets is None else Dataset.used_at < now - ages.datasets
        )
        self.dataset = and_(self.dataset_by_age, ~exists().where(Job.dataset_id == Dataset.id))


def _days(days: float | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)


def _finished_before(age: timedelta | None, now: datetime) -> ColumnElement[bool]:
    if age is None:
        return false()
    return and_(Job.status.in_(TERMINAL), Job.finished_at < now - age)


def _delete_in_batches(store: Store, delete_batch: Callable[[Session], int]) -> int:
    """Run transactions until one deletes nothing; returns the number of deleted rows."""
    total = 0
    while True:
        with store.write() as session:
            count = delete_batch(session)
        total += count
        if count == 0:
            return total


def _delete_events(session: Session, old: _OldRows) -> int:
    key = (JobEvent.job_id, JobEvent.sequence)
    batch = select(*key).join(Job).where(old.event).limit(EVENTS_AT_ONCE)
    batch = batch.with_for_update(of=JobEvent, skip_locked=True)
    return _deleted(session, delete(JobEvent).where(tuple_(*key).in_(batch)))


def _delete_jobs(session: Session, old: _OldRows) -> int:
    batch = select(Job.id).where(old.job).limit(ROWS_AT_ONCE)
    ids = session.scalars(batch.with_for_update(skip_locked=True)).all()
    return _delete_jobs_and_references(session, ids) if ids else 0


def _delete_jobs_and_references(session: Session, ids: Sequence[str]) -> int:
    for column in _JOB_REFERENCES:
        session.execute(delete(column.table).where(column.in_(ids)))
    return _deleted(session, delete(Job).where(Job.id.in_(ids)))


def _delete_datasets(session: Session, old: _OldRows) -> int:
    batch = select(Dataset.id).where(old.dataset).limit(ROWS_AT_ONCE)
    ids = session.scalars(batch.with_for_update(skip_locked=True)).all()
    # The condition is repeated because the rows are locked only now.
    return _deleted(session, delete(Dataset).where(Dataset.id.in_(ids), old.dataset)) if ids else 0


def _deleted(session: Session, statement: Delete) -> int:
    result = session.execute(statement, execution_options={"synchronize_session": False})
    return int(result.rowcount)  # type: ignore[attr-defined]
