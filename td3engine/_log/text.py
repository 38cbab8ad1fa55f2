"""Reading CSV, TSV and RecBole `.inter`, plain or compressed, without trusting a byte of it.

Rows are cut by Python's csv module. pyarrow's parser is faster, but it reads ahead in threads that
abort or hang the process when memory runs out, which is just what a hostile file is made to do; and
it does not know the line of a faulty row.
"""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import pyarrow as pa

from td3engine._log.columns import FoundColumns, find_columns
from td3engine._log.model import ColumnNames, Interactions, Limits, LogError
from td3engine._log.values import BadRowError, Collector

Compression = Literal["gzip", "zstd"]
MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
SNIFFED_DELIMITERS = "\t,;|"
BLOCK_BYTES = 2**20
LINE_BYTES = 2**18
# Rows taken at once. Few, so that what a hostile file can make of them in memory is little, and the
# garbage collector does not see a million short-lived lists grow old.
SLICE_ROWS = 256
BATCH_ROWS = 2**16


class RowTooLongError(Exception):
    """A few rows took far more text than they could by themselves."""


class CheckedBytes(io.RawIOBase):
    """The unpacked bytes of a text file, refused as soon as a limit or the encoding is broken.

    Memory stays flat: a bomb is noticed with the block that goes over a limit, not at its end.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._packed = path.stat().st_size
        self._compression = compression_of(path)
        self._source: Any = (
            pa.CompressedInputStream(str(path), self._compression)
            if self._compression
            else path.open("rb")
        )
        self.unpacked = 0
        # Set by who reads, to bound what may be taken before it looks again.
        self.readable_until = limits.max_unpacked_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._lines = 0
        self._line_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer`.

        Raises:
            LogError: `too_large`, `bad_encoding`, `field_too_long` (a line without end) or
                `bad_format` (damaged compression).
            RowTooLongError: `readable_until` was passed.
        """
        try:
            chunk: bytes = self._source.read(len(buffer))
        except (pa.ArrowException, OSError) as error:
            problem = f"the {self._compression or 'plain'} data is damaged: {error}"
            raise LogError("bad_format", problem) from error
        self.unpacked += len(chunk)
        self._limits.check_unpacked(self.unpacked, self._packed)
        if self.unpacked > self.readable_until:
            raise RowTooLongError("it goes on for too many lines")
        self._check_text(chunk)
        self._check_line(chunk)
        self._lines += chunk.count(b"\n")
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self._source.close()
        super().close()

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
        """Refuses a line so long that it was not meant as one (those within a block may pass)."""
        first, last = chunk.find(b"\n"), chunk.rfind(b"\n")
        if self._line_bytes + (len(chunk) if first < 0 else first) > LINE_BYTES:
            line = self._lines + 1
            problem = f"line {line} is longer than {LINE_BYTES:,} bytes"
            raise LogError("field_too_long", problem, line=line)
        self._line_bytes = len(chunk) - last - 1 + (self._line_bytes if last < 0 else 0)


# Rows of fields, and the line that each starts on.
Slice: TypeAlias = tuple[list[list[str]], Sequence[int]]


@dataclass
class Batch:
    """Rows of one file: the values of the three columns, and the line that each row starts on."""

    columns: tuple[list[str], list[str], list[str]] = field(default_factory=lambda: ([], [], []))
    lines: list[Sequence[int]] = field(default_factory=list)

    def line_of(self, row: int) -> int:
        return next(islice(chain.from_iterable(self.lines), row, None))


