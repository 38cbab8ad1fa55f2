"""The one way in which a job changes: an UPDATE that decides by its condition, and its event."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Update, update
from sqlalchemy.orm import Session

from app.store import webhooks
from app.store.models import TERMINAL, Job, JobEvent

STATUS_EVENT = "status"  # type of the events that tell a new state: {"status", "attempt", "error"?}


def change(
    session: Session,
    condition: ColumnElement[bool],
    now: datetime,
    *,
    event: tuple[str, dict[str, Any]] | None = None,
    event_extra: dict[str, Any] | None = None,
    **values: Any,
) -> Row[Any] | None:
    """One UPDATE of the jobs that meet `condition` (one, or none: None) and its event.

    `event` is (type, data); by default it tells the new status, with `event_extra`. Where that ends
    the job, the message to its webhook is written as well.
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

    Objects of this session are not brought up to date: jobs.get reads afresh.
    """
    result = session.execute(statement, execution_options={"synchronize_session": False})
    return result.one_or_none()
