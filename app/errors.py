"""Errors that every room of the service shares: outages of storage, and a full disk."""

import errno

# No space at all, none left for this user, or none left in one file.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageUnavailableError(Exception):
    """The database or the blob store does not answer, is busy, or is read-only for now: retry.

    Every store raises this and no error of its driver, so retries (worker) and 503 answers (API)
    know this type only.

    Args:
        detail: for the log; it may hold addresses and user names.
        kind: class name of the driver's error. This is all that clients may see.
    """

    def __init__(self, detail: str, *, kind: str = "") -> None:
        super().__init__(detail)
        self.kind = kind or type(self).__name__


def kind_of(error: BaseException) -> str:
    """The class name of a storage error: safe to show to clients, unlike its text."""
    return error.kind if isinstance(error, StorageUnavailableError) else type(error).__name__
