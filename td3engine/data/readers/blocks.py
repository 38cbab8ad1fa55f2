"""The unpacked bytes of a text file, in blocks of whole lines, without trusting any of them."""

import codecs
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar

import numpy as np
import pyarrow as pa

from td3engine.data.types import Limits, LogError

Compression = Literal["gzip", "zstd"]
MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
BLOCK_BYTES = 2**20
LINE_BYTES = 2**18
LINE_FEED = ord("\n")

T = TypeVar("T")


class CheckedBlocks:
    """Blocks of about `BLOCK_BYTES` that end with a line feed (the last need not), refused as soon
    as a limit or the encoding is broken.

    Memory stays flat: a bomb is noticed with the block that goes over a limit, not at its end.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._limits = limits
        self._packed = path.stat().st_size
        self._compression = compression_of(path)
        self._source: Any = (
            pa.CompressedInputStream(str(path), self._compression)
            if self._compression
            else path.open("rb")
        )
        self._unpacked = 0
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
        except (pa.ArrowException, OSError) as error:
            problem = f"the {self._compression or 'plain'} data is damaged: {error}"
            raise LogError("bad_format", problem) from error
        self._unpacked += len(chunk)
        self._limits.check_unpacked(self._unpacked, self._packed)
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
        start = file.read(4)
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


def line_feeds(chunk: bytes) -> int:
    """How many there are; several times as fast as `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(chunk, np.uint8) == LINE_FEED))
