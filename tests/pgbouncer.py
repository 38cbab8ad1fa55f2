"""A PgBouncer of the tests' own, in front of a database of the PostgreSQL that tests use."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import URL, make_url

from tests.packages import program
from tests.servers import free_port
from tests.worker.kit import wait_for

# Fewer connections than clients in transaction mode, so that clients really share them.
_POOLS = {"transaction": 2, "session": 40}


class PgBouncer:
    """Where it listens, and what it says."""

    def __init__(self, target: URL, folder: Path) -> None:
        self._target = target
        self.port = free_port()
        self.log = folder / "pgbouncer.log"
        to = f"host={target.host} port={target.port or 5432} user={target.username}"
        if target.password:
            to += f" password={target.password}"
        databases = [
            f"{mode} = {to} dbname={target.database} pool_mode={mode} pool_size={size}"
            for mode, size in _POOLS.items()
        ]
        self.configuration = folder / "pgbouncer.ini"
        self.configuration.write_text(
            "\n".join(
                [
                    "[databases]",
                    *databases,
                    "[pgbouncer]",
                    "listen_addr = 127.0.0.1",
                    f"listen_port = {self.port}",
                    "unix_socket_dir =",
                    "auth_type = trust",
                    f"auth_file = {folder / 'users'}",
                    f"logfile = {self.log}",
                    "max_client_conn = 200",
                ]
            )
            + "\n"
        )
        (folder / "users").write_text(f'"{target.username}" ""\n')

    def url(self, database: str) -> str:
        """The URL of one of its databases, which are called as their pooling modes are."""
        return self._target.set(
            host="127.0.0.1", port=self.port, password="swordfish", database=database
        ).render_as_string(hide_password=False)

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            psycopg.connect(self.url("session").replace("+psycopg", "")).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def pgbouncer(target_url: str) -> Iterator[PgBouncer]:
    """Debian's PgBouncer in front of this database; skips where there is none."""
    binary = program("pgbouncer", "pgbouncer")
    # It refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="td3-pgbouncer-") as name:
        folder = Path(name)
        bouncer = PgBouncer(make_url(target_url), folder)
        if user:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, user)
        with subprocess.Popen(
            [binary, "-q", str(bouncer.configuration)],
            user=user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                wait_for(bouncer.answers, bouncer.log.read_text)
                yield bouncer
            finally:
                process.kill()
