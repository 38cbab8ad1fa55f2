"""The unpacked bytes of a text file, in blocks of whole lines, without trusting any of them."""

import codecs
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import numpy as np
import pyarrow as pa

from td3engine._log.model import Limits, LogError

Compression = Literal["gzip", "zstd"]
MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
BLOCK_BYTES = 2**20
LINE_BYTES = 2**18
LINE_FEED = ord("\n")


class RowTooLongError(Exception):
    """A few rows took far more text than they could by themselves."""


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
        # Unpacks one chunk ahead, while the last one is being parsed.
        self._helper = ThreadPoolExecutor(1)
        self._coming = self._ahead()
        self.unpacked = 0
        # Set by who reads, to bound what may be taken before it looks again.
        self.readable_until = limits.max_unpacked_bytes
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
        self._helper.shutdown()
        self._source.close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """The next block.

        Raises:
            LogError: `too_large`, `bad_encoding`, `field_too_long` (a line without end) or
                `bad_format` (damaged compression).
            RowTooLongError: `readable_until` was passed.
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
            chunk = self._coming.result()
        except (pa.ArrowException, OSError) as error:
            problem = f"the {self._compression or 'plain'} data is damaged: {error}"
            raise LogError("bad_format", problem) from error
        self.unpacked += len(chunk)
        self._limits.check_unpacked(self.unpacked, self._packed)
        if self.unpacked > self.readable_until:
            raise RowTooLongError("it goes on for too many lines")
        self._check_text(chunk)
        self._check_line(chunk)
        self._lines += line_feeds(chunk)
        self._coming = self._ahead()
        return chunk

    def _ahead(self) -> Future[bytes]:
        try:
            return self._helper.submit(self._source.read, BLOCK_BYTES)
        except RuntimeError as error:
            raise MemoryError(str(error)) from error  # there is none for a thread

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


def compression_of(path: Path) -> Compression | None:
    """By the first bytes: the name may have outlived the compression, or the other way round."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


def line_feeds(chunk: bytes) -> int:
    """How many there are; several times as fast as `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(chunk, np.uint8) == LINE_FEED))
