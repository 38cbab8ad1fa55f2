"""What a module of this folder declares of a file format that it reads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from td3engine.data.types import ColumnNames, Interactions, Limits


class Reader(Protocol):
    """Reads a file of one format.

    Args:
        path: the file, which is not empty.
        columns: which columns hold what.
        limits: what the file may cost.
        scratch: folder for temporary files of a long log; None is the system's.

    Raises:
        LogError: the file cannot be read or used.
        MemoryError: there is not enough of it.
    """

    def __call__(
        self, path: Path, columns: ColumnNames, limits: Limits, scratch: Path | None
    ) -> Interactions: ...


@dataclass(frozen=True)
class Format:
    """A file format of logs.

    Attributes:
        name: for `read_log(format=...)`.
        suffixes: of file names, in lower case, without a suffix of compression.
        read: the reader.
        magic: first bytes of every file of the format; they go before the file's name. Empty: the
            format is text, which may be compressed.
        looks_like: guesses from the first unpacked bytes, where a name says nothing.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Reader
    magic: bytes = b""
    looks_like: Callable[[bytes], bool] = lambda _: False
