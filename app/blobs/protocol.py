"""What a blob store is: bytes named by their sha256."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Protocol


class BlobError(Exception):
    """A blob is missing or damaged, or could not be stored. Trying again does not help."""


class StoredBlob(NamedTuple):
    """A blob that is stored completely."""

    sha256: str
    bytes: int


class BlobStore(Protocol):
    """Stores datasets, checkpoints and artifacts. Every implementation promises:

    - Content addressing: a blob's name is the sha256 of its bytes. Equal bytes are one blob.
    - Atomicity: readers see a blob completely or not at all. An interrupted put leaves nothing
      visible; its remains are swept.
    - Transactions: `put_file` commits on its own. Once it returns, the table `blobs` has a complete
      row (app/blobs/rows.py), so the caller's next transaction can refer to it by a foreign key.
    - Protection: a put makes the blob young, and `sweep` spares young blobs. So the caller has time
      to refer to it.
    - Sharing: one object may be used by all threads, and one store by many processes and hosts,
      also for the same bytes at the same time.
    - Errors: `BlobError` for what is wrong with a blob, `StorageUnavailableError` where the store
      does not answer, `OSError` for local files only. Every call may be repeated after an error.
    """

    def check(self) -> None:
        """Check that the store answers and can be read.

        Raises:
            StorageUnavailableError: it does not.
        """
        ...

    def put_file(self, path: Path) -> StoredBlob:
        """Store a file's bytes, unless they are stored already. Refer to the blob soon.

        Raises:
            BlobError: the file changed meanwhile, or the blob was swept before it was complete.
            StorageUnavailableError: the store does not answer.
            OSError: the file cannot be read.
        """
        ...

    def open_reader(
        self, sha256: str, *, start: int = 0, stop: int | None = None
    ) -> Iterator[bytes]:
        """The bytes from `start` to before `stop` (None: the end), in pieces of bounded size.

        Whether the blob exists is checked before this returns. Between two pieces no connection is
        held, however slow the reader is.

        Raises:
            BlobError: there is no complete blob of this name; while reading: it was swept.
            StorageUnavailableError: the store does not answer.
        """
        ...

    def sweep(self, *, older_than: timedelta) -> int:
        """Delete blobs that no row refers to and that were last put before `older_than`.

        Returns:
            How many were deleted.

        Raises:
            StorageUnavailableError: the store does not answer.
        """
        ...


def get_to_file(blobs: BlobStore, sha256: str, path: Path) -> None:
    """Write a blob to `path`, which appears complete and verified or not at all.

    Raises:
        BlobError: it is missing, or its bytes do not have this sha256.
        StorageUnavailableError: the store does not answer.
        OSError: the file cannot be written.
    """
    chunks = blobs.open_reader(sha256)
    digest = hashlib.sha256()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".blob-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise BlobError(f"blob {sha256} is damaged: its bytes hash to {digest.hexdigest()}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
