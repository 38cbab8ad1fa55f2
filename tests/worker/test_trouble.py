"""Attempts that end by a trouble of the worker's own: it must not use up those of all that wait."""

import errno
import sys
import threading
from typing import Any

import pytest

from app.settings import Settings
from app.store import job_reads
from app.store.models import DEFAULT_TENANT
from tests.worker.kit import ROOT, Script, Service, cancel
from worker.attempt import run_job
from worker.metrics import WorkerMetrics

ENGINE = [sys.executable, "-S", str(ROOT / "tests/worker/fake_engine.py")]
PAUSE = 77.0
SUCCESS: Script = [["result"]]


class Pauses(threading.Event):
    """Of a worker that does not stop: notes for how long it would wait, and waits not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout)
        return False


def run(service: Service, job_id: str, engine: list[str] = ENGINE) -> list[float | None]:
    """One attempt, in this process; returns the pauses before the worker takes another job."""
    stopping = Pauses()
    settings = Settings(
        data_dir=service.folder / "data", engine_command=engine, republish_after_seconds=PAUSE
    )
    run_job(
        job_id,
        store=service.store,
        blobs=service.blobs,
        queue=service.queue,
        settings=settings,
        stopping=stopping,
        metrics=WorkerMetrics(),
    )
    return stopping.seconds


def no_room(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Whatever is fetched finds a full disk."""

    def get_to_file(*_: Any) -> None:
        raise OSError(number, "no room")

    monkeypatch.setattr("worker.attempt.get_to_file", get_to_file)


def test_a_worker_without_trouble_goes_on_at_once(service: Service) -> None:
    job_id = service.make_job(SUCCESS, publish=False)
    assert run(service, job_id) == []
    assert service.job(job_id).status == "succeeded"


@pytest.mark.parametrize(
    ("script", "engine"),
    [
        ([["result", "lie"]], ENGINE),
        ([["complain", "no such library"], ["exit", 3]], ENGINE),
        ([["kill"]], ENGINE),
        (SUCCESS, ["/no/such/program"]),
    ],
    ids=["worker_error", "the engine says nothing", "the engine is killed", "there is no engine"],
)
def test_after_a_trouble_of_its_own_it_takes_no_job_for_a_while(
    service: Service, script: Script, engine: list[str]
) -> None:
    job_id = service.make_job(script, publish=False)
    assert run(service, job_id, engine) == [PAUSE]
    job = service.job(job_id)
    assert (job.status, job.attempt) == ("queued", 1)
    assert service.queue.depth() == 0  # left to the janitors


def test_an_engine_that_got_to_work_and_crashes_is_the_jobs_trouble(service: Service) -> None:
    job_id = service.make_job([["phase", "preparing"], ["exit", 3]], publish=False)
    assert run(service, job_id) == []
    assert service.job(job_id).status == "queued"
    assert service.queue.depth() == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_costs_no_attempt(
    any_service: Service, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    job_id = any_service.make_job(SUCCESS, max_attempts=1, publish=False)
    with monkeypatch.context() as full:
        no_room(full, number)
        assert run(any_service, job_id) == [PAUSE]
    job = any_service.job(job_id)
    assert (job.status, job.attempt, job.error) == ("queued", 0, None)
    assert any_service.queue.depth() == 0
    with any_service.store.read() as session:
        events = job_reads.events(session, job_id, tenant_id=DEFAULT_TENANT)
    [said] = [event.data["message"] for event in events if event.type == "log"]
    assert "disk is full" in said
    assert run(any_service, job_id) == []
    assert any_service.history(job_id) == ["queued", "running", "queued", "running", "succeeded"]


def test_a_cancel_that_meets_a_full_disk(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = service.make_job(SUCCESS, publish=False)

    def get_to_file(*_: Any) -> None:
        assert cancel(service, job_id) == "cancelling"
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr("worker.attempt.get_to_file", get_to_file)
    assert run(service, job_id) == [PAUSE]
    assert service.job(job_id).status == "cancelled"


def test_another_trouble_with_files_costs_an_attempt(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = service.make_job(SUCCESS, max_attempts=1, publish=False)
    no_room(monkeypatch, errno.EIO)
    assert run(service, job_id) == [PAUSE]
    error = service.job(job_id).error
    assert error is not None
    assert error["code"] == "worker_error"


def test_another_worker_may_have_the_device(service: Service) -> None:
    """This one does well: it takes other jobs at once, and leaves the id to the janitors."""
    refusal: Script = [["error", "no_device", "There is no cuda here."], ["exit", 65]]
    job_id = service.make_job(refusal, refusal, SUCCESS, publish=False)
    for attempt in (1, 2):
        assert run(service, job_id) == []
        job = service.job(job_id)
        assert (job.status, job.attempt) == ("queued", attempt)
        assert service.queue.depth() == 0
    assert run(service, job_id) == []
    assert service.job(job_id).status == "succeeded"


def test_a_device_that_no_worker_has(service: Service) -> None:
    refusal: Script = [["error", "no_device", "There is no cuda here."], ["exit", 65]]
    job_id = service.make_job(refusal, max_attempts=2, publish=False)
    run(service, job_id)
    run(service, job_id)
    job = service.job(job_id)
    assert (job.status, job.attempt) == ("failed", 2)
    assert job.error == {"code": "no_device", "message": "There is no cuda here."}
