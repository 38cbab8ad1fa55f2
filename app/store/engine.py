"""Connections: one engine per process, and short sessions that either read or write."""

import re
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
    DBAPIError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session

from app.addresses import parse_database_url
from app.errors import StorageUnavailableError, kind_of

# Any failure of the database, for code that can do without its answer.
STORE_ERRORS = (StorageUnavailableError, SQLAlchemyError)
# The database does not answer or is busy. PostgreSQL raises InternalError and NotSupportedError
# while it is a read-only standby, which ends when it takes over.
_OUTAGES = (OperationalError, InterfaceError, InternalError, NotSupportedError, PoolTimeout)
# Where the driver tries to connect to, in its messages.
_ADDRESS = re.compile(
    r"connection to server at \"[^\"]*\"( \([^)]*\))?, port \d+ failed: "
    r"|connection to server on socket \"[^\"]*\" failed: "
    r"|host: '[^']*', port: '?\d+'?, hostaddr: '[^']*': "
)
_BEGIN = "td3_begin"  # execution option: the statements that start a transaction
_BUSY_SECONDS = 30
# Limits of a transaction on PostgreSQL, in milliseconds. They are set in each transaction: a pooler
# such as PgBouncer refuses or drops what is asked for at a connection's start, and gives each
# transaction another connection of its own. Sent with BEGIN, they cost no round trip.
_LIMITS = {
    "statement_timeout": 60_000,
    "lock_timeout": 30_000,
    "idle_in_transaction_session_timeout": 60_000,
}
_SET_LIMITS = "".join(f"; SET LOCAL {name} = {value}" for name, value in _LIMITS.items())
# By dialect: how transactions start that only read, and that write. On SQLite one that starts as a
# reader and then writes fails at once if another one wrote in between, whatever the time-out is.
# BEGIN IMMEDIATE waits its turn instead.
_READING = {"sqlite": "BEGIN", "postgresql": f"BEGIN READ ONLY{_SET_LIMITS}"}
_WRITING = {"sqlite": "BEGIN IMMEDIATE", "postgresql": f"BEGIN{_SET_LIMITS}"}
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
    is_sqlite = parsed.get_backend_name() == "sqlite"
    engine = _sqlite(parsed) if is_sqlite else _postgresql(parsed)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        default = _READING[connection.dialect.name]
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, default))

    return engine


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
            "autocommit": True,  # the driver starts no transactions itself
            # A pooler would run a prepared statement on a connection that does not have it.
            "prepare_threshold": None,
        },
    )


class Store:
    """Opens sessions. Objects that they return stay usable after the session is closed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        dialect = engine.dialect.name
        self._reading = engine.execution_options(**{_BEGIN: _READING[dialect]})
        self._writing = engine.execution_options(**{_BEGIN: _WRITING[dialect]})

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

    def words(self, error: Exception) -> str:
        """Why the database does not answer, in the driver's words, for those who may not know all.

        Its address and password are left out. Names of users and databases are not, because they
        are what is wrong most often.
        """
        said = _ADDRESS.sub("", _words(error))
        url = self.engine.url
        several = url.query.get("host", ())
        hosts = [url.host or "", *([several] if isinstance(several, str) else several)]
        for hidden in (str(url.password or ""), *(host.partition(":")[0] for host in hosts)):
            if hidden:
                said = said.replace(hidden, "…")
        kind = kind_of(error)
        return f"{kind}: {said}" if said else kind

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


@contextmanager
def _translated_outages() -> Iterator[None]:
    try:
        yield
    except _OUTAGES as error:
        raise StorageUnavailableError(_words(error), kind=type(error).__name__) from error


def _words(error: Exception) -> str:
    """What the driver says, on one line. SQLAlchemy's own text has the statement and its values."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(said).split())


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
