"""Work folders of attempts. Each has a file lock, which ends with its process."""

import fcntl
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = ".lock"
_YOUNG_SECONDS = 60  # the process of a younger folder may be about to lock it

logger = logging.getLogger(__name__)


@contextmanager
def work_folder(parent: Path, job_id: str) -> Iterator[Path]:
    """A new folder in `parent`, removed at the end of the block.

    Raises:
        OSError: it cannot be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{job_id}-")).resolve()
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, onerror=_log_failure)


def sweep_work_folders(parent: Path) -> None:
    """Remove the folders in `parent` whose worker was killed."""
    for folder in parent.glob("job_*-*"):
        try:
            if time.time() - folder.stat().st_mtime < _YOUNG_SECONDS:
                continue
            with (folder / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                logger.info("removing %s, which a killed worker left", folder)
                shutil.rmtree(folder, onerror=_log_failure)
        except (BlockingIOError, FileNotFoundError):
            continue  # it is in use, or another worker removed it


def _log_failure(_function: object, path: str, error: object) -> None:
    logger.warning("could not remove %s: %s", path, error)
