"""Messages to webhooks: an outbox, filled in the transaction that ends a job.

A sender claims a message by one conditional UPDATE, which counts the attempt and schedules the next
one. So a sender that dies costs one attempt. The attempt's number fences its outcome. Delivery is
at least once, always under the same message id.
"""

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, func, select, update
from sqlalchemy.orm import Session

from app.store.ids import new_id
from app.store.models import Job, WebhookDelivery


@dataclass(frozen=True)
class Message:
    """A claimed message; attempts count from 1."""

    id: str
    attempt: int
    url: str
    secret: str
    body: str


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt."""

    at: datetime
    http_status: int | None  # of the answer, if there was one
    error: str | None  # None: the message was delivered


def enqueue(session: Session, job_id: str, now: datetime) -> None:
    """Add a message about the job's end, if the job has a webhook."""
    job = session.get_one(Job, job_id, populate_existing=True)
    if job.webhook is None:
        return
    content = {
        "type": f"job.{job.status}",
        "timestamp": now.isoformat().replace("+00:00", "Z"),
        "data": {
            "id": job.id,
            "name": job.name,
            "status": job.status,
            "dataset_id": job.dataset_id,
            "metadata": job.labels,
            "attempt": job.attempt,
            "error": job.error,
        },
    }
    session.add(
        WebhookDelivery(
            id=new_id("msg"),
            job_id=job.id,
            type=content["type"],
            body=json.dumps(content),
            status="pending",
            attempts=0,
            created_at=now,
            next_attempt_at=now,
        )
    )
    session.flush()


def due(session: Session, now: datetime, *, limit: int) -> list[str]:
    """Ids of messages to send now: first the longest due one of each tenant, then the second ones.

    So a tenant with many messages, or with receivers that hang, does not delay the others.
    """
    longest_due = WebhookDelivery.next_attempt_at
    rank = func.row_number().over(partition_by=Job.tenant_id, order_by=longest_due)
    query = (
        select(WebhookDelivery.id)
        .join(Job, Job.id == WebhookDelivery.job_id)
        .where(WebhookDelivery.next_attempt_at <= now)
        .order_by(rank, longest_due)
        .limit(limit)
    )
    return list(session.scalars(query))


def claim(
    session: Session, message_id: str, now: datetime, *, again_at: datetime
) -> Message | None:
    """Begin an attempt. Without an outcome before `again_at` it counts as failed.

    Returns:
        The message; None if another sender was faster.
    """
    statement = (
        update(WebhookDelivery)
        .where(WebhookDelivery.id == message_id, WebhookDelivery.next_attempt_at <= now)
        .values(attempts=WebhookDelivery.attempts + 1, next_attempt_at=again_at)
        .returning(WebhookDelivery.attempts, WebhookDelivery.body, WebhookDelivery.job_id)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    webhook = session.scalar(select(Job.webhook).where(Job.id == row.job_id)) if row else None
    if row is None or webhook is None:
        return None
    return Message(message_id, row.attempts, webhook["url"], webhook["secret"], row.body)


def delivered(session: Session, message: Message, outcome: Outcome) -> None:
    """Record that the receiver accepted the message."""
    _store_outcome(session, message, outcome, status="delivered", next_attempt_at=None)


def put_off(session: Session, message: Message, outcome: Outcome, until: datetime) -> None:
    """Record a failed attempt, and schedule the next one at `until`."""
    _store_outcome(session, message, outcome, status="pending", next_attempt_at=until)


def give_up(session: Session, message: Message, outcome: Outcome) -> None:
    """Record a failed attempt that is the last one."""
    _store_outcome(session, message, outcome, status="failed", next_attempt_at=None)


def of_job(session: Session, job_id: str) -> list[WebhookDelivery]:
    """The messages about a job, oldest first."""
    query = select(WebhookDelivery).where(WebhookDelivery.job_id == job_id)
    return list(session.scalars(query.order_by(WebhookDelivery.id)))


def _store_outcome(
    session: Session,
    message: Message,
    outcome: Outcome,
    *,
    status: str,
    next_attempt_at: datetime | None,
) -> None:
    this_attempt = and_(
        WebhookDelivery.id == message.id,
        WebhookDelivery.attempts == message.attempt,
        WebhookDelivery.status == "pending",
    )
    session.execute(
        update(WebhookDelivery)
        .where(this_attempt)
        .values(
            status=status,
            next_attempt_at=next_attempt_at,
            last_attempt_at=outcome.at,
            http_status=outcome.http_status,
            error=outcome.error,
        )
        .execution_options(synchronize_session=False)
    )
