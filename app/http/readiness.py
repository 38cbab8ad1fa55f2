"""Readiness checks: database, migrations, broker and disk, each with a time limit."""

import asyncio
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from kombu.exceptions import OperationalError

from app.broker import JobQueue
from app.errors import kind_of
from app.http.coalescing import BatchedLookup, LookupTimeoutError
from app.settings import Settings
from app.store.engine import STORE_ERRORS, Store, only_reads
from app.store.migrate import alembic_config

OK = "ok"
_SECONDS = 3.0
_TIMEOUT_MESSAGE = f"does not answer within {_SECONDS:g} seconds"


class ReadinessChecks:
    """Runs the checks. One that hangs occupies a single thread, however often it is asked for."""

    def __init__(self, settings: Settings, store: Store, queue: JobQueue) -> None:
        self._checks = {
            "database": _batched(lambda: _check_database(store)),
            "migrations": _batched(lambda: _check_migrations(store)),
            "broker": _batched(lambda: _check_broker(queue)),
            "disk": _batched(lambda: _check_disk(settings.data_dir, settings.ready_free_bytes)),
        }

    async def results(self) -> dict[str, str]:
        """For each check `ok`, or what is wrong."""
        results = await asyncio.gather(*(_result(check) for check in self._checks.values()))
        return dict(zip(self._checks, results, strict=True))


def _batched(check: Callable[[], str]) -> BatchedLookup[None, str]:
    return BatchedLookup(lambda requests: [check()] * len(requests), seconds=_SECONDS)


async def _result(check: BatchedLookup[None, str]) -> str:
    try:
        return await check.get(None)
    except LookupTimeoutError:
        return _TIMEOUT_MESSAGE


def _check_database(store: Store) -> str:
    try:
        with store.read() as session:
            if only_reads(session):
                return "only reads: a standby, which has not taken over"
    except STORE_ERRORS as error:
        # The class only: the text may have the address and the user of the database.
        return f"does not answer: {kind_of(error)}"
    return OK


def _check_migrations(store: Store) -> str:
    try:
        with store.read() as session:
            current = MigrationContext.configure(session.connection()).get_current_revision()
            head = _head(store)
    except STORE_ERRORS:
        return "unknown"
    return OK if current == head else f"the tables are at {current}, this release needs {head}"


@cache
def _head(store: Store) -> str | None:
    """The newest revision of this release; the files are read once."""
    with store.engine.connect() as connection:
        return ScriptDirectory.from_config(alembic_config(connection)).get_current_head()


def _check_broker(queue: JobQueue) -> str:
    try:
        queue.depth()
    except OperationalError as error:
        return f"does not answer: {type(error).__name__}"
    return OK


def _check_disk(folder: Path, minimum: int) -> str:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"data_dir cannot be used: {error.strerror}"
    if free >= minimum:
        return OK
    return f"{free // 2**20} MiB are free in data_dir, {minimum // 2**20} are wanted"
