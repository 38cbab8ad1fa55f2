"""Every change of a job's state: one conditional UPDATE and one event row, one transaction.

    queued -> running -> succeeded | failed | cancelled

From the request to cancel a running job to the end of its engine it is `cancelling`.

A worker holds a job by a lease: a random token and a time at which it runs out. Whatever a worker
changes is fenced by its token, so one that lost its lease changes nothing. No function here reads a
row, decides, and writes: the UPDATE's condition decides, and who matched no row walks away. Event
numbers come from a counter on the job that the same UPDATE bumps; its row lock keeps them in order.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Row,
    and_,
    case,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from app.store.engine import database_now
from app.store.ids import new_id
from app.store.models import (
    HELD,
    TERMINAL,
    Artifact,
    Dataset,
    Job,
    JobEvent,
)
from app.store.transition import STATUS_EVENT, change, run

_WORKER_LOST = {
    "code": "worker_lost",
    "message": "The worker that ran this attempt stopped answering.",
}


@dataclass(frozen=True)
class Lease:
    """The right to change a running job, for as long as it is renewed in time."""

    job_id: str
    token: str
    attempt: int
    waited: timedelta = timedelta(0)  # from (last) being queued to the claim
    request_id: str | None = None  # of the request that made the job


@dataclass(frozen=True)
class StoredArtifact:
    """A file of a success, whose bytes are already stored."""

    name: str
    media_type: str
    bytes: int
    sha256: str


# --- making and asking ----------------------------------------------------------------------------


def create(
    session: Session,
    *,
    tenant_id: str,
    dataset_id: str,
    config: dict[str, Any],
    preset: str,
    name: str | None,
    max_attempts: int,
    labels: dict[str, str] | None = None,
    webhook: dict[str, Any] | None = None,
    retry_of: str | None = None,
    request_id: str | None = None,
) -> Job:
    """A new queued job. Publish its id after the commit (app/broker.py).

    Args:
        dataset_id: held (datasets.hold), so that nobody deletes it meanwhile.
        labels: the client's own words for it.
        webhook: {url, secret} of who is told of its end.
        retry_of: the job that this one repeats.

    Raises:
        sqlalchemy.exc.IntegrityError: the tenant has no such dataset.
    """
    now = database_now(session)
    # Also a lock: until the end of the transaction the dataset cannot be collected as unused.
    session.execute(
        update(Dataset).where(Dataset.id == dataset_id).values(used_at=now),
        execution_options={"synchronize_session": False},
    )
    job = Job(
        id=new_id("job", now),
        tenant_id=tenant_id,
        name=name,
        dataset_id=dataset_id,
        labels=labels or {},
        webhook=webhook,
        retry_of=retry_of,
        preset=preset,
        config=config,
        status="queued",
        attempt=0,
        max_attempts=max_attempts,
        created_at=now,
        updated_at=now,
        event_count=1,
        request_id=request_id,
        artifacts=[],
    )
    session.add(job)
    session.flush()
    data = {"status": "queued", "attempt": 0}
    session.add(JobEvent(job_id=job.id, sequence=1, created_at=now, type=STATUS_EVENT, data=data))
    session.flush()
    return job


def mark_published(session: Session, job_id: str, now: datetime) -> None:
    """The id went to the broker."""
    run(session, update(Job).where(Job.id == job_id).values(published_at=now).returning(Job.id))


def request_cancel(
    session: Session, job_id: str, now: datetime, *, tenant_id: str
) -> Literal["cancelled", "cancelling", "terminal", "missing"]:
    """Queued: cancelled at once. Running: its worker is told to stop. Asking twice is harmless."""
    queued = Job.status == "queued"
    row = change(
        session,
        and_(_owned(tenant_id, job_id), Job.status.in_(("queued", "running"))),
        now,
        status=case((queued, literal("cancelled")), else_=literal("cancelling")),
        finished_at=case((queued, now), else_=null()),
        checkpoint_sha256=case((queued, null()), else_=Job.checkpoint_sha256),
        cancel_requested_at=now,
    )
    if row is not None:
        return "cancelled" if row.status == "cancelled" else "cancelling"
    status = session.scalar(select(Job.status).where(_owned(tenant_id, job_id)))
    if status is None:
        return "missing"
    return "terminal" if status in TERMINAL else "cancelling"


# --- what the holder of a lease may do ------------------------------------------------------------


def held(session: Session, lease: Lease) -> Job | None:
    """The job that this lease is for, whoever owns it; None: the lease is lost."""
    return session.scalar(select(Job).where(_held(lease)))


def check(session: Session, lease: Lease) -> Literal["running", "cancelling", "lost"]:
    """What the holder of a lease should know: go on, stop, or it is no longer yours."""
    return _standing(session.scalar(select(Job.status).where(_held(lease))))


def claim(
    session: Session, job_id: str, *, owner: str, lease: timedelta, now: datetime
) -> Lease | None:
    """Take a queued job, which starts an attempt. None: it is not queued (somebody was faster)."""
    token = secrets.token_hex(16)
    row = change(
        session,
        and_(Job.id == job_id, Job.status == "queued"),
        now,
        status="running",
        attempt=Job.attempt + 1,
        started_at=func.coalesce(Job.started_at, now, type_=Job.started_at.type),
        phase=None,
        progress=None,
        lease_token=token,
        lease_owner=owner,
        lease_expires_at=now + lease,
    )
    if row is None:
        return None
    # The event before this claim's is the one that queued the job: nobody writes to a queued job.
    queued = select(JobEvent.created_at).where(
        JobEvent.job_id == job_id, JobEvent.sequence == row.event_count - 1
    )
    waited = now - session.scalars(queued).one()
    return Lease(job_id, token, row.attempt, waited, row.request_id)


def renew(
    session: Session, lease: Lease, *, lease_for: timedelta, now: datetime
) -> Literal["running", "cancelling", "lost"]:
    """Put off the end of the lease. Late is fine as long as nobody took the job away."""
    statement = (
        update(Job)
        .where(_held(lease))
        .values(lease_expires_at=now + lease_for)
        .returning(Job.status)
    )
    row = run(session, statement)
    return _standing(None if row is None else row.status)


def record(session: Session, lease: Lease, type_: str, data: dict[str, Any], now: datetime) -> bool:
    """Keep an engine's event; `phase` and `progress` show on the job too. False: lease lost."""
    values: dict[str, Any] = {}
    if type_ == "phase":
        values = {"phase": data["phase"], "progress": None}
    elif type_ == "progress":
        values = {"phase": data["phase"], "progress": data}
    return change(session, _held(lease), now, event=(type_, data), **values) is not None


