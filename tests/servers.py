"""Servers that tests need: a PostgreSQL (running, or started here) and a broker of their own."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.packages import InstallError, install

ADMIN_URL = os.environ.get("TD3_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/postgres")


class NoPostgresError(Exception):
    """There is none, and none can be started; says why."""


@contextmanager
def postgresql() -> Iterator[str]:
    """URL of an administrator's connection.

    Raises:
        NoPostgresError: nothing answers and nothing can be started.
    """
    if _answers(ADMIN_URL):
        yield ADMIN_URL
        return
    with _own_postgresql() as server:
        yield server.url


@contextmanager
def postgresql_standby(prepare: Callable[[str], object]) -> Iterator["OwnPostgres"]:
    """A PostgreSQL that only reads, until it is promoted.

    Args:
        prepare: called with its URL while it still writes.

    Raises:
        NoPostgresError: none can be started.
    """
    with _own_postgresql() as server:
        prepare(server.url)
        server.control("-m", "fast", "stop")
        server.run("touch", server.data / "standby.signal")
        server.start()
        yield server


class OwnPostgres:
    """A PostgreSQL server of the tests' own."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
        if self.user:
            shutil.chown(folder, self.user)
        self.binaries, self.folder, self.data = binaries, folder, folder / "data"
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        initdb = binaries / "initdb"
        self.run(initdb, "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync")

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F"
        self.control("-l", self.folder / "log", "-o", options, "-t", "30", "start")

    def control(self, *arguments: str | Path) -> None:
        """pg_ctl, which waits until it is done."""
        self.run(self.binaries / "pg_ctl", "-D", self.data, "-w", *arguments)

    def run(self, *command: str | Path) -> None:
        """A command as the server's user."""
        # Output goes to nowhere: the server would hold a pipe open for as long as it lives.
        subprocess.run(
            [str(part) for part in command],
            user=self.user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=True,
        )


@contextmanager
def _own_postgresql() -> Iterator[OwnPostgres]:
    binaries = _binaries()
    with tempfile.TemporaryDirectory(prefix="td3-pg-") as name:
        server = OwnPostgres(binaries, Path(name))
        server.start()
        try:
            yield server
        finally:
            server.control("-m", "immediate", "stop")


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=3).close()
    except psycopg.OperationalError:
        return False
    return True


def _binaries() -> Path:
    found = _find_binaries()
    if found is None:
        try:
            install("postgresql")
        except InstallError as error:
            reason = f"PostgreSQL does not answer, initdb and pg_ctl are not installed: {error}"
            raise NoPostgresError(reason) from error
        found = _find_binaries()
    if found is None:
        raise NoPostgresError("the package postgresql has no initdb and pg_ctl")
    return found


def _find_binaries() -> Path | None:
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name)
    )
    on_path = shutil.which("initdb")
    candidates = [*reversed(versions), *([Path(on_path).parent] if on_path else [])]
    needed = ("initdb", "pg_ctl", "postgres")
    return next(
        (folder for folder in candidates if all((folder / name).exists() for name in needed)), None
    )


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate of 127.0.0.1 that nobody vouches for, and its key."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
