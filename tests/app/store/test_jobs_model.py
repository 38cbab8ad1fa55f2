"""The state machine against a model of it: random steps of clients, workers and janitors.

The model is a handful of plain rules about one job; hypothesis looks for an order of steps after
which the store says something else. Workers keep every lease that they ever had, so most of what
they try is late. Time is the model's own, and can be put back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select

from app.blobs.sql import SqlBlobStore
from app.store import jobs, lost_jobs
from app.store.engine import Store
from app.store.models import DEFAULT_TENANT, HELD, TERMINAL, Artifact, Job, JobEvent
from tests.app.store.kit import ERROR, NOW

LONGEST = 60  # seconds of a lease
SECONDS = st.integers(1, 2 * LONGEST)
NUMBERS = st.integers(0, 15)
ENDS = ("success", "crash", "refusal", "release")
WORK = ("claim", "claim", "renew", "check", "record", "checkpoint", *ENDS)


@dataclass
class Model:
    """What a job should be."""

    max_attempts: int
    status: str = "queued"
    attempt: int = 0
    token: str | None = None
    expires: datetime | None = None
    checkpoint: str | None = None
    sent: datetime | None = None  # when its id was sent, or it was queued again; None: long ago
    history: list[str] = field(default_factory=lambda: ["queued"])

    def enter(self, status: str, now: datetime) -> None:
        """Change the state, and what goes with it."""
        self.status = status
        self.history.append(status)
        if status not in HELD:
            self.token = self.expires = None
            self.sent = now
        if status in TERMINAL:
            self.checkpoint = None

    def end_attempt(self, now: datetime, *, permanent: bool = False) -> None:
        """It went wrong."""
        if self.status == "cancelling":
            self.enter("cancelled", now)
        elif permanent or self.attempt >= self.max_attempts:
            self.enter("failed", now)
        else:
            self.enter("queued", now)


class JobMachine(RuleBasedStateMachine):
    """Steps on the store and on the model; what the store answers is foretold each time."""

    def __init__(self, store: Store, dataset_id: str, stored: list[str]) -> None:
        super().__init__()
        self.store = store
        self.dataset_id = dataset_id
        self.stored = stored
        self.now = NOW
        self.models: dict[str, Model] = {}
        self.leases: list[jobs.Lease] = []

    def teardown(self) -> None:
        """The next run begins with an empty table."""
        with self.store.write() as session:
            for table in (Artifact, JobEvent, Job):
                session.execute(delete(table))

    def call(self, change: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with self.store.write() as session:
            return change(session, *arguments, **options)

    def pick(self, number: int) -> str:
        """A job: of those that are not over, if there are some and the number is not 0."""
        going = [job_id for job_id, model in self.models.items() if model.status not in TERMINAL]
        some = going if going and number else list(self.models)
        return some[number % len(some)]

    def pick_lease(self, number: int) -> jobs.Lease:
        """A lease on such a job, late ones too."""
        job_id = self.pick(number // 4)
        some = [lease for lease in self.leases if lease.job_id == job_id] or self.leases
        return some[-1 - number % 4 % len(some)]

    def holding(self, lease: jobs.Lease) -> Model | None:
        """The model of the lease's job, if the lease is still good."""
        model = self.models[lease.job_id]
        return model if model.token == lease.token else None

    # Three rules only: hypothesis leaves some out of each run, and a run without claims, say, would
    # come to nothing.

    @initialize(attempts=st.integers(1, 2))
    def begin(self, attempts: int) -> None:
        self.create(attempts)

    @rule(number=NUMBERS, what=st.sampled_from(["create", "cancel", "publish"]))
    def client(self, number: int, what: str) -> None:
        going = sum(model.status not in TERMINAL for model in self.models.values())
        if going == 0 or (what == "create" and going < 2):  # few jobs, for many steps on each
            self.create(1 + number % 2)
        elif what == "publish":
            self.publish(number)
        else:
            self.cancel(number)

    @rule(number=NUMBERS, seconds=st.integers(1, LONGEST), what=st.sampled_from(WORK))
    def worker(self, number: int, seconds: int, what: str) -> None:
        if what == "claim" or not self.leases:
            self.claim(number, seconds)
        elif what in ENDS:
            self.end(number, what)
        else:
            self.work(number, what)

    @rule(seconds=SECONDS, what=st.sampled_from(["requeue", "requeue", "shorten", "unclaimed"]))
    def janitor(self, seconds: int, what: str) -> None:
        if what == "requeue":
            self.requeue_expired(seconds)
        elif what == "shorten":
            self.shorten_leases(seconds)
        else:
            self.unclaimed(seconds)

    # --- clients ---------------------------------------------------------------------------------

    def create(self, max_attempts: int) -> None:
        job = self.call(
            jobs.create,
            tenant_id=DEFAULT_TENANT,
            dataset_id=self.dataset_id,
            config={},
            preset="fast",
            name=None,
            max_attempts=max_attempts,
        )
        self.models[job.id] = Model(max_attempts)

    def cancel(self, number: int) -> None:
        job_id = self.pick(number)
        model = self.models[job_id]
        said = self.call(jobs.request_cancel, job_id, self.now, tenant_id=DEFAULT_TENANT)
        if model.status in TERMINAL:
            assert said == "terminal"
            return
        if model.status == "queued":
            model.enter("cancelled", self.now)
        elif model.status == "running":
            model.enter("cancelling", self.now)
        assert said == model.status

    # --- workers ---------------------------------------------------------------------------------

    def claim(self, number: int, seconds: int) -> None:
        job_id = self.pick(number)
        model, lasts = self.models[job_id], timedelta(seconds=seconds)
        lease = self.call(jobs.claim, job_id, owner="me", lease=lasts, now=self.now)
        if model.status != "queued":
            assert lease is None
            return
        model.attempt += 1
        model.enter("running", self.now)
        model.token, model.expires = lease.token, self.now + lasts
        assert (lease.job_id, lease.attempt) == (job_id, model.attempt)
        self.leases.append(lease)

    def work(self, number: int, what: str) -> None:
        lease = self.pick_lease(number)
        model, lasts = self.holding(lease), timedelta(seconds=LONGEST)
        standing = model.status if model else "lost"
        if what == "renew":
            assert self.call(jobs.renew, lease, lease_for=lasts, now=self.now) == standing
            if model:
                model.expires = self.now + lasts
        elif what == "check":
            assert self.call(jobs.check, lease) == standing
        elif what == "record":
            said = self.call(jobs.record, lease, "phase", {"phase": "distilling"}, self.now)
            assert said == (model is not None)
        else:
            stored = self.stored[lease.attempt % 2]
            assert self.call(jobs.set_checkpoint, lease, stored, self.now) == (model is not None)
            if model:
                model.checkpoint = stored

    def end(self, number: int, how: str) -> None:
        lease = self.pick_lease(number)
        model = self.holding(lease)
        if how == "success":
            artifact = jobs.StoredArtifact("a", "text/plain", 1, self.stored[0])
            said = self.call(jobs.succeed, lease, artifacts=[artifact], metrics={}, now=self.now)
            assert said == (model is not None and model.status == "running")
            if model and said:
                model.enter("succeeded", self.now)
            return
        if how == "release":
            said = self.call(jobs.release, lease, self.now)
            if model:
                given_back = model.status == "running"
                model.attempt -= given_back
                model.enter("queued" if given_back else "cancelled", self.now)
        else:
            permanent = how == "refusal"
            said = self.call(
                jobs.give_up_attempt, lease, error=ERROR, permanent=permanent, now=self.now
            )
            if model:
                model.end_attempt(self.now, permanent=permanent)
        assert said == (model.status if model else "lost")

    # --- janitors and time -----------------------------------------------------------------------

    def publish(self, number: int) -> None:
        job_id = self.pick(number)
        self.call(jobs.mark_published, job_id, self.now)
        self.models[job_id].sent = self.now

    def requeue_expired(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        late = [
            (job_id, model)
            for job_id, model in self.models.items()
            if model.expires and model.expires < self.now
        ]
        requeued = self.call(lost_jobs.requeue_expired, self.now)
        for _, model in late:
            model.end_attempt(self.now)
        assert requeued == sorted(job_id for job_id, model in late if model.status == "queued")

    def shorten_leases(self, seconds: int) -> None:
        """The clock is put back, and a janitor comes by."""
        self.now -= timedelta(seconds=seconds)
        longest = timedelta(seconds=LONGEST)
        self.call(lost_jobs.shorten_leases, self.now, longest=longest)
        for model in self.models.values():
            if model.expires:
                model.expires = min(model.expires, self.now + longest)

    def unclaimed(self, seconds: int) -> None:
        found = self.call(lost_jobs.unclaimed, older_than=timedelta(seconds=seconds), now=self.now)
        due = self.now - timedelta(seconds=seconds)
        assert found == sorted(
            job_id
            for job_id, model in self.models.items()
            if model.status == "queued"
            and (model.sent is None or model.sent <= due or model.sent > self.now)
        )

    # --- what is true after each step ------------------------------------------------------------

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        with self.store.read() as session:
            rows = {job.id: job for job in session.scalars(select(Job))}
            events = session.scalars(
                select(JobEvent).order_by(JobEvent.job_id, JobEvent.sequence)
            ).all()
        assert rows.keys() == self.models.keys()
        for job_id, model in self.models.items():
            row, own = rows[job_id], [event for event in events if event.job_id == job_id]
            assert (row.status, row.attempt) == (model.status, model.attempt)
            assert (row.lease_token, row.lease_expires_at) == (model.token, model.expires)
            assert row.checkpoint_sha256 == model.checkpoint
            assert row.attempt <= row.max_attempts
            assert (row.finished_at is not None) == (row.status in TERMINAL)
            assert (row.error is not None) == (row.status == "failed")
            assert len(row.artifacts) == (row.status == "succeeded")
            assert [event.sequence for event in own] == list(range(1, row.event_count + 1))
            told = [event.data["status"] for event in own if event.type == "status"]
            assert told == model.history
            assert sum(status in TERMINAL for status in told) == (row.status in TERMINAL)


def test_the_store_does_as_the_model(store: Store, dataset_id: str, tmp_path: Path) -> None:
    stored = []
    for content in ("one checkpoint", "another"):
        path = tmp_path / "checkpoint"
        path.write_text(content)
        stored.append(SqlBlobStore(store).put_file(path)[0])
    run_state_machine_as_test(
        lambda: JobMachine(store, dataset_id, stored),  # type: ignore[arg-type] # makes one
        settings=settings(max_examples=25, stateful_step_count=40, deadline=None),
    )
