"""Housekeeping that every worker does, also while it is busy; harmless in many workers at once."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from app.admin.gc import ages_of
from app.blobs import sql as blobs
from app.broker import JobQueue
from app.settings import Settings
from app.store import idempotency, jobs
from app.store.engine import Store, database_now
from app.store.retention import collect
from worker.folders import sweep_work_folders

logger = logging.getLogger(__name__)


class Janitor:
    """A thread that every `janitor_seconds` looks for what was lost or is not needed any more."""

    def __init__(self, store: Store, queue: JobQueue, settings: Settings) -> None:
        self._store = store
        self._queue = queue
        self._settings = settings
        self._over = threading.Event()
        self._collect_at = 0.0  # by the monotonic clock
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        """Begin, with a first round at once."""
        self._thread.start()

    def stop(self) -> None:
        """Let the round that is under way be the last one; does not wait for it."""
        self._over.set()

    def round(self) -> None:
        """Every chore once. One that fails is logged and hinders no other."""
        chores = (self.requeue, self.republish, self.collect, self.sweep, self.forget)
        for chore in chores:
            self._attempt(chore)

    def requeue(self) -> None:
        """Jobs whose worker fell silent go back to the queue (or fail, or are cancelled)."""
        with self._store.write() as session:
            now = database_now(session)
            jobs.shorten_leases(
                session, now, longest=timedelta(seconds=self._settings.lease_seconds)
            )
            requeued = jobs.requeue_expired(session, now)
        for job_id in requeued:
            logger.warning("%s: its worker fell silent, queued again", job_id)
            self._queue.publish(self._store, job_id)

    def republish(self) -> None:
        """Queued jobs that nobody took are sent again: their id may have been lost on the way."""
        after = timedelta(seconds=self._settings.republish_after_seconds)
        with self._store.read() as session:
            now = database_now(session)
            queued = jobs.unclaimed(session, older_than=timedelta(0), now=now)
            waiting = jobs.unclaimed(session, older_than=after, now=now)
        # As many ids at the broker as jobs are queued (those just sent too): the workers are just
        # busy. Without this the queue would grow by every waiting job once a minute. Ids of jobs
        # that wait no longer may hide a lost one, but only until a worker has drained them.
        if not waiting or self._queue.depth() >= len(queued):
            return
        for job_id in waiting:
            logger.warning("%s: waited long, sent again", job_id)
            if not self._queue.publish(self._store, job_id):
                return

    def collect(self) -> None:
        """What is older than the settings say goes, every `gc_seconds`."""
        ages = ages_of(self._settings)
        if not ages or time.monotonic() < self._collect_at:
            return
        self._collect_at = time.monotonic() + self._settings.gc_seconds
        gone = collect(self._store, ages)
        if gone.jobs or gone.events or gone.datasets:
            logger.info("deleted because of their age: %s", gone)

    def sweep(self) -> None:
        """Bytes that nothing refers to, and folders of workers that were killed, are removed."""
        swept = blobs.sweep(
            self._store, older_than=timedelta(seconds=self._settings.blob_sweep_seconds)
        )
        if swept:
            logger.info("%d unneeded blobs deleted", swept)
        sweep_work_folders(self._settings.data_dir / "work")

    def forget(self) -> None:
        """Idempotency keys that were kept for long enough are deleted."""
        with self._store.write() as session:
            idempotency.forget_expired(session)

    def _run(self) -> None:
        while True:
            self.round()
            if self._over.wait(self._settings.janitor_seconds):
                return

    def _attempt(self, chore: Callable[[], None]) -> None:
        try:
            chore()
        except Exception:
            logger.exception("janitor: %s did not work, trying again later", chore.__name__)
