"""The only way to change a job: one conditional UPDATE and one event."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Update, and_, case, literal, null, update
from sqlalchemy.orm import Session

from app.store import webhooks
from app.store.models import TERMINAL, Job, JobEvent

# Columns of a job that no worker holds.
NO_LEASE: dict[str, None] = {"lease_token": None, "lease_owner": None, "lease_expires_at": None}
STATUS_EVENT = "status"  # type of events of a new status: {"status", "attempt", "error"?}


def change(
    session: Session,
    condition: ColumnElement[bool],
    now: datetime,
    *,
    event: tuple[str, dict[str, Any]] | None = None,
    event_extra: dict[str, Any] | None = None,
    **values: Any,
) -> Row[Any] | None:
    """Update the job that meets `condition`, and add an event. A status that ends the job also adds
    a message to its webhook.

    Args:
        session: a writing one.
        condition: matches one job or none.
        now: by the database's clock.
        event: type and data; by default a status event.
        event_extra: more data of a status event.
        values: columns to set.

    Returns:
        `id`, `status`, `attempt`, `event_count` and `request_id` after the update; None if no job
        met the condition.
    """
    statement = (
        update(Job)
        .where(condition)
        .values(updated_at=now, event_count=Job.event_count + 1, **values)
        .returning(Job.id, Job.status, Job.attempt, Job.event_count, Job.request_id)
    )
    row = run(session, statement)
    if row is None:
        return None
    type_, data = event or (
        STATUS_EVENT,
        {"status": row.status, "attempt": row.attempt, **(event_extra or {})},
    )
    session.add(
        JobEvent(job_id=row.id, sequence=row.event_count, created_at=now, type=type_, data=data)
    )
    session.flush()
    if event is None and row.status in TERMINAL:
        webhooks.enqueue(session, row.id, now)
    return row


def run(session: Session, statement: Update) -> Row[Any] | None:
    """Execute an UPDATE ... RETURNING of at most one row.

    Objects that this session has loaded keep their old values; `job_reads.get` reads afresh.
    """
    result = session.execute(statement, execution_options={"synchronize_session": False})
    return result.one_or_none()


def end_attempt(
    session: Session,
    condition: ColumnElement[bool],
    now: datetime,
    *,
    error: dict[str, Any],
    permanent: bool,
) -> Row[Any] | None:
    """Held -> cancelled, failed or queued; the event has the error.

    Args:
        session: a writing one.
        condition: matches one held job or none.
        now: by the database's clock.
        error: {code, message}.
        permanent: whether further attempts cannot help.

    Returns:
        As `change`.
    """
    cancelling = Job.status == "cancelling"
    fails = literal(True) if permanent else Job.attempt >= Job.max_attempts
    return change(
        session,
        condition,
        now,
        status=case(
            (cancelling, literal("cancelled")), (fails, literal("failed")), else_=literal("queued")
        ),
        error=case((and_(~cancelling, fails), literal(error, Job.error.type)), else_=null()),
        finished_at=case((cancelling | fails, now), else_=null()),
        checkpoint_sha256=case((cancelling | fails, null()), else_=Job.checkpoint_sha256),
        published_at=None,
        event_extra={"error": error},
        **NO_LEASE,
    )
