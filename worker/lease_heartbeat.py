"""Keeps a lease alive while its job runs, from its own thread, and passes on what it learns."""

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar

from app.settings import Settings
from app.store import jobs
from app.store.engine import UNAVAILABLE, Store, database_now

_RETRY_SECONDS = 0.5

T = TypeVar("T")
logger = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """The job belongs to somebody else now, or may at any moment: touch nothing."""


class Pulse:
    """Renews a lease inside a `with` block.

    `cancel` is set when the job shall be cancelled, `lost` when the lease is gone: taken away, or
    not renewed in time because the database did not answer.
    """

    def __init__(self, store: Store, lease: jobs.Lease, settings: Settings) -> None:
        self.cancel = threading.Event()
        self.lost = threading.Event()
        self._store = store
        self._lease = lease
        self._settings = settings
        self._over = threading.Event()
        self._renewed = time.monotonic()  # start of the last renewal that worked
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name=f"pulse-{lease.job_id}", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def patiently(self, call: Callable[[], T]) -> T:
        """The result of `call`, tried again while the database does not answer.

        Raises:
            LeaseLostError: the lease ran out over it.
        """
        while True:
            try:
                return call()
            except UNAVAILABLE as error:
                logger.warning("the database does not answer, trying again: %s", error)
                if self.lost.wait(_RETRY_SECONDS):
                    raise LeaseLostError from error

    def _run(self) -> None:
        while not self._over.wait(self._settings.cancel_poll_seconds):
            try:
                state = self._look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the lease decides
                logger.warning("lease: not renewed: %s", error)
                state = "lost" if self._expired() else "unknown"
            if state == "cancelling" and not self.cancel.is_set():
                logger.info("cancel requested")
                self.cancel.set()
            if state == "lost":
                self.lost.set()
                return

    def _look(self) -> str:
        begin = time.monotonic()
        if begin - self._renewed < self._settings.heartbeat_seconds:
            with self._store.read() as session:
                return jobs.check(session, self._lease)
        with self._store.write() as session:
            state = jobs.renew(
                session,
                self._lease,
                lease_for=timedelta(seconds=self._settings.lease_seconds),
                now=database_now(session),
            )
        self._renewed = begin
        return state

    def _expired(self) -> bool:
        return time.monotonic() - self._renewed > self._settings.lease_seconds
