"""Housekeeping in a thread of every worker. Concurrent janitors do not disturb each other."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from app.blobs.protocol import BlobStore
from app.broker import JobQueue
from app.settings import Settings
from app.store import idempotency, lost_jobs
from app.store.engine import Store, database_now
from app.store.retention import Ages, collect
from worker.folders import sweep_work_folders

logger = logging.getLogger(__name__)


class Janitor:
    """A thread that every `janitor_seconds` requeues lost jobs and deletes what is not needed."""

    def __init__(self, store: Store, blobs: BlobStore, queue: JobQueue, settings: Settings) -> None:
        self._store = store
        self._blobs = blobs
        self._queue = queue
        self._settings = settings
        self._stop = threading.Event()
        self._collect_at = 0.0  # by the monotonic clock
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        """Start the thread, which begins with a round."""
        self._thread.start()

    def stop(self) -> None:
        """Make the current round the last one; does not wait for its end."""
        self._stop.set()

    def round(self) -> None:
        """Run every chore once. A failure is logged and does not affect the others."""
        chores = (self.requeue, self.republish, self.collect, self.sweep, self.forget)
        for chore in chores:
            self._attempt(chore)

    def requeue(self) -> None:
        """End attempts whose lease expired: the job is queued again, fails or is cancelled."""
        with self._store.write() as session:
            now = database_now(session)
            lost_jobs.shorten_leases(
                session, now, longest=timedelta(seconds=self._settings.lease_seconds)
            )
            requeued = lost_jobs.requeue_expired(session, now)
        for job_id in requeued:
            logger.warning("%s: its worker fell silent, queued again", job_id)
            self._queue.publish(self._store, job_id)

    def republish(self) -> None:
        """Send the ids of jobs that have been queued for long: the broker may have lost them."""
        after = timedelta(seconds=self._settings.republish_after_seconds)
        with self._store.read() as session:
            now = database_now(session)
            queued = lost_jobs.unclaimed(session, older_than=timedelta(0), now=now)
            waiting = lost_jobs.unclaimed(session, older_than=after, now=now)
        # If the broker has an id for every queued job, nothing is lost and the workers are busy.
        # Without this check the queue would grow by all waiting jobs every minute. Stale ids may
        # hide a lost one, until a worker has drained them.
        if not waiting or self._queue.depth() >= len(queued):
            return
        for job_id in waiting:
            logger.warning("%s: waited long, sent again", job_id)
            if not self._queue.publish(self._store, job_id):
                return

    def collect(self) -> None:
        """Delete rows that are older than the settings allow, every `gc_seconds`."""
        ages = Ages.from_settings(self._settings)
        if not ages or time.monotonic() < self._collect_at:
            return
        self._collect_at = time.monotonic() + self._settings.gc_seconds
        deleted = collect(self._store, ages)
        if deleted.jobs or deleted.events or deleted.datasets:
            logger.info("deleted because of their age: %s", deleted)

    def sweep(self) -> None:
        """Delete unreferenced blobs, and the work folders of killed workers."""
        swept = self._blobs.sweep(older_than=timedelta(seconds=self._settings.blob_sweep_seconds))
        if swept:
            logger.info("%d unneeded blobs deleted", swept)
        sweep_work_folders(self._settings.data_dir / "work")

    def forget(self) -> None:
        """Delete expired idempotency keys."""
        with self._store.write() as session:
            idempotency.forget_expired(session)

    def _run(self) -> None:
        while True:
            self.round()
            if self._stop.wait(self._settings.janitor_seconds):
                return

    def _attempt(self, chore: Callable[[], None]) -> None:
        try:
            chore()
        except Exception:
            logger.exception("janitor: %s did not work, trying again later", chore.__name__)
