"""What a module of this folder declares of a file format that it reads."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from td3engine.data.readers.batches import Batch
from td3engine.data.readers.columns import ColumnRoles
from td3engine.data.types import ColumnNames, Dialect, Limits


@dataclass
class Seen:
    """What readers tell of the file that they read.

    Attributes:
        roles: of its columns.
        delimiter, header: of a text file.
        unpacked: its bytes when unpacked, once it has been read.
    """

    roles: ColumnRoles | None = None
    delimiter: str | None = None
    header: bool | None = None
    unpacked: int = 0


@dataclass(frozen=True)
class FileSource:
    """A file, and how it is to be read.

    Attributes:
        path: the file, which is not empty.
        columns: which columns hold what.
        dialect: how a text file writes a log.
        limits: what the file may cost.
        seen: filled in by the reader, but for `unpacked` before its first batch.
    """

    path: Path
    columns: ColumnNames = field(default_factory=ColumnNames)
    dialect: Dialect = field(default_factory=Dialect)
    limits: Limits = field(default_factory=Limits)
    seen: Seen = field(default_factory=Seen)


class Reader(Protocol):
    """Reads a file of one format; the batches are to be closed if not all are taken.

    Raises:
        LogError: the file cannot be read or used.
        MemoryError: there is not enough of it.
    """

    def __call__(self, source: FileSource) -> Generator[Batch, None, None]: ...


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
