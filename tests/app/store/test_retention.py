"""What is old goes, what is in use stays; on both databases, also with others at work."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from app.store import job_reads, jobs, retention
from app.store.engine import Store
from app.store.models import DEFAULT_TENANT, Artifact, Base, Dataset, Job, JobEvent
from app.store.retention import Ages, Collected, collect, preview
from tests.app.store.kit import claim, finished_job, history, make_dataset, make_job

DAY = timedelta(days=1)
WEEK = Ages(jobs=7 * DAY, events=2 * DAY, datasets=7 * DAY)


def count(store: Store, table: type[Base]) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def last_used(store: Store, dataset_id: str, *, days_ago: float) -> None:
    used = datetime.now(UTC) - days_ago * DAY
    with store.write() as session:
        session.execute(update(Dataset).where(Dataset.id == dataset_id).values(used_at=used))


def left(store: Store) -> set[str]:
    with store.read() as session:
        return {*session.scalars(select(Job.id)), *session.scalars(select(Dataset.id))}


def test_what_is_old_goes_and_the_rest_stays(store: Store, tmp_path: Path) -> None:
    used, unused, young = (make_dataset(store, tmp_path, name) for name in (b"1", b"2", b"3"))
    old = finished_job(store, unused, days_ago=8)
    trimmed = finished_job(store, used, days_ago=3)
    fresh = finished_job(store, used, days_ago=1)
    waiting, running = make_job(store, used), make_job(store, used)
    claim(store, running)
    for dataset in (used, unused):
        last_used(store, dataset, days_ago=8)
    expected = Collected(jobs=1, events=4, datasets=1)
    assert preview(store, WEEK) == expected
    assert left(store) == {used, unused, young, old, trimmed, fresh, waiting, running}
    assert collect(store, WEEK) == expected
    assert left(store) == {used, young, trimmed, fresh, waiting, running}
    with store.read() as session:
        kept = job_reads.events(session, trimmed, tenant_id=DEFAULT_TENANT)
    assert [event.data.get("status") for event in kept] == ["queued", "running", "succeeded"]
    assert kept[-1].sequence == 5  # as before: who resumes a stream is not told it twice
    assert history(store, fresh) == ["queued", "running", "progress", "progress", "succeeded"]
    assert collect(store, WEEK) == preview(store, WEEK) == Collected(0, 0, 0)


@pytest.mark.parametrize(
    ("ages", "expected"),
    [
        (Ages(), Collected(0, 0, 0)),
        (Ages(jobs=DAY), Collected(1, 2, 0)),
        (Ages(events=DAY), Collected(0, 2, 0)),
        (Ages(datasets=DAY), Collected(0, 0, 0)),  # there is a job of it
    ],
    ids=["nothing", "jobs", "events", "datasets"],
)
def test_each_age_is_for_itself(
    ages: Ages, expected: Collected, store: Store, dataset_id: str
) -> None:
    finished_job(store, dataset_id, days_ago=9)
    last_used(store, dataset_id, days_ago=9)
    assert preview(store, ages) == expected
    assert collect(store, ages) == expected


def test_jobs_in_hand_stay_however_old(store: Store, dataset_id: str) -> None:
    ids = [make_job(store, dataset_id) for _ in range(3)]
    claim(store, ids[0])
    claim(store, ids[1])
    with store.write() as session:
        jobs.request_cancel(session, ids[1], datetime.now(UTC), tenant_id=DEFAULT_TENANT)
        long_ago = datetime.now(UTC) - 900 * DAY
        session.execute(update(Job).values(created_at=long_ago, updated_at=long_ago))
    last_used(store, dataset_id, days_ago=900)
    assert collect(store, WEEK) == Collected(0, 0, 0)
    assert left(store) == {dataset_id, *ids}


def test_many_batches_leave_nothing(
    store: Store, dataset_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "EVENTS_AT_ONCE", 3)
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 2)
    for _ in range(5):
        finished_job(store, dataset_id, days_ago=9)
    assert collect(store, WEEK) == Collected(jobs=5, events=10, datasets=0)
    assert count(store, JobEvent) == count(store, Artifact) == 0


def test_collectors_at_once_share_the_work(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 2)
    made = [make_dataset(store, tmp_path, bytes([number])) for number in range(6)]
    for dataset in made:
        finished_job(store, dataset, days_ago=9)
        last_used(store, dataset, days_ago=9)
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: collect(store, WEEK), range(3)))
    # What one has locked the others leave to it, so they may have ended before it.
    assert sum(each.jobs for each in done) == 6
    assert sum(each.datasets for each in done) + collect(store, WEEK).datasets == 6
    assert left(store) == set()


def test_a_dataset_that_a_job_is_being_made_of_stays(store: Store, dataset_id: str) -> None:
    """The collector looks while the transaction that makes the job is open."""
    last_used(store, dataset_id, days_ago=9)
    collected: list[Collected] = []
    collector = threading.Thread(target=lambda: collected.append(collect(store, WEEK)))
    with store.write() as session:
        job = jobs.create(
            session,
            tenant_id=DEFAULT_TENANT,
            dataset_id=dataset_id,
            config={},
            preset="fast",
            name=None,
            max_attempts=1,
        )
        collector.start()
        if store.engine.dialect.name == "postgresql":
            collector.join()  # it does not wait for the lock; on SQLite writers take turns
    collector.join()
    assert collected == [Collected(0, 0, 0)]
    assert left(store) == {dataset_id, job.id}


def test_no_job_is_made_of_a_dataset_that_went(store: Store, dataset_id: str) -> None:
    last_used(store, dataset_id, days_ago=9)
    assert collect(store, WEEK).datasets == 1
    with pytest.raises(IntegrityError):
        make_job(store, dataset_id)


def test_making_a_job_is_using_its_dataset(store: Store, dataset_id: str) -> None:
    last_used(store, dataset_id, days_ago=9)
    finished_job(store, dataset_id, days_ago=9)
    assert collect(store, WEEK) == Collected(jobs=1, events=2, datasets=0)
