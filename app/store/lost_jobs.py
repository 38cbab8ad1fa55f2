"""The janitor's changes of jobs: ids that the broker lost, and leases that expired."""

from datetime import datetime, timedelta

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session

from app.store.models import HELD, Job
from app.store.transition import end_attempt

_WORKER_LOST = {
    "code": "worker_lost",
    "message": "The worker that ran this attempt stopped answering.",
}


def unclaimed(session: Session, *, older_than: timedelta, now: datetime) -> list[str]:
    """Queued jobs whose id was last sent longer ago than `older_than`, oldest first.

    For a job that was never sent, the time it was queued counts. Times in the future count as old,
    because the clock was set back since.
    """
    sent = func.coalesce(Job.published_at, Job.updated_at, type_=Job.updated_at.type)
    long_ago = or_(sent <= now - older_than, sent > now)
    query = select(Job.id).where(Job.status == "queued", long_ago).order_by(Job.id)
    return list(session.scalars(query))


def requeue_expired(session: Session, now: datetime) -> list[str]:
    """End the attempts whose lease has expired. Returns the jobs that are queued again."""
    expired = and_(Job.status.in_(HELD), Job.lease_expires_at < now)
    # Locked rows are skipped and left to the next round: a worker that hangs in a transaction must
    # not delay the other jobs.
    unlocked = select(Job.id).where(expired).order_by(Job.id).with_for_update(skip_locked=True)
    queued = []
    for job_id in session.scalars(unlocked).all():
        # The condition is repeated: the worker may have renewed, or another janitor been faster.
        row = end_attempt(
            session, and_(Job.id == job_id, expired), now, error=_WORKER_LOST, permanent=False
        )
        if row is not None and row.status == "queued":
            queued.append(job_id)
    return queued


def shorten_leases(session: Session, now: datetime, *, longest: timedelta) -> None:
    """Shorten leases that expire later than a new one would: the clock was set back since.

    Live workers renew them as before. Leases of dead workers would otherwise last until that time
    came again.
    """
    too_long = select(Job.id).where(Job.status.in_(HELD), Job.lease_expires_at > now + longest)
    session.execute(
        update(Job)
        .where(Job.id.in_(too_long.with_for_update(skip_locked=True)))
        .values(lease_expires_at=now + longest),
        execution_options={"synchronize_session": False},
    )
