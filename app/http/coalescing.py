"""Answers many concurrent lookups with one batch call."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from app.errors import StorageUnavailableError

Key = TypeVar("Key")
Value = TypeVar("Value")

_BATCH_SIZE = 500
_TIMEOUT_SECONDS = 10.0


class LookupTimeoutError(StorageUnavailableError):
    """A lookup took too long, as with a database that hangs."""

    def __init__(self) -> None:
        super().__init__("no answer in time", kind="TimeoutError")


class BatchedLookup(Generic[Key, Value]):
    """Collects the lookups of one event loop and makes one call for all of them.

    While one call runs in a thread, the next lookups queue up. So concurrent requests share a
    thread, a connection and a statement, and at most one thread is busy. Each lookup is answered by
    a call that began after it, so no value is older than its request.

    Args:
        fetch: returns one value per key, in order. Only one thread calls it at a time.
        seconds: the time-out of a lookup.
    """

    def __init__(
        self,
        fetch: Callable[[Sequence[Key]], Sequence[Value]],
        seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        self._fetch = fetch
        self._seconds = seconds
        self._queue: list[tuple[Key, asyncio.Future[Value]]] = []
        self._task: asyncio.Task[None] | None = None

    async def get(self, key: Key) -> Value:
        """The value of a key.

        Raises:
            LookupTimeoutError: it takes longer than `seconds`.
            Exception: whatever the call raised.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Value] = loop.create_future()
        self._queue.append((key, future))
        if self._task is None:
            # An empty context, because log records of the call belong to no single request.
            self._task = loop.create_task(self._run(), context=Context())
        timer = loop.call_later(self._seconds, _time_out, future)
        try:
            return await future
        finally:
            timer.cancel()

    async def _run(self) -> None:
        try:
            while self._queue:
                batch, self._queue = self._queue[:_BATCH_SIZE], self._queue[_BATCH_SIZE:]
                # Lookups that timed out or were cancelled are left out.
                batch = [(key, future) for key, future in batch if not future.done()]
                if batch:
                    await self._fetch_batch(batch)
        finally:
            self._task = None

    async def _fetch_batch(self, batch: list[tuple[Key, asyncio.Future[Value]]]) -> None:
        try:
            values = await run_in_threadpool(self._fetch, [key for key, _ in batch])
        except Exception as error:  # noqa: BLE001 (every lookup of the batch raises it)
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), value in zip(batch, values, strict=True):
            if not future.done():
                future.set_result(value)


def _time_out(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(LookupTimeoutError())
