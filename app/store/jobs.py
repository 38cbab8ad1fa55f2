"""Changes of a job's state by clients and workers.

Each is one conditional UPDATE and one event, in one transaction. lost_jobs.py has the janitor's.

    queued -> running -> succeeded | failed | cancelled

A running job is `cancelling` from the request to cancel it until its engine has ended.

A worker holds a job by a lease: a random token with a time of expiry. The token fences all changes
of the worker, so a worker that lost its lease changes nothing. No function here reads a row,
decides and then writes: the UPDATE's condition decides, and a caller that matched no row does
nothing. Event numbers come from a counter on the job, which the same UPDATE increments under its
row lock.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    and_,
    case,
    func,
    literal,
    null,
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
from app.store.transition import NO_LEASE, STATUS_EVENT, change, end_attempt, run


@dataclass(frozen=True)
class Lease:
    """The right to change a running job, as long as it is renewed in time."""

    job_id: str
    token: str
    attempt: int
    waited: timedelta = timedelta(0)  # from the time the job was last queued to the claim
    request_id: str | None = None  # of the request that created the job


@dataclass(frozen=True)
class StoredArtifact:
    """A file of a succeeded job. Its blob is stored already."""

    name: str
    media_type: str
    bytes: int
    sha256: str


# --- clients' requests ----------------------------------------------------------------------------


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
        session: a writing one.
        tenant_id: its owner.
        dataset_id: locked by `datasets.hold`, so that it cannot be deleted meanwhile.
        config: the full configuration.
        preset: which the configuration is based on.
        name: the client's name for it.
        max_attempts: starts before a crash makes it fail.
        labels: the client's `metadata`.
        webhook: {url, secret}; gets a message when the job ends.
        retry_of: the job that this one repeats.
        request_id: of the request that creates it.

    Raises:
        sqlalchemy.exc.IntegrityError: the tenant has no such dataset.
    """
    now = database_now(session)
    # This also locks the dataset, so that retention cannot delete it before the transaction ends.
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
    """Record that the id was sent to the broker."""
    run(session, update(Job).where(Job.id == job_id).values(published_at=now).returning(Job.id))


def request_cancel(
    session: Session, job_id: str, now: datetime, *, tenant_id: str
) -> Literal["cancelled", "cancelling", "terminal", "missing"]:
    """Cancel a queued job, or make a running one `cancelling`. Repeating it changes nothing."""
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


# --- the holder of a lease ------------------------------------------------------------------------


def held(session: Session, lease: Lease) -> Job | None:
    """The job of this lease, of any tenant; None: the lease is lost."""
    return session.scalar(select(Job).where(_held(lease)))


def check(session: Session, lease: Lease) -> Literal["running", "cancelling", "lost"]:
    """Whether the holder of a lease should go on, stop, or has lost it."""
    return _lease_state(session.scalar(select(Job.status).where(_held(lease))))


def claim(
    session: Session, job_id: str, *, owner: str, lease: timedelta, now: datetime
) -> Lease | None:
    """Start an attempt at a queued job.

    Args:
        session: a writing one.
        job_id: the job.
        owner: the worker, for people.
        lease: how long the lease lasts unless it is renewed.
        now: by the database's clock.

    Returns:
        The lease; None if the job is not queued, for example because another worker was faster.
    """
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
    # The event before the claim's is the one that queued the job: a queued job gets no others.
    queued = select(JobEvent.created_at).where(
        JobEvent.job_id == job_id, JobEvent.sequence == row.event_count - 1
    )
    waited = now - session.scalars(queued).one()
    return Lease(job_id, token, row.attempt, waited, row.request_id)


def renew(
    session: Session, lease: Lease, *, lease_for: timedelta, now: datetime
) -> Literal["running", "cancelling", "lost"]:
    """Extend the lease. An expired lease can be renewed until the job is taken away."""
    statement = (
        update(Job)
        .where(_held(lease))
        .values(lease_expires_at=now + lease_for)
        .returning(Job.status)
    )
    row = run(session, statement)
    return _lease_state(None if row is None else row.status)


def record(session: Session, lease: Lease, type_: str, data: dict[str, Any], now: datetime) -> bool:
    """Store an event of the engine; `phase` and `progress` also update the job.

    Returns:
        False if the lease is lost.
    """
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
    """Make the next attempt start from this blob.

    Returns:
        False if the lease is lost.

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
    """Running -> succeeded, with the artifacts.

    Returns:
        False if the lease is lost, or a cancel came first.

    Raises:
        sqlalchemy.exc.IntegrityError: an artifact's blob does not exist, or two have one name.
    """
    row = change(
        session,
        and_(_held(lease), Job.status == "running"),
        now,
        status="succeeded",
        metrics=metrics,
        finished_at=now,
        **NO_LEASE,
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
    """End a failed attempt. The job fails if that is permanent or was the last attempt, else it is
    queued again. A cancelling job is cancelled.

    Args:
        session: a writing one.
        lease: of the attempt.
        error: {code, message}.
        permanent: whether further attempts cannot help.
        now: by the database's clock.

    Returns:
        The new status, or `lost`.
    """
    row = end_attempt(session, _held(lease), now, error=error, permanent=permanent)
    return "lost" if row is None else row.status


def release(
    session: Session, lease: Lease, now: datetime
) -> Literal["queued", "cancelled", "lost"]:
    """End an attempt that was stopped on purpose, after its engine has ended.

    A cancelling job is cancelled. A running one, whose worker shuts down or has a full disk, is
    queued again, and the attempt does not count.

    Returns:
        The new status, or `lost`.
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
        **NO_LEASE,
    )
    return "lost" if row is None else row.status


# --- helpers --------------------------------------------------------------------------------------


def _owned(tenant_id: str, job_id: str) -> ColumnElement[bool]:
    return and_(Job.id == job_id, Job.tenant_id == tenant_id)


def _held(lease: Lease) -> ColumnElement[bool]:
    return and_(Job.id == lease.job_id, Job.lease_token == lease.token, Job.status.in_(HELD))


def _lease_state(status: str | None) -> Literal["running", "cancelling", "lost"]:
    if status is None:
        return "lost"
    return "cancelling" if status == "cancelling" else "running"
