"""Datasets: one of a content and name, and none deleted under a job's feet."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Event

import pytest

from app.blobs.sql import SqlBlobStore
from app.store import datasets, jobs
from app.store.engine import Store, open_store
from app.store.models import DEFAULT_TENANT
from tests.app.store.kit import ERROR, NOW, claim, job, make_dataset, make_job


def delete(store: Store, dataset_id: str, tenant_id: str = DEFAULT_TENANT) -> str:
    with store.write() as session:
        return datasets.delete(session, dataset_id, tenant_id=tenant_id)


def test_the_same_content_and_name_are_one_dataset(store: Store, tmp_path: Path) -> None:
    first = make_dataset(store, tmp_path, b"a log")
    assert make_dataset(store, tmp_path, b"a log") == first
    assert make_dataset(store, tmp_path, b"another log") != first
    with store.write() as session:
        known = datasets.get(session, first, tenant_id=DEFAULT_TENANT)
        assert known is not None
        assert known.fingerprint is not None
        named = datasets.create(
            session,
            tenant_id=DEFAULT_TENANT,
            name="another name",
            fingerprint=known.fingerprint,
            source_sha256=known.source_sha256,
            source_bytes=1,
            statistics={},
        )
        assert named.id != first


def test_many_at_once_are_one_dataset_and_one_blob(store: Store, tmp_path: Path) -> None:
    threads = 6
    barrier = Barrier(threads)

    def upload(number: int) -> str:
        folder = tmp_path / str(number)
        folder.mkdir()
        barrier.wait(timeout=10)
        return make_dataset(store, folder, b"a log")

    with ThreadPoolExecutor(threads) as pool:
        assert len(set(pool.map(upload, range(threads)))) == 1
    with store.read() as session:
        found, _ = datasets.page(session, tenant_id=DEFAULT_TENANT, limit=10)
    assert len(found) == 1


def test_a_dataset_is_deleted_once_no_job_needs_it(store: Store, dataset_id: str) -> None:
    queued = make_job(store, dataset_id)
    assert delete(store, dataset_id) == "in_use"
    lease = claim(store, queued)
    assert delete(store, dataset_id) == "in_use"
    with store.write() as session:
        jobs.give_up_attempt(session, lease, error=ERROR, permanent=True, now=NOW)
    assert delete(store, dataset_id, tenant_id="other") == "missing"
    assert delete(store, dataset_id) == "deleted"
    assert delete(store, dataset_id) == "missing"
    with store.write() as session:
        assert datasets.get(session, dataset_id, tenant_id=DEFAULT_TENANT) is None
        assert datasets.hold(session, dataset_id, tenant_id=DEFAULT_TENANT) is None
        assert datasets.page(session, tenant_id=DEFAULT_TENANT, limit=10) == ([], False)
    assert job(store, queued).dataset_id == dataset_id
    assert SqlBlobStore(store).sweep(older_than=timedelta(seconds=-1)) == 1


def test_a_deleted_dataset_can_be_uploaded_again(store: Store, tmp_path: Path) -> None:
    first = make_dataset(store, tmp_path, b"a log")
    assert delete(store, first) == "deleted"
    second = make_dataset(store, tmp_path, b"a log")
    assert second != first
    assert delete(store, second) == "deleted"  # two deleted ones do not collide


def test_a_delete_waits_for_a_job_that_is_being_made(postgresql_url: str, tmp_path: Path) -> None:
    """(On SQLite there is one writer at a time.)"""
    store = open_store(postgresql_url)
    dataset_id = make_dataset(store, tmp_path, b"a log")
    asked = Event()

    def try_to_delete() -> str:
        asked.set()
        return delete(store, dataset_id)

    with ThreadPoolExecutor(1) as pool:
        with store.write() as session:
            assert datasets.hold(session, dataset_id, tenant_id=DEFAULT_TENANT)
            outcome = pool.submit(try_to_delete)
            asked.wait(timeout=10)
            with pytest.raises(TimeoutError):
                outcome.result(timeout=0.3)  # it waits for us
            jobs.create(
                session,
                tenant_id=DEFAULT_TENANT,
                dataset_id=dataset_id,
                config={},
                preset="fast",
                name=None,
                max_attempts=1,
            )
        assert outcome.result(timeout=10) == "in_use"
    store.close()


def test_many_jobs_of_one_dataset_at_once(store: Store, dataset_id: str) -> None:
    """They wait for each other, and not in a circle."""
    threads = 6
    barrier = Barrier(threads)

    def make(_: int) -> str:
        barrier.wait(timeout=10)
        with store.write() as session:
            assert datasets.hold(session, dataset_id, tenant_id=DEFAULT_TENANT)
            return jobs.create(
                session,
                tenant_id=DEFAULT_TENANT,
                dataset_id=dataset_id,
                config={},
                preset="fast",
                name=None,
                max_attempts=1,
            ).id

    with ThreadPoolExecutor(threads) as pool:
        assert len(set(pool.map(make, range(threads)))) == threads