def set_checkpoint(
    session: Session,
    lease: Lease,
    sha256: str,
    now: datetime,
    *,
    phase: str | None = None,
    step: int | None = None,
) -> bool:
    """The next attempt starts from this blob. False: lease lost.

    Raises:
        sqlalchemy.exc.IntegrityError: there is no such blob.
    """
    event = ("checkpoint", {"phase": phase, "step": step, "sha256": sha256})
    return change(session, _held(lease), now, event=event, checkpoint_sha256=sha256) is not None


def succeed(
    session: Session,
    lease: Lease,
    *,
    artifacts: Iterable[StoredArtifact],
    metrics: dict[str, Any],
    now: datetime,
) -> bool:
    """Running -> succeeded, with its artifacts. False: lease lost, or a cancel came first.

    Raises:
        sqlalchemy.exc.IntegrityError: an artifact's blob is not there, or two have one name.
    """
    row = change(
        session,
        and_(_held(lease), Job.status == "running"),
        now,
        status="succeeded",
        metrics=metrics,
        finished_at=now,
        **_NO_LEASE,
        checkpoint_sha256=None,
    )
    if row is None:
        return False
    session.add_all(
        Artifact(
            job_id=lease.job_id,
            name=artifact.name,
            media_type=artifact.media_type,
            bytes=artifact.bytes,
            sha256=artifact.sha256,
        )
        for artifact in artifacts
    )
    session.flush()
    return True


