"""Files that are written whole or not at all. Imports no torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from td3engine.errors import OutputExistsError, UnusableError


def refuse_unwritable(out: Path) -> None:
    """Say before a long computation that its file cannot be written.

    Raises:
        OutputExistsError: there is such a file already.
        UnusableError: there is no such folder.
    """
    if out.exists():
        raise OutputExistsError(f"{out} exists already; take another name")
    _refuse_absent_folder(out)


def _refuse_absent_folder(out: Path) -> None:
    if not out.parent.is_dir():
        raise UnusableError(f"there is no folder {out.parent} to write {out.name} to")


@contextmanager
def whole_file(out: Path, *, replace: bool = False) -> Iterator[BinaryIO]:
    """A new file that gets its name once it is complete; no half of it stays behind.

    Args:
        out: the file.
        replace: whether a file of that name may be there; it stays until the new one is complete.

    Raises:
        OutputExistsError: there is such a file already, and it is not to be replaced.
        UnusableError: there is no such folder.
    """
    if replace:
        _refuse_absent_folder(out)
    else:
        refuse_unwritable(out)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    file = part.open("xb")  # where another thread writes the same file, that one's part stays
    try:
        with file:
            yield file
        with part.open("rb+") as written:  # the block may have closed its own
            os.fsync(written.fileno())
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
