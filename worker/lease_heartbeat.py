"""Renews a job's lease from a thread of its own, and watches for cancellation."""

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar

from app.errors import StorageUnavailableError
from app.settings import Settings
from app.store import jobs
from app.store.engine import Store, database_now

_RETRY_SECONDS = 0.5

T = TypeVar("T")
logger = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """Another worker has the job, or may have it at any moment: do not touch it."""


class LeaseHeartbeat:
    """Renews a lease inside a `with` block.

    Attributes:
        cancel_requested: set when the job should be cancelled.
        lease_lost: set when the lease was taken away, or could not be renewed in time because the
            database did not answer.
    """

    def __init__(self, store: Store, lease: jobs.Lease, settings: Settings) -> None:
        self.cancel_requested = threading.Event()
        self.lease_lost = threading.Event()
        self._store = store
        self._lease = lease
        self._settings = settings
        self._stop = threading.Event()
        self._renewed_at = time.monotonic()  # start of the last successful renewal
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name=f"lease-{lease.job_id}", daemon=True
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
        self._stop.set()
        self._thread.join()

    def retry(self, call: Callable[[], T]) -> T:
        """The result of `call`, which is repeated during an outage of the database or blob store.

        Raises:
            LeaseLostError: the lease was lost meanwhile.
        """
        while True:
            try:
                return call()
            except StorageUnavailableError as error:
                logger.warning("the database does not answer, trying again: %s", error)
                if self.lease_lost.wait(_RETRY_SECONDS):
                    raise LeaseLostError from error

    def _run(self) -> None:
        while not self._stop.wait(self._settings.cancel_poll_seconds):
            try:
                state = self._check_or_renew()
            except Exception as error:  # noqa: BLE001 - the lease is lost only once it has expired
                logger.warning("lease: not renewed: %s", error)
                state = "lost" if self._expired() else "unknown"
            if state == "cancelling" and not self.cancel_requested.is_set():
                logger.info("cancel requested")
                self.cancel_requested.set()
            if state == "lost":
                self.lease_lost.set()
                return

    def _check_or_renew(self) -> str:
        begin = time.monotonic()
        if begin - self._renewed_at < self._settings.heartbeat_seconds:
            with self._store.read() as session:
                return jobs.check(session, self._lease)
        with self._store.write() as session:
            state = jobs.renew(
                session,
                self._lease,
                lease_for=timedelta(seconds=self._settings.lease_seconds),
                now=database_now(session),
            )
        self._renewed_at = begin
        return state

    def _expired(self) -> bool:
        return time.monotonic() - self._renewed_at > self._settings.lease_seconds
