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
    if not out.parent.is_dir():
        raise UnusableError(f"there is no folder {out.parent} to write {out.name} to")


@contextmanager
def whole_file(out: Path) -> Iterator[BinaryIO]:
    """A new file that gets its name once it is complete; no half of it stays behind."""
    refuse_unwritable(out)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            yield file
        with part.open("rb+") as written:  # the block may have closed its own
            os.fsync(written.fileno())
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
