"""The whole service on one machine: `td3 serve`, or `python -m app.standalone.serve`.

Migrates the tables, starts an embedded Valkey (unless a broker is given), the API and the workers,
and prints `listening on URL` to stdout once it can serve requests. A process that crashes is
restarted; one that crashes three times within a minute stops the service with exit code 1. SIGINT
or SIGTERM stops the API and the workers, then Valkey; a second signal stops them at once. While the
service runs, `service.json` in the data folder has its URL and process ids.
"""

import argparse
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote

import httpx
from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis

from app.broker import celery_settings
from app.loopback import is_loopback
from app.main import check_settings
from app.processes.supervise import Child, ServeError
from app.settings import Settings, SettingsError
from app.standalone.valkey import socket_path, valkey_command, valkey_complaint
from app.startup import refuse_settings, start
from app.store import keys
from app.store.engine import STORE_ERRORS, open_store
from app.store.migrate import upgrade

logger = logging.getLogger("app.serve")

START_SECONDS = 60.0
POLL_SECONDS = 0.2
API_DRAIN_SECONDS = 5
KILL_SLACK_SECONDS = 10.0  # between a process's own time-out and its SIGKILL


class Service:
    """The processes of one service, in the order of their starts."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self.settings = settings
        self.workers = workers
        self.children: list[Child] = []
        self.signals = 0
        self.cleanup = ExitStack()

    def run(self, *, embedded_broker: bool) -> None:
        """Start all processes, keep them running until a signal, stop them.

        Args:
            embedded_broker: whether to start Valkey, instead of using the settings' broker.

        Raises:
            ServeError: a process does not start or keeps crashing.
        """
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        with self.cleanup:
            try:
                self._start(embedded_broker)
                while not self.signals:
                    time.sleep(POLL_SECONDS)
                    if self._revive():
                        self._write_state()
            finally:
                self.stop()

    def _start(self, embedded_broker: bool) -> None:
        if embedded_broker:
            self._start_broker()
        listener = self.cleanup.enter_context(_listen(self.settings.host, self.settings.port))
        port = listener.getsockname()[1]
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        self.url = f"http://{host}:{port}"
        environment = {**os.environ, **_as_environment(self.settings)}
        self.start_child(
            Child(
                "API",
                [
                    *(sys.executable, "-m", "uvicorn", "app.main:app"),
                    # The socket is inherited, so a restarted API has the same port.
                    *("--fd", str(listener.fileno())),
                    *("--timeout-graceful-shutdown", str(API_DRAIN_SECONDS)),
                ],
                environment=environment,
                grace_seconds=API_DRAIN_SECONDS + KILL_SLACK_SECONDS,
                open_files=[listener.fileno()],
            )
        )
        names = [
            f"td3-{os.getpid()}-{number}@{socket.gethostname()}" for number in range(self.workers)
        ]
        for number, name in enumerate(names):
            self.start_child(
                Child(
                    "worker",
                    [
                        *(sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker"),
                        *("-P", "threads", "-c", "1", "-n", name, "--loglevel", "INFO"),
                    ],
                    environment={**environment, **_metrics_port(self.settings, number)},
                    grace_seconds=self.settings.cancel_grace_seconds + KILL_SLACK_SECONDS,
                )
            )
        self._wait("API", self._api_complaint)
        if names:
            self._wait("worker", _WorkersComplaint(self.settings.broker_url, names))
        if self.signals:
            return
        self._write_state()
        self.cleanup.callback((self.settings.data_dir / "service.json").unlink, missing_ok=True)
        sys.stdout.write(f"listening on {self.url}\n")
        sys.stdout.flush()

    def _start_broker(self) -> None:
        folder = self.settings.data_dir / "valkey"
        folder.mkdir(exist_ok=True)
        path = self.cleanup.enter_context(socket_path(folder))
        command = valkey_command(folder, path)
        self.start_child(
            Child("Valkey", command, environment=os.environ, grace_seconds=KILL_SLACK_SECONDS)
        )
        client = Redis(unix_socket_path=str(path), socket_timeout=2)
        self.cleanup.callback(client.close)
        self._wait("Valkey", lambda: valkey_complaint(client))
        self.settings = self.settings.model_copy(
            update={"broker_url": f"redis+socket://{quote(str(path))}"}
        )

    def start_child(self, child: Child) -> None:
        """Start a process and supervise it from now on."""
        self.children.append(child)
        child.start()

    def _revive(self) -> bool:
        """Restart processes that have ended; returns whether there were any."""
        revived = [child.revive() for child in self.children]
        return any(revived)

    def _wait(self, name: str, complaint: Callable[[], str | None]) -> None:
        """Wait until `complaint` returns None, or a signal comes."""
        deadline = time.monotonic() + START_SECONDS
        while not self.signals and (reason := complaint()) is not None:
            if time.monotonic() > deadline:
                raise ServeError(f"{name} is not ready after {START_SECONDS:g} seconds: {reason}")
            self._revive()
            time.sleep(POLL_SECONDS / 4)

    def _api_complaint(self) -> str | None:
        try:
            # `trust_env=False`: a proxy of the environment cannot reach this machine's loopback.
            answer = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False)
        except httpx.TransportError as error:
            return str(error)
        return None if answer.is_success else answer.text

    def _write_state(self) -> None:
        state = {
            "url": self.url,
            "pid": os.getpid(),
            "pids": [child.pid for child in self.children],
            "broker_url": self.settings.broker_url,
        }
        path = self.settings.data_dir / "service.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state) + "\n")
        temporary.replace(path)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.signals += 1

    def stop(self) -> None:
        """Stop the API and all workers concurrently, each with its grace period; then Valkey."""
        logger.info("stopping")
        before = self.signals
        broker = [child for child in self.children if child.name == "Valkey"]
        others = [child for child in self.children if child.name != "Valkey"]
        for child in others:
            child.terminate()
        for child in [*others, *broker]:
            child.stop(hurry=lambda: self.signals > before)


class _WorkersComplaint:
    """Says how many of the named workers do not answer a ping."""

    def __init__(self, broker_url: str, names: list[str]) -> None:
        self.app = Celery("td3-serve", set_as_current=False)
        self.app.conf.update(celery_settings(broker_url))
        self.names = names

    def __call__(self) -> str | None:
        try:
            answers = self.app.control.ping(destination=self.names, timeout=0.5)
        except OperationalError as error:
            return str(error)
        missing = len(self.names) - len(answers)
        return f"{missing} of {len(self.names)} do not answer" if missing else None


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket: the port is known before the API starts, and stays reserved.

    Raises:
        ServeError: the address is in use or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ServeError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    # Accepted connections inherit this option. Uvicorn gets the socket by its descriptor, does not
    # know that it is TCP, and would not set it. Short answers would wait for a delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        yield listener


@contextmanager
def _lock(data_dir: Path) -> Iterator[None]:
    """Lock the data folder for this service.

    Raises:
        ServeError: another service has locked it.
    """
    with (data_dir / "serve.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise ServeError(
                f"{data_dir} is in use by another service (process {lock.read().strip()})"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _as_environment(settings: Settings) -> Mapping[str, str]:
    """The settings that the command line may have changed, as environment variables."""
    return {
        "TD3_DATA_DIR": str(settings.data_dir),
        "TD3_DATABASE_URL": settings.database_url,
        "TD3_BROKER_URL": settings.broker_url,
        "TD3_HOST": settings.host,
        "TD3_PORT": str(settings.port),
    }


def _metrics_port(settings: Settings, number: int) -> Mapping[str, str]:
    port = settings.worker_metrics_port
    return {"TD3_WORKER_METRICS_PORT": str(port + number)} if port else {}


def _require_key_or_loopback(settings: Settings) -> None:
    """Check that a service without API keys listens on a loopback address.

    Raises:
        ServeError: other machines could reach it.
    """
    if is_loopback(settings.host):
        return
    store = open_store(settings.database_url)
    try:
        with store.read() as session:
            protected = keys.any_made(session)
    finally:
        store.close()
    if not protected:
        raise ServeError(
            f"{settings.host} can be reached by others, and there is no API key that they would "
            "need. Make one first: td3 keys create NAME"
        )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="td3 serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other settings are environment variables TD3_... (docs/operations.md).",
    )
    parser.add_argument("--data-dir", type=Path, help="folder for everything (default: td3-data)")
    parser.add_argument(
        "--host",
        help="address to listen on (default: 127.0.0.1; others need keys: td3 keys create)",
    )
    parser.add_argument("--port", type=int, help="port; 0 takes a free one (default: 8000)")
    parser.add_argument("--broker-url", help="Redis or Valkey to use (default: an embedded one)")
    parser.add_argument("--database-url", help="default: SQLite in the data folder")
    parser.add_argument(
        "--workers", type=int, default=1, help="jobs at once; 0: the API only (default: 1)"
    )
    options = parser.parse_args(arguments)
    if options.workers < 0:
        parser.error("argument --workers: must be 0 or more")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the service; returns the exit code."""
    options = _parse(arguments)
    overrides: dict[str, Any] = {
        name: value
        for name in ("data_dir", "host", "port", "broker_url", "database_url")
        if (value := getattr(options, name)) is not None
    }
    settings = start(**overrides)
    try:
        check_settings(settings)
        embedded_broker = "broker_url" not in settings.model_fields_set
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with _lock(settings.data_dir):
            upgrade(settings.database_url)
            _require_key_or_loopback(settings)
            Service(settings, options.workers).run(embedded_broker=embedded_broker)
    except SettingsError as error:
        refuse_settings(error)
    except (ServeError, *STORE_ERRORS) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
