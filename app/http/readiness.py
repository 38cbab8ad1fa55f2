"""Readiness checks: database, migrations, blobs, broker and disk, each with a time limit."""

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from kombu.exceptions import OperationalError

from app.blobs.protocol import BlobStore
from app.broker import JobQueue
from app.http.coalescing import BatchedLookup, LookupTimeoutError
from app.readiness import OK, storage_checks
from app.settings import Settings
from app.store.engine import Store

logger = logging.getLogger(__name__)

_SECONDS = 3.0
_TIMEOUT_MESSAGE = f"does not answer within {_SECONDS:g} seconds"


class ReadinessChecks:
    """Runs the checks. One that hangs occupies a single thread, however often it is asked for."""

    def __init__(self, settings: Settings, store: Store, blobs: BlobStore, queue: JobQueue) -> None:
        checks = {
            **storage_checks(store, blobs),
            "broker": lambda: _check_broker(queue),
            "disk": lambda: _check_disk(settings.data_dir, settings.ready_free_bytes),
        }
        self._checks = {name: _batched(check) for name, check in checks.items()}

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


def _check_broker(queue: JobQueue) -> str:
    try:
        queue.depth()
    except OperationalError as error:
        # The class only: its text may have the broker's address and user.
        logger.warning("the broker does not answer: %s", error)
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
