"""What a worker waits for before it takes its first job."""

import logging
import os
import sys
import time

from app.blobs.protocol import BlobStore
from app.deadlines import DeadlineThread
from app.readiness import OK, storage_checks
from app.store.engine import Store

EXIT_STORES = os.EX_TEMPFAIL  # the stores cannot be used: starting again may help
_CHECK_SECONDS = 10.0  # a check that takes longer counts as failed
_PAUSE_SECONDS = 1.0

logger = logging.getLogger(__name__)


def wait_for_stores(store: Store, blobs: BlobStore, seconds: float) -> None:
    """Return once the database answers, has the tables of this release, and the blobs answer.

    A worker without them would take ids from the broker and could do nothing about their jobs.

    Args:
        store: the database.
        blobs: the blob store.
        seconds: how long to wait.

    Raises:
        SystemExit: with `EXIT_STORES`, after a line in the log, if that is not so in time.
    """
    deadline = time.monotonic() + seconds
    thread = DeadlineThread("stores")
    said = ""
    while wrong := _complaint(store, blobs, thread):
        if time.monotonic() >= deadline:
            where = store.engine.url.render_as_string(hide_password=True)
            logger.error("no job is taken, this worker ends: %s (%s)", wrong, where)
            sys.exit(EXIT_STORES)
        if wrong != said:
            logger.warning("no job is taken yet: %s", wrong)
            said = wrong
        time.sleep(_PAUSE_SECONDS)


def _complaint(store: Store, blobs: BlobStore, thread: DeadlineThread) -> str:
    """What is wrong first; empty if nothing is."""
    for name, check in storage_checks(store, blobs).items():
        try:
            result = thread.call(check, _CHECK_SECONDS)
        except TimeoutError as error:
            result = str(error)
        if result != OK:
            return f"{name}: {result}"
    return ""
