"""Connections: one engine per process, and short sessions that either read or write."""

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
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session

from app.addresses import parse_database_url
from app.errors import StorageUnavailableError

# Any failure of the database, for code that can do without its answer.
STORE_ERRORS = (StorageUnavailableError, SQLAlchemyError)
# The database does not answer or is busy. PostgreSQL raises InternalError and NotSupportedError
# while it is a read-only standby, which ends when it takes over.
_OUTAGES = (OperationalError, InterfaceError, InternalError, NotSupportedError, PoolTimeout)
_BEGIN = "td3_begin"  # execution option: how a SQLite transaction starts
_BUSY_SECONDS = 30
# No overflow: connections beyond the pool's size would be opened and closed at every use. FastAPI
# runs at most 40 threads; one that finds no free connection waits `pool_timeout` seconds, then
# answers 503.
_POOL: dict[str, Any] = {"pool_size": 20, "max_overflow": 0, "pool_timeout": 10}


def make_engine(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL, configured so that both behave alike under load.

    Raises:
        ValueError: `url` names no database that is supported.
    """
    parsed = parse_database_url(url)
    return _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)


def _sqlite(url: URL) -> Engine:
    assert url.database is not None
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS}, **_POOL)

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        # The driver must not start transactions itself: it would begin them as readers.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that starts as a reader and then writes fails at once if another one wrote
        # in between, whatever the time-out is. BEGIN IMMEDIATE waits its turn instead.
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))

    return engine


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_recycle=1800,
        **_POOL,
        connect_args={
            "connect_timeout": 10,
            "application_name": "td3",
            # A server that vanished silently is noticed within about half a minute.
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
            "options": "-c statement_timeout=60000 -c lock_timeout=30000"
            " -c idle_in_transaction_session_timeout=60000",
        },
    )


class Store:
    """Opens sessions. Objects that they return stay usable after the session is closed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._reading = engine.execution_options(postgresql_readonly=True)
        self._writing = engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one snapshot of the data (SQLite) and may not write.

        Raises:
            StorageUnavailableError: the database does not answer or is busy.
        """
        with _translated_outages(), Session(self._reading, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: committed at the end of the block, rolled back if the block raises.

        Raises:
            StorageUnavailableError: the database does not answer, is busy or is read-only.
        """
        with (
            _translated_outages(),
            Session(self._writing, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


@contextmanager
def _translated_outages() -> Iterator[None]:
    try:
        yield
    except _OUTAGES as error:
        raise StorageUnavailableError(str(error), kind=type(error).__name__) from error


def database_now(session: Session) -> datetime:
    """The time by the database's clock, which all processes share.

    Leases and ages use it, so that a machine with a wrong clock takes no job from the others. With
    SQLite every process runs on the database's machine, so its clock is the same.
    """
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    clock = func.clock_timestamp(type_=DateTime(timezone=True))
    return session.execute(select(clock)).scalar_one().astimezone(UTC)


def only_reads(session: Session) -> bool:
    """Whether the database is a read-only standby. Always sends a query, also to SQLite."""
    if session.get_bind().dialect.name == "sqlite":
        return bool(session.scalar(select(literal(False))))
    return bool(session.scalar(select(func.pg_is_in_recovery())))


def insert_into(
    session: Session, table: type[DeclarativeBase]
) -> postgresql.Insert | sqlite.Insert:
    """An INSERT with ON CONFLICT, which both databases spell alike."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    return insert(table)


def open_store(url: str) -> Store:
    """The store at `url`; its tables come from app.store.migrate.

    Raises:
        ValueError: `url` names no database that is supported.
    """
    return Store(make_engine(url))
