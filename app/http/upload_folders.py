"""Folders of uploads that are being received: `data_dir/uploads/upload-...`."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class UploadFolders:
    """Creates and removes the folders below `root`."""

    root: Path

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the root while the service runs; removes what a killed process left there.

        Processes that use the same root share a lock. Only the first of them can get it
        exclusively, and then everything in the root is stale.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # another process serves from here, so the folders are in use
            else:
                for stale in self.root.iterdir():
                    shutil.rmtree(stale)
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def one(self) -> Iterator[Path]:
        """A folder for one upload, removed when the request ends."""
        with tempfile.TemporaryDirectory(dir=self.root, prefix="upload-") as folder:
            yield Path(folder)