def compression_of(path: Path) -> Compression | None:
    """By the first bytes: the name may have outlived the compression, or the other way round."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


def read_text(
    path: Path, delimiter: str | None, columns: ColumnNames, limits: Limits
) -> Interactions:
    """A delimited text file with a header line; a delimiter that the header lacks is sniffed.

    Raises:
        LogError: any of its codes but `too_little_data`, with the line where there is one.
    """
    with closing(CheckedBytes(path, limits)) as checked:
        # newline="": the csv module wants the ends of lines as they are.
        blocks = io.BufferedReader(checked, BLOCK_BYTES)
        stream = io.TextIOWrapper(blocks, encoding="utf-8", newline="")
        header, delimiter = _read_header(stream, delimiter)
        found = find_columns(header, columns, limits)
        collector = Collector(limits)
        rows = _slices(checked, stream, delimiter)
        for batch in _batches(rows, len(header), found):
            try:
                collector.add(*(pa.array(column, pa.string()) for column in batch.columns))
            except BadRowError as error:
                line = batch.line_of(error.row - collector.rows)
                name = found.names[error.role]
                problem = f"line {line}, column {name!r} {error.problem}"
                raise LogError(error.code, problem, line=line, column=name) from error
        return collector.finish()


def _read_header(stream: io.TextIOWrapper, delimiter: str | None) -> tuple[list[str], str]:
    line = stream.readline()
    if not line:
        raise LogError("empty_file", "the file is empty")
    if line.endswith("\r"):
        raise LogError("bad_format", "lines end in a bare carriage return; use line feeds", line=1)
    text = line.removeprefix("\ufeff").rstrip("\r\n")
    if delimiter is None or delimiter not in text:
        delimiter = max(SNIFFED_DELIMITERS, key=text.count)
    return next(csv.reader([text], delimiter=delimiter), []), delimiter


def _batches(slices: Iterator[Slice], width: int, found: FoundColumns) -> Iterator[Batch]:
    """Gathers the wanted columns of rows that all have `width` fields. The last may be empty."""
    batch = Batch()
    for rows, lines in slices:
        if set(map(len, rows)) - {width}:
            _refuse_ragged(rows, lines, width)
        batch.lines.append(lines)
        for position, column in zip(found.positions, batch.columns, strict=True):
            column.extend([row[position] for row in rows])
        if len(batch.columns[0]) >= BATCH_ROWS:
            yield batch
            batch = Batch()
    yield batch


def _refuse_ragged(rows: list[list[str]], lines: Sequence[int], width: int) -> NoReturn:
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            problem = f"line {line} has {len(row):,} fields; the header has {width:,}"
            raise LogError("ragged_row", problem, line=line)
    raise AssertionError("unreachable: called for rows of which one is ragged")


def _slices(checked: CheckedBytes, stream: io.TextIOWrapper, delimiter: str) -> Iterator[Slice]:
    """Rows below the header, a few at a time, with the line each starts on; no blank lines."""
    # Process-wide, but only ever set to this: a quote that is never closed ends here.
    csv.field_size_limit(LINE_BYTES)
    reader = csv.reader(stream, delimiter=delimiter)
    while True:
        # Quoted line feeds let a single row go on for ever, each of its lines being short.
        checked.readable_until = checked.unpacked + SLICE_ROWS * LINE_BYTES + BLOCK_BYTES
        start = reader.line_num + 2
        rows: list[list[str]] = []
        try:
            # Unlike list(...), extend keeps the rows before an error: they tell its line.
            rows.extend(islice(reader, SLICE_ROWS))
        except (csv.Error, RowTooLongError) as error:
            line = _lines_of([*rows, []], start)[-1]
            problem = f"the row on line {line} cannot be parsed: {error} (is a quote never closed?)"
            raise LogError("field_too_long", problem, line=line) from error
        if not rows:
            return
        end = reader.line_num + 2
        plain = end - start == len(rows)
        lines = range(start, end) if plain else _lines_of(rows, start)
        if not all(rows):
            rows, lines = [row for row in rows if row], list(compress(lines, rows))
        yield rows, lines


def _lines_of(rows: list[list[str]], start: int) -> list[int]:
    """The line each row starts on, given the first one's, where quoted fields span lines."""
    lines = []
    for row in rows:
        lines.append(start)
        start += 1 + sum(value.count("\n") for value in row)
    return lines
