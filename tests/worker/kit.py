"""For tests: a real broker, real worker processes, and a fake engine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from app.blobs.protocol import BlobStore
from app.blobs.sql import SqlBlobStore
from app.broker import JobQueue
from app.store import datasets, job_reads, jobs
from app.store.engine import Store, open_store
from app.store.models import DEFAULT_TENANT, Job

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60.0
LEASE_SECONDS = 2.5


T = TypeVar("T")
Script = list[list[Any]]  # see fake_engine.py


def wait_for(look: Callable[[], T | None], what: str | Callable[[], str]) -> T:
    """What `look` returns once that is true. Fails after a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    description = what if isinstance(what, str) else what()
    pytest.fail(f"waited {DEADLINE_SECONDS} s in vain for: {description}")


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter: it ended while it was read
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


class Service:
    """The store and the broker of a test, and the workers it started."""

    def __init__(self, database_url: str, broker_url: str, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store(database_url)
        self.blobs: BlobStore = SqlBlobStore(self.store)
        self.queue = JobQueue(broker_url)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "TD3_DATABASE_URL": database_url,
            "TD3_BROKER_URL": broker_url,
            "TD3_DATA_DIR": str(folder / "data"),
            "TD3_ENGINE_COMMAND": json.dumps(
                [sys.executable, "-S", str(ROOT / "tests/worker/fake_engine.py")]
            ),
            "TD3_LEASE_SECONDS": str(LEASE_SECONDS),
            "TD3_HEARTBEAT_SECONDS": "0.3",
            "TD3_CANCEL_POLL_SECONDS": "0.1",
            "TD3_JANITOR_SECONDS": "0.2",
            "TD3_REPUBLISH_AFTER_SECONDS": "0.5",
            "TD3_CANCEL_GRACE_SECONDS": "20",
        }

    # --- jobs ------------------------------------------------------------------------------------

    def make_job(
        self,
        *scripts: list[list[Any]],
        max_attempts: int = 3,
        publish: bool = True,
        request_id: str | None = None,
    ) -> str:
        """A job on which the fake engine follows these scripts; returns its id."""
        log = self.folder / "log"
        log.write_text("a log")
        fingerprint, size = self.blobs.put_file(log)
        control = self.folder / f"control-{time.monotonic_ns()}"
        control.mkdir()
        with self.store.write() as session:
            dataset = datasets.create(
                session,
                tenant_id=DEFAULT_TENANT,
                name="A log",
                fingerprint=fingerprint,
                source_sha256=fingerprint,
                source_bytes=size,
                statistics={},
            )
            job = jobs.create(
                session,
                tenant_id=DEFAULT_TENANT,
                dataset_id=dataset.id,
                config={"control": str(control), "scripts": scripts},
                preset="fast",
                name=None,
                max_attempts=max_attempts,
                request_id=request_id,
            )
        if publish:
            assert self.queue.publish(self.store, job.id)
        return job.id

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        with self.store.read() as session:
            found = job_reads.get(session, job_id, tenant_id=DEFAULT_TENANT)
        assert found is not None
        return found

    def control(self, job_id: str) -> Path:
        """The folder of files that the engine makes and waits for."""
        return Path(self.job(job_id).config["control"])

    def starts(self, job_id: str) -> list[dict[str, Any]]:
        """What the engine noted at each of its starts."""
        path = self.control(job_id) / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_mark(self, job_id: str, name: str) -> int:
        """Wait until the engine made this mark; returns its process id."""
        path = self.control(job_id) / name

        def look() -> int | None:
            return int(path.read_text() or 0) if path.exists() else None

        return wait_for(look, lambda: f"{name}\n{self.logs()}")

    def open_gate(self, job_id: str, name: str) -> None:
        """Let an engine go on that waits for this file."""
        (self.control(job_id) / name).touch()

    def wait_status(self, job_id: str, *status: str) -> Job:
        """Wait for a state; returns the job."""

        def look() -> Job | None:
            job = self.job(job_id)
            return job if job.status in status else None

        return wait_for(look, lambda: f"{status}\n{self.logs()}")

    def history(self, job_id: str) -> list[str]:
        """States of the job one after another; checks that events are numbered without gaps."""
        with self.store.read() as session:
            events = job_reads.events(
                session, job_id, tenant_id=DEFAULT_TENANT, after=0, limit=1000
            )
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        return [event.data["status"] for event in events if event.type == "status"]

    def artifact(self, job_id: str, name: str) -> str:
        """Text of an artifact."""
        (sha256,) = [a.sha256 for a in self.job(job_id).artifacts if a.name == name]
        return b"".join(self.blobs.open_reader(sha256)).decode()

    # --- workers ---------------------------------------------------------------------------------

    def start_worker(self, *, quick: bool = True, **settings: str) -> subprocess.Popen[bytes]:
        """Start a worker process; `settings` are further TD3_ variables."""
        command = [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker"]
        command += ["-P", "threads", "-c", "1"]
        number = len(self.workers)
        if quick:  # leaves out talking to other workers, which takes a second at the start
            command += ["--without-mingle", "--without-gossip", "-n", f"w{number}@%h"]
        with (self.folder / f"worker-{number}.log").open("wb") as log:
            worker = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**self.environment, **{f"TD3_{k}": v for k, v in settings.items()}},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def logs(self) -> str:
        """What the workers logged."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')}"
            for path in sorted(self.folder.glob("worker-*.log"))
        )

    def records(self) -> list[dict[str, Any]]:
        """What the workers logged, record by record; every line has to be one."""
        return [
            json.loads(line)
            for path in sorted(self.folder.glob("worker-*.log"))
            for line in path.read_text().splitlines()
        ]

    def close(self) -> None:
        """Kill the workers (their engines die with them)."""
        for worker in self.workers:
            worker.kill()
            worker.wait(timeout=10)
        self.store.close()
        self.queue.close()


def kill(worker: subprocess.Popen[bytes]) -> None:
    """kill -9, and wait until it is gone."""
    worker.send_signal(signal.SIGKILL)
    worker.wait(timeout=10)


def cancel(service: Service, job_id: str) -> str:
    """Ask for a cancel, as the API does."""
    with service.store.write() as session:
        return jobs.request_cancel(session, job_id, datetime.now(UTC), tenant_id=DEFAULT_TENANT)
