"""What a service needs in order to serve, each looked at within a few seconds whatever hangs."""

import asyncio
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoAnswerError

from app.broker import JobQueue
from app.http.coalescing import Together
from app.settings import Settings
from app.store.engine import Store, only_reads
from app.store.migrate import alembic_config

OK = "ok"
_SECONDS = 3.0
_LATE = f"does not answer within {_SECONDS:g} seconds"


class ReadinessChecks:
    """Whether the database answers and has the tables of this release, the broker answers, and
    there is room for uploads. What is frozen takes one thread, however often somebody asks.
    """

    def __init__(self, settings: Settings, store: Store, queue: JobQueue) -> None:
        self._checks = {
            "database": _bounded(lambda: _check_database(store)),
            "migrations": _bounded(lambda: _check_migrations(store)),
            "broker": _bounded(lambda: _check_broker(queue)),
            "disk": _bounded(lambda: _check_disk(settings.data_dir, settings.ready_free_bytes)),
        }

    async def results(self) -> dict[str, str]:
        """`ok` or what is wrong, for each of them."""
        found = await asyncio.gather(*(_result(check) for check in self._checks.values()))
        return dict(zip(self._checks, found, strict=True))


def _bounded(check: Callable[[], str]) -> Together[None, str]:
    return Together(lambda asked: [check()] * len(asked), seconds=_SECONDS)


async def _result(check: Together[None, str]) -> str:
    try:
        return await check.ask(None)
    except NoAnswerError:
        return _LATE


def _check_database(store: Store) -> str:
    try:
        with store.read() as session:
            if only_reads(session):
                return "only reads: a standby, which has not taken over"
    except SQLAlchemyError as error:
        # The class only: the text may have the address and the user of the database.
        return f"does not answer: {type(error).__name__}"
    return OK


def _check_migrations(store: Store) -> str:
    try:
        with store.read() as session:
            here = MigrationContext.configure(session.connection()).get_current_revision()
            head = _head(store)
    except SQLAlchemyError:
        return "unknown"
    return OK if here == head else f"the tables are at {here}, this release needs {head}"


@cache
def _head(store: Store) -> str | None:
    """Newest revision of this release; read from the files once."""
    with store.engine.connect() as connection:
        return ScriptDirectory.from_config(alembic_config(connection)).get_current_head()


def _check_broker(queue: JobQueue) -> str:
    try:
        queue.depth()
    except OperationalError as error:
        return f"does not answer: {type(error).__name__}"
    return OK


def _check_disk(folder: Path, wanted: int) -> str:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"data_dir cannot be used: {error.strerror}"
    if free >= wanted:
        return OK
    return f"{free // 2**20} MiB are free in data_dir, {wanted // 2**20} are wanted"
