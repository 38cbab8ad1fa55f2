"""Files that are written whole or not at all. Imports no torch."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from uuid import uuid4

from td3engine.errors import OutputExistsError, UnusableError


def refuse_unwritable(out: Path) -> None:
    """Check before a long computation that its file can be written.

    Raises:
        OutputExistsError: there is such a file already.
        UnusableError: there is no such folder.
    """
    if out.exists():
        raise OutputExistsError(f"{out} exists already; take another name")
    _refuse_absent_folder(out)


def _refuse_absent_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise UnusableError(f"there is no folder {path.parent} to write {path.name} to")


@contextmanager
def atomic_file(path: Path, part: Path | None = None) -> Iterator[BufferedRandom]:
    """A binary file, open for writing and reading, that is renamed to `path` once it is complete.

    It is synced before it is renamed, and replaces a file of that name. An exception in the block
    removes it and leaves `path` as it was.

    Args:
        path: its name in the end.
        part: its name until then, in the same folder; None: a hidden one of its own. A process that
            is killed leaves this file behind. A fixed name lets the next process overwrite it, and
            is for a path that one process writes at a time.

    Raises:
        UnusableError: there is no such folder.
    """
    _refuse_absent_folder(path)
    part = part or path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with part.open("w+b") as file:
            yield file
        with part.open("rb+") as complete:  # the block may have closed `file`
            os.fsync(complete.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_file(path: Path) -> Iterator[BufferedRandom]:
    """`atomic_file` for a path that must not exist yet; raises what `refuse_unwritable` does."""
    refuse_unwritable(path)
    with atomic_file(path) as file:
        yield file


def ordered_header(data: bytes) -> bytes:
    """The bytes of a safetensors file with its header's keys in order.

    safetensors writes metadata in a random order, and the same content shall give the same bytes.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors are aligned
    return len(header).to_bytes(8, "little") + header + data[end:]
