"""The janitor's chores, one by one, without a worker."""

import logging
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from kombu.exceptions import OperationalError
from sqlalchemy import func, select, update
from sqlalchemy.exc import SQLAlchemyError

from app.broker import QUEUE, JobQueue
from app.settings import Settings
from app.store import jobs
from app.store.models import Job
from tests.worker.kit import Script, Service, cancel
from worker.folders import sweep_work_folders, work_folder
from worker.janitor import Janitor

SCRIPT: Script = [["result"]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Every waiting job has waited long."""
    return Settings(data_dir=tmp_path / "data", republish_after_seconds=1e-9)


def test_waiting_jobs_do_not_flood_the_broker(
    service: Service, settings: Settings, broker_url: str
) -> None:
    janitor = Janitor(service.store, service.blobs, service.queue, settings)
    for _ in range(3):
        service.make_job(SCRIPT, publish=False)
    janitor.republish()
    assert service.queue.depth() == 3
    for _ in range(5):
        janitor.republish()
    assert service.queue.depth() == 3
    with redis.Redis.from_url(broker_url.replace("redis+socket://", "unix://")) as client:
        client.lpop(QUEUE)  # one is lost
    for _ in range(5):
        janitor.republish()
    assert service.queue.depth() == 5  # nobody knows which one it was: all were sent again, once


def test_new_jobs_do_not_hide_a_lost_one(service: Service, tmp_path: Path) -> None:
    janitor = Janitor(
        service.store, service.blobs, service.queue, Settings(data_dir=tmp_path / "data")
    )
    lost = service.make_job(SCRIPT, publish=False)
    with service.store.write() as session:
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        session.execute(update(Job).values(updated_at=long_ago))
    for _ in range(2):
        service.make_job(SCRIPT)
    janitor.republish()
    assert service.job(lost).published_at is not None
    assert service.queue.depth() == 3


def test_a_broker_that_is_frozen_holds_up_nobody_for_long(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.broker.TIMEOUT_SECONDS", 0.1)
    path = tmp_path / "frozen.sock"
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(path))
        frozen.listen()
        queue = JobQueue(f"redis+socket://{path}")
        assert not queue.publish(service.store, service.make_job(SCRIPT, publish=False))
        with pytest.raises(OperationalError):
            queue.depth()
        queue.close()


def test_a_job_that_was_sent_and_could_not_be_marked_was_sent(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = service.make_job(SCRIPT, publish=False)

    def fail(*_: object) -> None:
        raise SQLAlchemyError("the database is away")

    monkeypatch.setattr(jobs, "mark_published", fail)
    assert service.queue.publish(service.store, job_id)
    assert service.queue.depth() == 1


def test_a_broker_that_is_gone_hinders_no_other_chore(
    service: Service, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = JobQueue(f"redis+socket://{tmp_path}/nothing.sock")
    job_id = service.make_job(SCRIPT, publish=False)
    swept = []

    class Counting(Janitor):
        def sweep(self) -> None:
            swept.append(1)

    with caplog.at_level(logging.WARNING):
        assert not queue.publish(service.store, job_id)
        Counting(service.store, service.blobs, queue, settings).round()
    assert service.job(job_id).published_at is None
    assert "republish did not work" in caplog.text
    assert swept == [1]
    queue.close()


def test_what_is_old_goes_once_in_a_while(service: Service, tmp_path: Path) -> None:
    def old_job() -> None:
        cancel(service, service.make_job(SCRIPT, publish=False))
        with service.store.write() as session:
            session.execute(update(Job).values(finished_at=datetime.now(UTC) - timedelta(days=2)))

    def jobs_left() -> int:
        with service.store.read() as session:
            return session.scalar(select(func.count()).select_from(Job)) or 0

    old_job()
    Janitor(service.store, service.blobs, service.queue, Settings(data_dir=tmp_path)).collect()
    assert jobs_left() == 1  # nobody said that it may go
    janitor = Janitor(
        service.store, service.blobs, service.queue, Settings(data_dir=tmp_path, retain_jobs_days=1)
    )
    janitor.collect()
    assert jobs_left() == 0
    old_job()
    janitor.collect()
    assert jobs_left() == 1  # not yet


def test_only_forgotten_work_folders_are_removed(tmp_path: Path) -> None:
    import os

    forgotten = tmp_path / "job_1-forgotten"
    young = tmp_path / "job_2-young"
    for folder in (forgotten, young):
        folder.mkdir()
        (folder / ".lock").touch()
    with work_folder(tmp_path, "job_3") as used:
        for folder in (forgotten, used):
            os.utime(folder, (0, 0))
        sweep_work_folders(tmp_path)
        assert not forgotten.exists()
        assert young.exists()
        assert used.exists()
    assert not used.exists()
