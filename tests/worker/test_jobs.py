"""Jobs that a real worker process takes from a real broker."""

import os
import signal

import pytest

from app.store import job_reads
from app.store.models import DEFAULT_TENANT
from tests.worker.kit import Script, Service, cancel, is_alive, wait_for

SUCCESS: Script = [
    ["chatter"],
    ["phase", "distilling"],
    ["step", 1],
    ["log", "half way"],
    ["checkpoint"],
    ["step", 2],
    ["result"],
]
WAITING: Script = [
    ["phase", "distilling"],
    ["step", 1],
    ["mark", "ready"],
    ["wait", "go"],
    ["step", 2],
    ["result"],
]


def test_success(any_service: Service) -> None:
    job_id = any_service.make_job(SUCCESS)
    # The command as the documentation gives it.
    any_service.start_worker(quick=False, KEY_SECRET="not for the engine" * 2)
    job = any_service.wait_status(job_id, "succeeded", "failed")
    assert (job.status, job.attempt, job.error) == ("succeeded", 1, None)
    assert job.metrics == {"ndcg@10": 0.25, "bad": None}
    assert job.phase == "publishing"
    names = [artifact.name for artifact in job.artifacts]
    assert names == ["items.parquet", "manifest.json", "summary.safetensors"]
    assert any_service.artifact(job_id, "manifest.json") == "manifest.json [1, 2]"
    assert any_service.history(job_id) == ["queued", "running", "succeeded"]
    (start,) = any_service.starts(job_id)
    assert start["data"] == "a log"
    assert start["pid"] == start["group"]
    assert start["secrets"] == []
    wait_for(lambda: not list((any_service.folder / "data" / "work").iterdir()), "folder removed")


def test_a_second_delivery_is_harmless(service: Service) -> None:
    job_id = service.make_job(WAITING)
    service.start_worker()
    service.wait_mark(job_id, "ready")
    service.queue.publish(service.store, job_id)
    service.start_worker()
    wait_for(lambda: "nothing to do" in service.logs(), "the second delivery")
    service.open_gate(job_id, "go")
    service.wait_status(job_id, "succeeded")
    service.queue.publish(service.store, job_id)
    wait_for(lambda: service.logs().count("nothing to do") == 2, "the third delivery")
    assert len(service.starts(job_id)) == 1
    assert service.history(job_id) == ["queued", "running", "succeeded"]


def test_a_lost_delivery_is_made_up_for(service: Service) -> None:
    lost = service.make_job(SUCCESS, publish=False)
    service.start_worker()
    assert service.wait_status(lost, "succeeded", "failed").status == "succeeded"
    assert service.job(lost).published_at is not None


def test_a_busy_worker_keeps_house(service: Service) -> None:
    long = service.make_job(WAITING)
    service.start_worker()
    service.wait_mark(long, "ready")
    lost = service.make_job(SUCCESS, publish=False)
    wait_for(lambda: service.job(lost).published_at, "sent by the janitor")
    assert service.job(long).status == "running"
    service.open_gate(long, "go")
    service.wait_status(lost, "succeeded")


def test_cancel_while_it_waits(service: Service) -> None:
    job_id = service.make_job(SUCCESS)
    cancel(service, job_id)
    service.start_worker()
    wait_for(lambda: "nothing to do" in service.logs(), "delivery")
    assert service.job(job_id).status == "cancelled"
    assert service.starts(job_id) == []


def test_cancel_while_it_distils(any_service: Service) -> None:
    job_id = any_service.make_job(WAITING)
    any_service.start_worker()
    engine = any_service.wait_mark(job_id, "ready")
    assert cancel(any_service, job_id) == "cancelling"
    job = any_service.wait_status(job_id, "cancelled")
    with pytest.raises(ProcessLookupError):  # cancelled only when the engine is gone
        os.kill(engine, 0)
    assert (job.checkpoint_sha256, job.error, job.artifacts) == (None, None, [])
    assert any_service.history(job_id) == ["queued", "running", "cancelling", "cancelled"]


def test_an_engine_that_does_not_listen_is_killed(service: Service) -> None:
    job_id = service.make_job([["hang"]])
    service.start_worker(CANCEL_GRACE_SECONDS="0.3")
    engine = service.wait_mark(job_id, "hanging")
    cancel(service, job_id)
    service.wait_status(job_id, "cancelled")
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)


def test_a_permanent_error_fails_at_once(service: Service) -> None:
    job_id = service.make_job([["error", "too_little_data", "Nothing is left."], ["exit", 65]])
    service.start_worker()
    job = service.wait_status(job_id, "failed")
    assert job.error == {"code": "too_little_data", "message": "Nothing is left."}
    assert service.history(job_id) == ["queued", "running", "failed"]


