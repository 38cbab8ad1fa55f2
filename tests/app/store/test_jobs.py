"""The state machine: every way from state to state, and that every other way is barred."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app.blobs.protocol import BlobError
from app.blobs.sql import SqlBlobStore
from app.store import job_reads, jobs, lost_jobs
from app.store.engine import Store
from app.store.models import DEFAULT_TENANT
from app.store.retention import remove_job
from tests.app.store.kit import ERROR, MINUTE, NOW, claim, history, job, make_job

NO_BLOB = "0" * 64


def stored_blob(store: Store, tmp_path: Any, content: bytes) -> str:
    path = tmp_path / "blob"
    path.write_bytes(content)
    return SqlBlobStore(store).put_file(path)[0]


def test_a_new_job_is_queued(store: Store, dataset_id: str) -> None:
    job_id = make_job(store, dataset_id)
    found = job(store, job_id)
    assert (found.status, found.attempt, found.artifacts, found.published_at) == (
        "queued",
        0,
        [],
        None,
    )
    assert found.created_at.tzinfo is UTC
    assert history(store, job_id) == ["queued"]


def test_a_job_needs_a_dataset(store: Store) -> None:
    with pytest.raises(IntegrityError):
        make_job(store, "ds_nothing")


def test_success(store: Store, dataset_id: str, tmp_path: Any) -> None:
    job_id = make_job(store, dataset_id)
    lease = claim(store, job_id)
    sha256 = stored_blob(store, tmp_path, b"summary")
    progress = {"phase": "distilling", "step": 1, "total": 2, "seconds_left": None, "metrics": {}}
    with store.write() as session:
        assert jobs.record(session, lease, "phase", {"phase": "distilling"}, NOW)
        assert jobs.record(session, lease, "progress", progress, NOW)
        assert jobs.record(session, lease, "log", {"level": "info", "message": "\x00"}, NOW)
        assert jobs.set_checkpoint(session, lease, sha256, NOW)
    running = job(store, job_id)
    assert (running.status, running.phase, running.progress) == ("running", "distilling", progress)
    assert (running.lease_owner, running.lease_expires_at) == ("me", NOW + MINUTE)
    artifact = jobs.StoredArtifact("summary.safetensors", "application/octet-stream", 7, sha256)
    with store.write() as session:
        assert jobs.succeed(session, lease, artifacts=[artifact], metrics={"ndcg": 0.1}, now=NOW)
    done = job(store, job_id)
    assert (done.status, done.metrics, done.finished_at) == ("succeeded", {"ndcg": 0.1}, NOW)
    assert (done.lease_token, done.lease_expires_at, done.checkpoint_sha256) == (None, None, None)
    assert [(a.name, a.bytes, a.sha256) for a in done.artifacts] == [
        ("summary.safetensors", 7, sha256)
    ]
    assert history(store, job_id) == [
        "queued", "running", "phase", "progress", "log", "checkpoint", "succeeded",
    ]  # fmt: skip


def test_success_with_bytes_that_are_not_stored_changes_nothing(
    store: Store, dataset_id: str
) -> None:
    lease = claim(store, make_job(store, dataset_id))
    artifact = jobs.StoredArtifact("summary.safetensors", "application/octet-stream", 7, NO_BLOB)
    with pytest.raises(IntegrityError), store.write() as session:
        jobs.succeed(session, lease, artifacts=[artifact], metrics={}, now=NOW)
    assert job(store, lease.job_id).status == "running"
    assert history(store, lease.job_id) == ["queued", "running"]


def test_one_of_many_claims_wins(store: Store, dataset_id: str) -> None:
    job_id, threads = make_job(store, dataset_id), 8
    barrier = Barrier(threads)

    def attempt(owner: int) -> jobs.Lease | None:
        barrier.wait(timeout=10)
        with store.write() as session:
            return jobs.claim(session, job_id, owner=str(owner), lease=MINUTE, now=NOW)

    with ThreadPoolExecutor(threads) as pool:
        leases = [lease for lease in pool.map(attempt, range(threads)) if lease is not None]
    assert [lease.attempt for lease in leases] == [1]
    assert job(store, job_id).attempt == 1
    assert history(store, job_id) == ["queued", "running"]


def test_events_of_many_writers_have_no_gaps(store: Store, dataset_id: str) -> None:
    lease = claim(store, make_job(store, dataset_id))
    barrier = Barrier(4)

    def write(_: int) -> None:
        barrier.wait(timeout=10)
        for _attempt in range(10):
            with store.write() as session:
                assert jobs.record(session, lease, "log", {"level": "info", "message": ""}, NOW)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert history(store, lease.job_id) == ["queued", "running"] + ["log"] * 40


def test_events_can_be_paged(store: Store, dataset_id: str) -> None:
    lease = claim(store, make_job(store, dataset_id))
    with store.write() as session:
        for number in range(5):
            jobs.record(session, lease, "log", {"message": number}, NOW)
    with store.read() as session:
        page = job_reads.events(session, lease.job_id, tenant_id=DEFAULT_TENANT, after=3, limit=3)
    assert [(event.sequence, event.data["message"]) for event in page] == [(4, 1), (5, 2), (6, 3)]


# --- fencing -------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Any, jobs.Lease, str], object]] = {
    "renew": lambda s, lease, _: jobs.renew(s, lease, lease_for=MINUTE, now=NOW),
    "check": lambda s, lease, _: jobs.check(s, lease),
    "record": lambda s, lease, _: jobs.record(s, lease, "phase", {"phase": "late"}, NOW),
    "set_checkpoint": lambda s, lease, blob: jobs.set_checkpoint(s, lease, blob, NOW),
    "succeed": lambda s, lease, _: jobs.succeed(s, lease, artifacts=[], metrics={}, now=NOW),
    "give_up": lambda s, lease, _: jobs.give_up_attempt(
        s, lease, error=ERROR, permanent=True, now=NOW
    ),
    "release": lambda s, lease, _: jobs.release(s, lease, NOW),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("taken_by", ["nobody", "another", "success"])
def test_a_lost_lease_changes_nothing(
    name: str, taken_by: str, store: Store, dataset_id: str, tmp_path: Any
) -> None:
    job_id = make_job(store, dataset_id)
    lease = claim(store, job_id)
    with store.write() as session:
        assert lost_jobs.requeue_expired(session, NOW + 2 * MINUTE) == [job_id]
    if taken_by != "nobody":
        other = claim(store, job_id)
        assert other.attempt == 2
        if taken_by == "success":
            with store.write() as session:
                assert jobs.succeed(session, other, artifacts=[], metrics={}, now=NOW)
    before = job(store, job_id)
    blob = stored_blob(store, tmp_path, b"checkpoint")
    with store.write() as session:
        assert CHANGES[name](session, lease, blob) in {False, "lost"}
    after = job(store, job_id)
    for column in (
        "status",
        "phase",
        "checkpoint_sha256",
        "lease_token",
        "event_count",
        "updated_at",
    ):
        assert getattr(after, column) == getattr(before, column)


def test_a_renewed_lease_lasts(store: Store, dataset_id: str) -> None:
    lease = claim(store, make_job(store, dataset_id))
    with store.write() as session:
        # Late, but nobody took the job away.
        late = NOW + 2 * MINUTE
        assert jobs.renew(session, lease, lease_for=MINUTE, now=late) == "running"
    with store.write() as session:
        assert lost_jobs.requeue_expired(session, NOW + 3 * MINUTE) == []
        assert jobs.check(session, lease) == "running"


# --- attempts that end without success -----------------------------------------------------------


def test_a_crash_is_retried_until_the_last_attempt(
    store: Store, dataset_id: str, tmp_path: Any
) -> None:
    job_id = make_job(store, dataset_id, max_attempts=2)
    checkpoint = stored_blob(store, tmp_path, b"checkpoint")
    lease = claim(store, job_id)
    with store.write() as session:
        jobs.mark_published(session, job_id, NOW)
        assert jobs.set_checkpoint(session, lease, checkpoint, NOW, phase="distilling", step=1)
        assert (
            jobs.give_up_attempt(session, lease, error=ERROR, permanent=False, now=NOW) == "queued"
        )
    waiting = job(store, job_id)
    assert (waiting.status, waiting.error, waiting.published_at) == ("queued", None, None)
    assert waiting.checkpoint_sha256 == checkpoint
    lease = claim(store, job_id)
    with store.write() as session:
        assert (
            jobs.give_up_attempt(session, lease, error=ERROR, permanent=False, now=NOW) == "failed"
        )
    failed = job(store, job_id)
    assert (failed.status, failed.error, failed.attempt) == ("failed", ERROR, 2)
    assert failed.checkpoint_sha256 is None
    assert history(store, job_id) == [
        "queued",
        "running",
        "checkpoint",
        "queued",
        "running",
        "failed",
    ]


def test_a_permanent_error_fails_at_once(store: Store, dataset_id: str) -> None:
    lease = claim(store, make_job(store, dataset_id))
    with store.write() as session:
        assert (
            jobs.give_up_attempt(session, lease, error=ERROR, permanent=True, now=NOW) == "failed"
        )
    assert job(store, lease.job_id).finished_at == NOW


def test_release_costs_no_attempt(store: Store, dataset_id: str) -> None:
    lease = claim(store, make_job(store, dataset_id, max_attempts=1))
    with store.write() as session:
        assert jobs.release(session, lease, NOW) == "queued"
    assert job(store, lease.job_id).attempt == 0
    assert claim(store, lease.job_id).attempt == 1


def test_silent_workers_lose_their_jobs(store: Store, dataset_id: str) -> None:
    again, last, cancelled, fine, waiting = (
        make_job(store, dataset_id, max_attempts=attempts) for attempts in (2, 1, 2, 2, 2)
    )
    for job_id in (again, last, cancelled):
        claim(store, job_id)
    claim(store, fine, NOW + MINUTE)
    with store.write() as session:
        assert (
            jobs.request_cancel(session, cancelled, NOW, tenant_id=DEFAULT_TENANT) == "cancelling"
        )
    with store.write() as session:
        assert lost_jobs.requeue_expired(session, NOW + MINUTE) == []  # not yet
    with store.write() as session:
        assert lost_jobs.requeue_expired(session, NOW + 1.5 * MINUTE) == [again]
        assert lost_jobs.requeue_expired(session, NOW + 1.5 * MINUTE) == []
    states = [job(store, job_id).status for job_id in (again, last, cancelled, fine, waiting)]
    assert states == ["queued", "failed", "cancelled", "running", "queued"]
    error = job(store, last).error
    assert error is not None
    assert error["code"] == "worker_lost"


def test_many_janitors_requeue_once(store: Store, dataset_id: str) -> None:
    job_id = make_job(store, dataset_id)
    claim(store, job_id)
    barrier = Barrier(4)

    def clean(_: int) -> list[str]:
        barrier.wait(timeout=10)
        with store.write() as session:
            return lost_jobs.requeue_expired(session, NOW + 2 * MINUTE)

    with ThreadPoolExecutor(4) as pool:
        assert [found for ids in pool.map(clean, range(4)) for found in ids] == [job_id]
    assert history(store, job_id) == ["queued", "running", "queued"]


def test_a_job_that_is_being_changed_holds_up_no_other(store: Store, dataset_id: str) -> None:
    """A worker that is frozen in the middle of a transaction, and others that fell silent."""
    if store.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one lock for everything")
    frozen, silent = (claim(store, make_job(store, dataset_id)) for _ in range(2))
    with store.write() as middle:
        jobs.record(middle, frozen, "phase", {"phase": "distilling"}, NOW)
        with store.write() as session:
            session.execute(text("SET LOCAL lock_timeout = 1"))
            lost_jobs.shorten_leases(session, NOW, longest=MINUTE / 2)
            assert lost_jobs.requeue_expired(session, NOW + 2 * MINUTE) == [silent.job_id]
    with store.write() as session:
        assert lost_jobs.requeue_expired(session, NOW + 2 * MINUTE) == [frozen.job_id]


def test_a_clock_that_was_put_back_delays_nothing(store: Store, dataset_id: str) -> None:
    hour = 60 * MINUTE
    held, waiting = (
        claim(store, make_job(store, dataset_id), NOW + hour),
        make_job(store, dataset_id),
    )
    fine = claim(store, make_job(store, dataset_id), NOW - MINUTE / 2)
    with store.write() as session:
        jobs.mark_published(session, waiting, NOW + hour)
        lost_jobs.shorten_leases(session, NOW, longest=MINUTE)
        assert lost_jobs.requeue_expired(session, NOW + MINUTE / 2) == []
        assert lost_jobs.unclaimed(session, older_than=MINUTE, now=NOW) == [waiting]
        assert lost_jobs.requeue_expired(session, NOW + 0.75 * MINUTE) == [fine.job_id]
        assert jobs.check(session, held) == "running"
        assert lost_jobs.requeue_expired(session, NOW + 1.5 * MINUTE) == [held.job_id]


# --- cancel --------------------------------------------------------------------------------------


def cancel(store: Store, job_id: str) -> str:
    with store.write() as session:
        return jobs.request_cancel(session, job_id, NOW, tenant_id=DEFAULT_TENANT)


def test_cancel_a_queued_job(store: Store, dataset_id: str) -> None:
    job_id = make_job(store, dataset_id)
    assert cancel(store, job_id) == "cancelled"
    assert cancel(store, job_id) == "terminal"
    found = job(store, job_id)
    assert (found.status, found.finished_at, found.cancel_requested_at) == ("cancelled", NOW, NOW)
    with store.write() as session:
        assert jobs.claim(session, job_id, owner="me", lease=MINUTE, now=NOW) is None
    assert history(store, job_id) == ["queued", "cancelled"]


@pytest.mark.parametrize("end", ["release", "give_up", "permanent"])
def test_cancel_a_running_job(end: str, store: Store, dataset_id: str) -> None:
    lease = claim(store, make_job(store, dataset_id))
    assert cancel(store, lease.job_id) == "cancelling"
    assert cancel(store, lease.job_id) == "cancelling"
    assert job(store, lease.job_id).finished_at is None
    with store.write() as session:
        assert jobs.check(session, lease) == "cancelling"
        assert jobs.renew(session, lease, lease_for=MINUTE, now=NOW) == "cancelling"
        # Who asked for a cancel gets one, also when the work was done by then.
        assert not jobs.succeed(session, lease, artifacts=[], metrics={}, now=NOW)
        if end == "release":
            outcome: str = jobs.release(session, lease, NOW)
        else:
            outcome = jobs.give_up_attempt(
                session, lease, error=ERROR, permanent=end == "permanent", now=NOW
            )
    found = job(store, lease.job_id)
    assert (outcome, found.status, found.error, found.attempt) == (
        "cancelled",
        "cancelled",
        None,
        1,
    )
    assert history(store, lease.job_id) == ["queued", "running", "cancelling", "cancelled"]


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_cancel_a_finished_job(status: str, store: Store, dataset_id: str) -> None:
    lease = claim(store, make_job(store, dataset_id))
    with store.write() as session:
        if status == "succeeded":
            jobs.succeed(session, lease, artifacts=[], metrics={}, now=NOW)
        else:
            jobs.give_up_attempt(session, lease, error=ERROR, permanent=True, now=NOW)
    assert cancel(store, lease.job_id) == "terminal"
    assert job(store, lease.job_id).status == status
    assert cancel(store, "job_nothing") == "missing"


def test_cancel_races_with_claim(store: Store, dataset_id: str) -> None:
    for _ in range(5):
        job_id, barrier = make_job(store, dataset_id), Barrier(2)

        def start(job_id: str = job_id, barrier: Barrier = barrier) -> jobs.Lease | None:
            barrier.wait(timeout=10)
            with store.write() as session:
                return jobs.claim(session, job_id, owner="me", lease=MINUTE, now=NOW)

        def stop(job_id: str = job_id, barrier: Barrier = barrier) -> str:
            barrier.wait(timeout=10)
            return cancel(store, job_id)

        with ThreadPoolExecutor(2) as pool:
            started, stopped = pool.submit(start), pool.submit(stop)
        assert stopped.result() == ("cancelling" if started.result() else "cancelled")
        assert job(store, job_id).status == stopped.result()


# --- lists ---------------------------------------------------------------------------------------


def test_pages(store: Store, dataset_id: str) -> None:
    made = sorted((make_job(store, dataset_id) for _ in range(5)), reverse=True)
    claim(store, made[1])
    with store.read() as session:
        first, more = job_reads.page(session, tenant_id=DEFAULT_TENANT, limit=3, after=None)
        assert ([found.id for found in first], more) == (made[:3], True)
        rest, more = job_reads.page(session, tenant_id=DEFAULT_TENANT, limit=3, after=made[2])
        assert ([found.id for found in rest], more) == (made[3:], False)
        running, _ = job_reads.page(
            session, tenant_id=DEFAULT_TENANT, limit=3, after=None, status="running"
        )
        assert [found.id for found in running] == [made[1]]
        assert job_reads.page(
            session, tenant_id=DEFAULT_TENANT, limit=3, after=None, dataset_id="ds_other"
        ) == ([], False)
        assert job_reads.get(session, "job_nothing", tenant_id=DEFAULT_TENANT) is None


def test_unclaimed(store: Store, dataset_id: str) -> None:
    now = datetime.now(UTC) + 10 * MINUTE  # ten minutes from the jobs' creation
    never_sent, sent_long_ago, just_sent, running = (make_job(store, dataset_id) for _ in range(4))
    claim(store, running)
    with store.write() as session:
        jobs.mark_published(session, sent_long_ago, now - 2 * MINUTE)
        jobs.mark_published(session, just_sent, now - timedelta(seconds=30))
    with store.read() as session:
        assert lost_jobs.unclaimed(session, older_than=MINUTE, now=now) == sorted(
            [never_sent, sent_long_ago]
        )
        assert lost_jobs.unclaimed(session, older_than=20 * MINUTE, now=now) == []


def test_a_job_is_removed_once_it_is_over(store: Store, dataset_id: str, tmp_path: Any) -> None:
    def remove(job_id: str, tenant_id: str = DEFAULT_TENANT) -> str:
        with store.write() as session:
            return remove_job(session, job_id, tenant_id=tenant_id)

    job_id = make_job(store, dataset_id)
    assert remove(job_id) == "not_over"
    lease = claim(store, job_id)
    assert remove(job_id) == "not_over"
    sha256 = stored_blob(store, tmp_path, b"summary")
    artifact = jobs.StoredArtifact("summary.safetensors", "application/octet-stream", 7, sha256)
    with store.write() as session:
        assert jobs.succeed(session, lease, artifacts=[artifact], metrics={}, now=NOW)
    assert remove(job_id, tenant_id="other") == "missing"
    assert remove(job_id) == "removed"
    assert remove(job_id) == "missing"
    assert (
        SqlBlobStore(store).sweep(older_than=timedelta(seconds=-1)) == 1
    )  # the artifact, not the log
    with pytest.raises(BlobError):
        SqlBlobStore(store).open_reader(sha256)


def test_lists_are_filtered_by_name_and_time(store: Store, dataset_id: str) -> None:
    ids = [make_job(store, dataset_id) for _ in range(3)]
    first, second, third = (job(store, job_id) for job_id in ids)

    def listed(**filters: Any) -> list[str]:
        with store.read() as session:
            found, _ = job_reads.page(session, tenant_id=DEFAULT_TENANT, limit=10, **filters)
        return [one.id for one in found]

    assert listed(name="A job") == ids[::-1]
    assert listed(name="A") == []
    assert listed(created_after=first.created_at) == [third.id, second.id]
    assert listed(created_before=third.created_at) == [second.id, first.id]
    between = {"created_after": first.created_at, "created_before": third.created_at}
    assert listed(**between) == [second.id]
    far = first.created_at + timedelta(days=30000)
    assert listed(created_after=far) == []
    assert listed(created_before=far) == ids[::-1]
