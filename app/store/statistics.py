"""Statistics of the whole store. Each comes from an index, so scrapes may read them often."""

from dataclasses import dataclass
from datetime import datetime
from typing import get_args

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.store.models import HELD, Job, JobStatus


@dataclass(frozen=True)
class StoreStatistics:
    """The state of the store at one moment."""

    jobs_by_state: dict[str, int]  # has every state, also with 0
    held_by_phase: dict[str, int]  # `none`: claimed, before the engine's first event
    oldest_queued_seconds: float
    overdue_lease_seconds: float


def read_statistics(session: Session, now: datetime) -> StoreStatistics:
    """Read the statistics.

    Args:
        session: a reading one.
        now: by the database's clock.
    """
    by_state = dict.fromkeys(get_args(JobStatus), 0)
    counts = select(Job.status, func.count()).group_by(Job.status)
    by_state.update(dict(session.execute(counts).all()))
    held = session.execute(
        select(func.coalesce(Job.phase, "none"), func.count())
        .where(Job.status.in_(HELD))
        .group_by(Job.phase)
    )
    # `updated_at` of a queued job is the time it was queued: publishing its id does not set it.
    queued_since = session.scalar(select(func.min(Job.updated_at)).where(Job.status == "queued"))
    overdue_since = session.scalar(
        select(func.min(Job.lease_expires_at)).where(Job.status.in_(HELD))
    )
    return StoreStatistics(
        jobs_by_state=by_state,
        held_by_phase=dict(held.all()),
        oldest_queued_seconds=_age(queued_since, now),
        overdue_lease_seconds=_age(overdue_since, now),
    )


def _age(since: datetime | None, now: datetime) -> float:
    return max((now - since).total_seconds(), 0.0) if since is not None else 0.0