def test_a_job_that_always_crashes_fails_in_the_end(service: Service) -> None:
    script: Script = [["complain", "first words"], ["complain", "last words"], ["exit", 3]]
    job_id = service.make_job(script, max_attempts=2)
    service.start_worker()
    job = service.wait_status(job_id, "failed")
    assert job.error is not None
    assert job.error["code"] == "engine_crashed"
    assert "exit code 3" in job.error["message"]
    assert job.error["message"].endswith("first words\nlast words")
    assert job.attempt == 2
    assert service.history(job_id) == ["queued", "running", "queued", "running", "failed"]


@pytest.mark.parametrize(
    ("script", "words"),
    [([["phase", "distilling"]], "exit code 0"), ([["kill"]], "SIGKILL")],
    ids=["no result", "killed"],
)
def test_other_ends_that_are_crashes(script: Script, words: str, service: Service) -> None:
    job_id = service.make_job(script, max_attempts=1)
    service.start_worker()
    error = service.wait_status(job_id, "failed").error
    assert error is not None
    assert words in error["message"]


def test_an_engine_that_hangs_costs_one_attempt(service: Service) -> None:
    """Its worker is alive, and renews the lease for as long as it takes."""
    job_id = service.make_job([["step", 1], ["checkpoint"], ["hang"]], [["step", 2], ["result"]])
    service.start_worker(ENGINE_SILENCE_SECONDS="2")
    engine = service.wait_mark(job_id, "hanging")
    job = service.wait_status(job_id, "succeeded", "failed")
    assert (job.status, job.attempt) == ("succeeded", 2)
    assert not is_alive(engine)
    assert [start["resumed"] for start in service.starts(job_id)] == [[], [1]]
    with service.store.read() as session:
        errors = [
            e.data["error"]["code"]
            for e in job_reads.events(session, job_id, tenant_id=DEFAULT_TENANT)
            if "error" in e.data
        ]
    assert errors == ["engine_hangs"]


def test_a_worker_that_cannot_go_on_says_so(service: Service) -> None:
    """An artifact that is not there: nothing that the supervisor expects."""
    job_id = service.make_job([["result", "lie"]], max_attempts=1)
    service.start_worker()
    error = service.wait_status(job_id, "failed").error
    assert error is not None
    assert error["code"] == "worker_error"
    assert "FileNotFoundError" in error["message"]


def test_a_worker_in_trouble_leaves_its_job_to_the_janitors(service: Service) -> None:
    job_id = service.make_job([["result", "lie"]], [["result"]])
    next_id = service.make_job(SUCCESS)
    worker = service.start_worker(REPUBLISH_AFTER_SECONDS="3600")
    wait_for(lambda: "no job is taken for 3600 s" in service.logs(), "the trouble")
    job = service.job(job_id)
    worker.send_signal(signal.SIGTERM)  # it ends when it has done all that it does
    assert worker.wait(timeout=20) == 0  # and the pause with it
    assert (job.status, service.job(job_id).attempt, job.published_at) == ("queued", 1, None)
    assert service.history(next_id) == ["queued"]
    assert service.queue.depth() == 1
    service.start_worker()
    for waiting in (job_id, next_id):
        assert service.wait_status(waiting, "succeeded", "failed").status == "succeeded"


def test_a_checkpoint_that_is_gone_already_costs_nothing(service: Service) -> None:
    """The engine removes its checkpoint when it is done; a worker may be late to read of it."""
    job_id = service.make_job([["step", 1], ["forget"], ["result"]], max_attempts=1)
    service.start_worker()
    job = service.wait_status(job_id, "succeeded", "failed")
    assert (job.status, job.error) == ("succeeded", None)


def test_a_worker_that_shuts_down_gives_its_job_back(any_service: Service) -> None:
    job_id = any_service.make_job(WAITING, max_attempts=1)
    worker = any_service.start_worker()
    any_service.wait_mark(job_id, "ready")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=20) == 0
    job = any_service.job(job_id)
    assert (job.status, job.attempt) == ("queued", 0)
    assert job.checkpoint_sha256 is not None
    assert any_service.queue.depth() >= 1  # a janitor may have been faster, and sent it too
    any_service.open_gate(job_id, "go")
    any_service.start_worker()
    job = any_service.wait_status(job_id, "succeeded", "failed")
    assert (job.status, job.attempt) == ("succeeded", 1)
    assert [start["resumed"] for start in any_service.starts(job_id)] == [[], [1]]
    assert any_service.history(job_id) == ["queued", "running", "queued", "running", "succeeded"]
