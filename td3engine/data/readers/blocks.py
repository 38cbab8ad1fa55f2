"""The unpacked bytes of a text file, in blocks of whole lines, without trusting any of them."""

import bz2
import codecs
import lzma
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar

import numpy as np
import pyarrow as pa

from td3engine.data.types import Limits, LogError

Compression = Literal["gzip", "zstd", "bzip2", "xz"]
MAGIC: dict[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
}
# What unpacked bytes may begin with that is no text, and what it is.
_NO_TEXT: dict[bytes, str] = {
    **{magic: f"packed twice ({name} inside)" for magic, name in MAGIC.items()},
    b"PAR1": "packed Parquet: Parquet packs its columns itself, so unpack the file",
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or save it as CSV",
    b"ARROW1": "an Arrow IPC (Feather) file: read it with pyarrow and pass the table, or write "
    "Parquet",
    b"ORC": "an ORC file: write Parquet in its place",
    b"Obj\x01": "an Avro file: write Parquet in its place",
    b"SQLite format 3\x00": "an SQLite database: export the table as CSV",
    b"\x89HDF": "an HDF5 file: read it with pandas and pass the DataFrame, or write Parquet",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
}
TAR_MAGIC, TAR_AT = b"ustar", 257
XZ_MEMORY_BYTES = 2**28
BLOCK_BYTES = 2**20
LINE_BYTES = 2**18
LINE_FEED = ord("\n")

T = TypeVar("T")


class CheckedBlocks:
    """Blocks of about `BLOCK_BYTES` that end with a line feed (the last need not), refused as soon
    as a limit or the encoding is broken.

    Memory stays flat: a bomb is noticed with the block that goes over a limit, not at its end.

    Attributes:
        unpacked: bytes so far.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._limits = limits
        self._packed = path.stat().st_size
        self._compression = compression_of(path)
        self._source = _opened(path, self._compression)
        self.unpacked = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._lines = 0
        self._open = b""  # the start of a line whose end has not been read yet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._source.close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """The next block.

        Raises:
            LogError: `too_large`, `bad_encoding`, `field_too_long` (a line without end) or
                `bad_format` (damaged compression).
        """
        while chunk := self._read():
            end = chunk.rfind(b"\n") + 1
            block, rest = self._open + chunk[:end], chunk[end:]
            if end:
                self._open = rest
                return block
            self._open += rest
        block, self._open = self._open, b""
        if not block:
            raise StopIteration
        return block

    def _read(self) -> bytes:
        try:
            chunk: bytes = self._source.read(BLOCK_BYTES)
        except (pa.ArrowException, OSError, EOFError, lzma.LZMAError) as error:
            problem = f"the {self._compression or 'plain'} data is damaged: {error}"
            raise LogError("bad_format", problem) from error
        if not self.unpacked:
            _refuse_other_files(chunk)
        self.unpacked += len(chunk)
        self._limits.check_unpacked(self.unpacked, self._packed)
        self._check_text(chunk)
        self._check_line(chunk)
        self._lines += line_feeds(chunk)
        return chunk

    def _check_text(self, chunk: bytes) -> None:
        pending = len(self._decoder.getstate()[0])
        try:
            self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            where = max(0, error.start - pending)
            self._refuse_encoding(chunk[:where], f"is not UTF-8 text ({error.reason})")
        nul = chunk.find(b"\0")
        if nul >= 0:
            self._refuse_encoding(chunk[:nul], "holds a NUL byte: this is not UTF-8 text")

    def _refuse_encoding(self, before: bytes, problem: str) -> NoReturn:
        line = self._lines + before.count(b"\n") + 1
        raise LogError("bad_encoding", f"line {line} {problem}", line=line)

    def _check_line(self, chunk: bytes) -> None:
        """Refuses a line so long that it was not meant as one (those within a chunk may pass)."""
        first = chunk.find(b"\n")
        if len(self._open) + (len(chunk) if first < 0 else first) > LINE_BYTES:
            line = self._lines + 1
            problem = f"line {line} is longer than {LINE_BYTES:,} bytes"
            raise LogError("field_too_long", problem, line=line)


class _Unpacked:
    """The unpacked bytes of a bzip2 or xz file, which may be several streams one after the other.

    Python's own files leave out what follows the last stream; here it is damage.
    """

    def __init__(self, path: Path, make: Callable[[], Any]) -> None:
        self._file, self._make, self._stream = path.open("rb"), make, make()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        while True:
            fresh = b""
            if self._stream.eof:
                fresh = self._stream.unused_data or self._file.read(BLOCK_BYTES)
                if not fresh:
                    return b""
                self._stream = self._make()
            elif self._stream.needs_input:
                fresh = self._file.read(BLOCK_BYTES)
                if not fresh:
                    raise EOFError("it ends too early")
            unpacked: bytes = self._stream.decompress(fresh, size)
            if unpacked:
                return unpacked

    def close(self) -> None:
        self._file.close()


def _opened(path: Path, compression: Compression | None) -> Any:
    """Something to read unpacked bytes from."""
    match compression:
        case None:
            return path.open("rb")
        case "bzip2":
            return _Unpacked(path, bz2.BZ2Decompressor)
        case "xz":
            limited = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, XZ_MEMORY_BYTES)
            return _Unpacked(path, limited)
        case _:
            return pa.CompressedInputStream(str(path), compression)


def _refuse_other_files(start: bytes) -> None:
    """Refuses what is no text, by its first bytes.

    Raises:
        LogError: `bad_format`, with what it is.
    """
    kind = next((kind for magic, kind in _NO_TEXT.items() if start.startswith(magic)), None)
    if start[TAR_AT : TAR_AT + len(TAR_MAGIC)] == TAR_MAGIC:
        kind = "a tar archive: unpack it, and give the file or its folder"
    if kind:
        raise LogError("bad_format", f"the file is {kind}")


def made_ahead(values: Iterator[T]) -> Generator[T, None, None]:
    """The same values, each made in a thread while the one before it is being used.

    To be closed before what `values` read from is.
    """
    with ThreadPoolExecutor(1) as helper:

        def ahead() -> Future[T | None]:
            try:
                return helper.submit(next, values, None)
            except RuntimeError as error:
                raise MemoryError(str(error)) from error  # there is none for a thread

        coming = ahead()
        while (value := coming.result()) is not None:
            coming = ahead()
            yield value


def compression_of(path: Path) -> Compression | None:
    """By the first bytes: the name may have outlived the compression, or the other way round."""
    with path.open("rb") as file:
        start = file.read(max(map(len, MAGIC)))
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


def line_feeds(chunk: bytes) -> int:
    """How many there are; several times as fast as `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(chunk, np.uint8) == LINE_FEED))