def give_up_attempt(
    session: Session, lease: Lease, *, error: dict[str, Any], permanent: bool, now: datetime
) -> Literal["queued", "failed", "cancelled", "lost"]:
    """The attempt went wrong: failed if permanent or the last one, else queued again.

    A job that should be cancelled anyway is cancelled. `error` is {code, message}.
    """
    row = _end_attempt(session, _held(lease), now, error=error, permanent=permanent)
    return "lost" if row is None else row.status


def release(
    session: Session, lease: Lease, now: datetime
) -> Literal["queued", "cancelled", "lost"]:
    """The engine was stopped on purpose, and is gone.

    Cancelling -> cancelled. Running (the worker shuts down, or its disk is full) -> queued, as if
    this attempt had not been started.
    """
    cancelling = Job.status == "cancelling"
    row = change(
        session,
        _held(lease),
        now,
        status=case((cancelling, literal("cancelled")), else_=literal("queued")),
        attempt=case((cancelling, Job.attempt), else_=Job.attempt - 1),
        finished_at=case((cancelling, now), else_=null()),
        checkpoint_sha256=case((cancelling, null()), else_=Job.checkpoint_sha256),
        published_at=None,
        **_NO_LEASE,
    )
    return "lost" if row is None else row.status


# --- the janitor ----------------------------------------------------------------------------------


def unclaimed(session: Session, *, older_than: timedelta, now: datetime) -> list[str]:
    """Queued jobs last sent (if never: queued) that long ago, oldest first.

    Those sent in the future as well: the clock was put back, and that time is far away.
    """
    sent = func.coalesce(Job.published_at, Job.updated_at, type_=Job.updated_at.type)
    long_ago = or_(sent <= now - older_than, sent > now)
    query = select(Job.id).where(Job.status == "queued", long_ago).order_by(Job.id)
    return list(session.scalars(query))


def requeue_expired(session: Session, now: datetime) -> list[str]:
    """End the attempts of workers that fell silent. Returns the jobs that are queued again."""
    late = and_(Job.status.in_(HELD), Job.lease_expires_at < now)
    # A row that somebody has locked is being changed at this moment: the next round sees to it. A
    # worker frozen in a transaction must not keep the other jobs waiting.
    found = select(Job.id).where(late).order_by(Job.id).with_for_update(skip_locked=True)
    queued = []
    for job_id in session.scalars(found).all():
        # The condition again: the worker may have renewed, or another janitor been faster.
        row = _end_attempt(
            session, and_(Job.id == job_id, late), now, error=_WORKER_LOST, permanent=False
        )
        if row is not None and row.status == "queued":
            queued.append(job_id)
    return queued


def shorten_leases(session: Session, now: datetime, *, longest: timedelta) -> None:
    """Leases that end later than any granted now would: the clock was put back since.

    Their workers renew them as ever; those of dead workers would last until that time came again.
    """
    late = select(Job.id).where(Job.status.in_(HELD), Job.lease_expires_at > now + longest)
    session.execute(
        update(Job)
        .where(Job.id.in_(late.with_for_update(skip_locked=True)))
        .values(lease_expires_at=now + longest),
        execution_options={"synchronize_session": False},
    )


# --- how ------------------------------------------------------------------------------------------

_NO_LEASE: dict[str, None] = {"lease_token": None, "lease_owner": None, "lease_expires_at": None}


def _owned(tenant_id: str, job_id: str) -> ColumnElement[bool]:
    return and_(Job.id == job_id, Job.tenant_id == tenant_id)


def _held(lease: Lease) -> ColumnElement[bool]:
    return and_(Job.id == lease.job_id, Job.lease_token == lease.token, Job.status.in_(HELD))


def _standing(status: str | None) -> Literal["running", "cancelling", "lost"]:
    if status is None:
        return "lost"
    return "cancelling" if status == "cancelling" else "running"


def _end_attempt(
    session: Session,
    condition: ColumnElement[bool],
    now: datetime,
    *,
    error: dict[str, Any],
    permanent: bool,
) -> Row[Any] | None:
    """Held -> cancelled, failed or queued, whichever is due. The event says what went wrong."""
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
        **_NO_LEASE,
    )
