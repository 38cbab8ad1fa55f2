"""Rows out of blocks of text: all at once where every line is plainly a row, else by csv's rules.

Python's csv module defines what a row is. A block is plain if it has no quotes, no unusual line
ends, and as many delimiters in every line as the header. numpy cuts plain blocks at their
delimiters, thirty times as fast as csv. Both ways give the same rows; every other block goes to
csv.

pyarrow's own CSV parser is not used, for two reasons. Its threads read ahead, and abort or hang the
process when memory runs out, which a hostile file can bring about. It does not report the line of a
fault.
"""

import csv
import io
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, compress, islice
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from td3engine.data.readers.batches import Batch, Columns
from td3engine.data.readers.blocks import BLOCK_BYTES, LINE_BYTES, LINE_FEED, made_ahead
from td3engine.data.readers.columns import ColumnRoles
from td3engine.data.types import LogError

if TYPE_CHECKING:
    import _csv

# Rows taken at once. Few, so that what a hostile file can make of them in memory is little, and the
# garbage collector does not see a million short-lived lists grow old.
SLICE_ROWS = 256
BATCH_ROWS = 2**16

# Rows of fields, and the line that each starts on.
Slice: TypeAlias = tuple[list[list[str]], Sequence[int]]


class _RowTooLongError(Exception):
    """A few rows took far more text than they could by themselves."""


@dataclass(frozen=True)
class Layout:
    """How a file writes its rows.

    Attributes:
        delimiter: one character.
        width: fields a row.
        roles: where user, item and time are.
        quoting: whether quotes mean anything.
    """

    delimiter: str
    width: int
    roles: ColumnRoles
    quoting: bool = True


def delimited_batches(
    blocks: Iterator[bytes], line: int, layout: Layout, *, quick: bool = True
) -> Generator[Batch, None, None]:
    """The rows of all blocks. A thread makes a block and cuts it while the last one is used.

    Args:
        blocks: of whole lines; not to be used by others until the batches are closed.
        line: where the first one starts, from 1.
        layout: of the file.
        quick: False takes every row by csv's rules.

    Raises:
        LogError: `ragged_row`, `field_too_long` (a quote that is never closed), or what `blocks`
            refuse with.
    """
    cut = ((block, plain_columns(block, layout) if quick else None) for block in blocks if block)
    with closing(made_ahead(cut)) as pieces:
        for block, columns in pieces:
            if columns is None:
                rest = (further for further, _ in pieces)
                exact = _Exact(chain([block], rest), line, layout)
                yield from exact.batches()
                line = exact.line
                continue
            for start in range(0, len(columns[0]), BATCH_ROWS):
                some = tuple(column.slice(start, BATCH_ROWS) for column in columns)
                places = [range(line, line + len(some[0]))]
                yield Batch(some, places, layout.roles.names)
                line += len(some[0])


def csv_reader(lines: Iterable[str], delimiter: str, *, quoting: bool) -> "_csv.Reader":
    """csv's own reader, which also has `line_num`."""
    rule: Literal[0, 3] = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=delimiter, quoting=rule)


