"""Connections: one engine a process, and short sessions that either read or write."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    DateTime,
    Engine,
    create_engine,
    event,
    func,
    literal,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InterfaceError, InternalError, NotSupportedError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session

# The database does not answer or is busy; or it is a standby that only reads, which may be so for a
# while when one server takes over from another, and which PostgreSQL tells by the third and the
# fourth. Worth another try.
UNAVAILABLE = (OperationalError, InterfaceError, InternalError, NotSupportedError, PoolTimeout)
_BEGIN = "td3_begin"  # execution option: how a SQLite transaction starts
_BUSY_SECONDS = 30
# Of one process, opened as they are needed and then kept: connections above the size of a pool
# would be opened and closed at every use. FastAPI runs at most 40 threads; one that finds all
# connections in use waits for its turn, and gives up (503) after `pool_timeout` seconds.
_POOL: dict[str, Any] = {"pool_size": 20, "max_overflow": 0, "pool_timeout": 10}


def make_engine(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL, set up so that both behave alike under load.

    Raises:
        ValueError: another database.
    """
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite(parsed)
        case "postgresql" | "postgres":
            return _postgresql(parsed)
        case other:
            raise ValueError(f"database_url: {other} is not supported (sqlite, postgresql)")


def _sqlite(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS}, **_POOL)

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        # The driver must not start transactions by itself: it would begin them as readers.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that starts as a reader and then writes fails at once when another has
        # written meanwhile, whatever the time-out; BEGIN IMMEDIATE waits its turn instead.
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))

    return engine


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_recycle=1800,
        **_POOL,
        connect_args={
            "connect_timeout": 10,
            "application_name": "td3",
            # A server that vanished without a word is noticed within about half a minute.
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
            "options": "-c statement_timeout=60000 -c lock_timeout=30000"
            " -c idle_in_transaction_session_timeout=60000",
        },
    )


class Store:
    """Hands out sessions. What they return stays usable after they are closed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._reading = engine.execution_options(postgresql_readonly=True)
        self._writing = engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one state of the data (SQLite) and may not write."""
        with Session(self._reading, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: committed at the end of the block, rolled back when it raises."""
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def database_now(session: Session) -> datetime:
    """The time by the database's clock: the one that all processes share.

    Leases and ages go by it, so that a machine whose clock is wrong takes no job from the others.
    (Who uses SQLite is on the database's machine.)
    """
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    clock = func.clock_timestamp(type_=DateTime(timezone=True))
    return session.execute(select(clock)).scalar_one().astimezone(UTC)


def only_reads(session: Session) -> bool:
    """Whether this is a standby. Asks the database in any case."""
    if session.get_bind().dialect.name == "sqlite":
        return bool(session.scalar(select(literal(False))))
    return bool(session.scalar(select(func.pg_is_in_recovery())))


def insert_into(
    session: Session, table: type[DeclarativeBase]
) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that knows ON CONFLICT, which both databases write alike."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    return insert(table)


def open_store(url: str) -> Store:
    """The store at `url` (whose tables app.store.migrate makes)."""
    return Store(make_engine(url))
