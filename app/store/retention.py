"""Forgetting what is old: events of jobs that are over, such jobs, datasets that no job uses; and
jobs whose owners ask for it.

A job that is over never changes again, so its age decides alone. A dataset is locked while a job is
made of it, and the age of its last use is looked at under that lock. Every transaction takes a
bounded number of rows and leaves alone those that another collector has locked.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal

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

from app.store.engine import Store, database_now
from app.store.models import TERMINAL, Base, Dataset, Job, JobEvent
from app.store.transition import STATUS_EVENT

EVENTS_AT_ONCE = 5000
ROWS_AT_ONCE = 100

# Columns of other tables that name a job: what they belong to goes with it.
_OF_A_JOB = [
    column
    for table in Base.metadata.sorted_tables
    for column in table.columns
    if column.references(Base.metadata.tables["jobs"].c.id)
]


@dataclass(frozen=True)
class Ages:
    """How long things are kept; None: for ever."""

    jobs: timedelta | None = None  # since the job's end
    events: timedelta | None = None  # since the job's end; its changes of state stay
    datasets: timedelta | None = None  # since its upload, or since a job was last made of it

    def __bool__(self) -> bool:
        return any(age is not None for age in (self.jobs, self.events, self.datasets))


@dataclass(frozen=True)
class Collected:
    """How many rows went, or would go."""

    jobs: int
    events: int  # without the changes of state of the jobs that went
    datasets: int

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in asdict(self).items())


def collect(store: Store, ages: Ages) -> Collected:
    """Delete what is older than `ages`. Bytes that nothing refers to then are swept as always."""
    with store.read() as session:
        old = _Old(ages, database_now(session))
    events = _repeat(store, lambda session: _delete_events(session, old))
    jobs = _repeat(store, lambda session: _delete_jobs(session, old))
    datasets = _repeat(store, lambda session: _delete_datasets(session, old))
    return Collected(jobs, events, datasets)


def remove_job(
    session: Session, job_id: str, *, tenant_id: str
) -> Literal["removed", "not_over", "missing"]:
    """Delete a tenant's job, if it is over, with all that belongs to it."""
    owned = and_(Job.id == job_id, Job.tenant_id == tenant_id)
    status = session.scalar(select(Job.status).where(owned).with_for_update())
    if status is None:
        return "missing"
    if status not in TERMINAL:  # which it stays once it is
        return "not_over"
    _delete_with_all_theirs(session, [job_id])
    return "removed"


def what_would_go(store: Store, ages: Ages) -> Collected:
    """What `collect` would delete now."""
    with store.read() as session:
        old = _Old(ages, database_now(session))

        def count(query: Select[int]) -> int:
            return session.scalar(query) or 0

        # Also datasets whose last jobs would go.
        remains = exists().where(Job.dataset_id == Dataset.id, ~old.job)
        return Collected(
            jobs=count(select(func.count()).select_from(Job).where(old.job)),
            events=count(select(func.count()).select_from(JobEvent).join(Job).where(old.event)),
            datasets=count(
                select(func.count()).select_from(Dataset).where(old.dataset_by_age, ~remains)
            ),
        )


class _Old:
    """Conditions of what is old."""

    def __init__(self, ages: Ages, now: datetime) -> None:
        self.job = _over_for(ages.jobs, now)
        # Of jobs that go too: a long job has more events than one transaction should delete.
        self.event = and_(JobEvent.type != STATUS_EVENT, or_(self.job, _over_for(ages.events, now)))
        self.dataset_by_age: ColumnElement[bool] = (
            false() if ages.datasets is None else Dataset.used_at < now - ages.datasets
        )
        self.dataset = and_(self.dataset_by_age, ~exists().where(Job.dataset_id == Dataset.id))


def _over_for(age: timedelta | None, now: datetime) -> ColumnElement[bool]:
    if age is None:
        return false()
    return and_(Job.status.in_(TERMINAL), Job.finished_at < now - age)


def _repeat(store: Store, batch: Callable[[Session], int]) -> int:
    """Transactions until one finds nothing; returns how many rows went."""
    total = 0
    while True:
        with store.write() as session:
            gone = batch(session)
        total += gone
        if gone == 0:
            return total


def _delete_events(session: Session, old: _Old) -> int:
    key = (JobEvent.job_id, JobEvent.sequence)
    some = select(*key).join(Job).where(old.event).limit(EVENTS_AT_ONCE)
    some = some.with_for_update(of=JobEvent, skip_locked=True)
    return _rows(session, delete(JobEvent).where(tuple_(*key).in_(some)))


def _delete_jobs(session: Session, old: _Old) -> int:
    some = select(Job.id).where(old.job).limit(ROWS_AT_ONCE)
    ids = session.scalars(some.with_for_update(skip_locked=True)).all()
    return _delete_with_all_theirs(session, ids) if ids else 0


def _delete_with_all_theirs(session: Session, ids: Sequence[str]) -> int:
    for column in _OF_A_JOB:
        session.execute(delete(column.table).where(column.in_(ids)))
    return _rows(session, delete(Job).where(Job.id.in_(ids)))


def _delete_datasets(session: Session, old: _Old) -> int:
    some = select(Dataset.id).where(old.dataset).limit(ROWS_AT_ONCE)
    ids = session.scalars(some.with_for_update(skip_locked=True)).all()
    # The condition again: now they are locked, and nobody makes a job of them.
    return _rows(session, delete(Dataset).where(Dataset.id.in_(ids), old.dataset)) if ids else 0


def _rows(session: Session, statement: Delete) -> int:
    result = session.execute(statement, execution_options={"synchronize_session": False})
    return int(result.rowcount)  # type: ignore[attr-defined]