def plain_columns(block: bytes, layout: Layout) -> Columns | None:
    """The needed columns of a block in which every line is plainly a row; None where one is not."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if (layout.quoting and b'"' in block) or b"\r" in block:
        return None
    if not block.endswith(b"\n"):
        block += b"\n"
    characters = np.frombuffer(block, np.uint8)
    line_ends = characters == LINE_FEED
    field_ends = line_ends | (characters == ord(layout.delimiter))
    ends_F = np.flatnonzero(field_ends).astype(np.int32)
    if len(ends_F) != layout.width * np.count_nonzero(line_ends):
        return None
    ends_RW = ends_F.reshape(-1, layout.width)
    line_ends_R = ends_RW[:, -1]
    if not line_ends[line_ends_R].all():
        return None
    if np.diff(line_ends_R, prepend=-1).max() > LINE_BYTES:
        return None
    buffer = pa.py_buffer(block)
    return tuple(_column(buffer, ends_RW, position) for position in layout.roles.positions)


def _column(buffer: Any, ends_RW: NDArray[np.int32], position: int) -> Any:
    """One column as an array of text, given where each field of each row ends."""
    rows = len(ends_RW)
    # Text that is field and what lies before it by turns; then every second one.
    edges = np.zeros(2 * rows + 1, np.int32)
    edges[2::2] = ends_RW[:, position]
    if position:
        edges[1::2] = ends_RW[:, position - 1] + 1
    else:
        edges[3::2] = ends_RW[:-1, -1] + 1
    pieces = pa.StringArray.from_buffers(2 * rows, pa.py_buffer(edges), buffer)
    return pieces.take(pa.array(np.arange(1, 2 * rows, 2, dtype=np.int32)))


@dataclass
class _Exact:
    """Rows by csv's rules, up to the end of the first block that ends with a row.

    Attributes:
        line: where the next row starts.
    """

    blocks: Iterator[bytes]
    line: int
    layout: Layout
    _lines_given: int = field(default=0, init=False)
    _bytes_given: int = field(default=0, init=False)
    _bytes_allowed: int = field(default=0, init=False)

    def batches(self) -> Iterator[Batch]:
        columns: list[list[str]] = [[] for _ in self.layout.roles.positions]
        seen: list[Sequence[int]] = []
        for rows, lines in self._slices():
            if set(map(len, rows)) - {self.layout.width}:
                _refuse_ragged(rows, lines, self.layout.width)
            seen.append(lines)
            for position, column in zip(self.layout.roles.positions, columns, strict=True):
                column.extend([row[position] for row in rows])
            if len(columns[0]) >= BATCH_ROWS:
                yield self._batch(columns, seen)
                columns, seen = [[] for _ in columns], []
        yield self._batch(columns, seen)

    def _batch(self, columns: list[list[str]], lines: list[Sequence[int]]) -> Batch:
        arrays = tuple(pa.array(column, pa.string()) for column in columns)
        return Batch(arrays, lines, self.layout.roles.names)

    def _slices(self) -> Iterator[Slice]:
        """A few rows at a time, with the line each starts on; no blank lines."""
        # Process-wide, but only ever set to this: a quote that is never closed ends here.
        csv.field_size_limit(LINE_BYTES)
        reader = csv_reader(self._text(), self.layout.delimiter, quoting=self.layout.quoting)
        before = self.line
        while True:
            # Quoted line feeds let a single row go on for ever, each of its lines being short.
            self._bytes_allowed = self._bytes_given + SLICE_ROWS * LINE_BYTES + BLOCK_BYTES
            rows: list[list[str]] = []
            try:
                for row in islice(reader, SLICE_ROWS):
                    rows.append(row)
                    if reader.line_num == self._lines_given:
                        break
            except (csv.Error, _RowTooLongError) as error:
                line = _lines_of([*rows, []], self.line)[-1]
                problem = f"the row on line {line} cannot be parsed: {error}"
                hint = "is a quote never closed?"
                raise LogError("field_too_long", f"{problem} ({hint})", line=line) from error
            start, self.line = self.line, before + reader.line_num
            if rows:
                plain = self.line - start == len(rows)
                lines = range(start, self.line) if plain else _lines_of(rows, start)
                if not all(rows):
                    rows, lines = [row for row in rows if row], list(compress(lines, rows))
                yield rows, lines
            if reader.line_num == self._lines_given:
                return

    def _text(self) -> Iterator[str]:
        """Lines of the first block, and of others as long as a row goes on."""
        for block in self.blocks:
            self._bytes_given += len(block)
            if self._bytes_given > self._bytes_allowed:
                raise _RowTooLongError("it goes on for too many lines")
            text = block.decode()
            ends = text.count("\n") + text.count("\r") - text.count("\r\n")
            self._lines_given += ends + (not text.endswith(("\n", "\r")))
            # newline="": the csv module wants the ends of lines as they are.
            yield from io.StringIO(text, newline="")


def _refuse_ragged(rows: list[list[str]], lines: Sequence[int], width: int) -> NoReturn:
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            problem = f"line {line} has {len(row):,} fields; the first line has {width:,}"
            raise LogError("ragged_row", problem, line=line)
    raise AssertionError("unreachable: called for rows of which one is ragged")


def _lines_of(rows: list[list[str]], start: int) -> list[int]:
    """The line each row starts on, given the first one's, where quoted fields span lines."""
    lines = []
    for row in rows:
        lines.append(start)
        start += 1 + sum(value.count("\n") for value in row)
    return lines
