"""Reading CSV, TSV, RecBole `.inter` and their kin, packed or not, without trusting a byte."""

import csv
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain

from td3engine.data.readers.batches import Batch
from td3engine.data.readers.blocks import CheckedBlocks
from td3engine.data.readers.columns import ColumnRoles, find_columns
from td3engine.data.readers.format import FileSource, Format
from td3engine.data.readers.rows import Layout, csv_reader, delimited_batches
from td3engine.data.readers.suggest import SNIFFED_ROWS, reading_options
from td3engine.data.types import LogError

BYTE_ORDER_MARK = "\ufeff"
SNIFFED_DELIMITERS = "\t,;|"
NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "blank": " "}
RowSource = Callable[[], list[list[str]]]
# Stands for a delimiter that is not one character: no text has it.
STAND_IN = "\x1f"
# Excel writes it above the header, and reads it from there.
_SEPARATOR_LINE = re.compile(r'^"?sep=(.)"?$')
_BLANKS = re.compile(rb"[ \t]+")
_OUTER_BLANKS = re.compile(rb"^[ \t]+|[ \t]+(?=\r?$)", re.MULTILINE)


@dataclass(frozen=True)
class Delimiter:
    """What separates the fields of a file: one character, or more, or `blanks`."""

    written: str

    @property
    def is_plain(self) -> bool:
        """Whether it is one character, for which quotes mean something."""
        return len(self.written) == 1

    @property
    def character(self) -> str:
        """The one that blocks have, once `apply` has seen them."""
        return self.written if self.is_plain else STAND_IN

    def apply(self, block: bytes) -> bytes:
        """A block of whole lines, with one character for each delimiter.

        Raises:
            LogError: `bad_format`: the block holds the character that stands for a delimiter.
        """
        if self.is_plain:
            return block
        if STAND_IN.encode() in block:
            problem = f"the file holds the character U+001F, which a delimiter {self.written!r}"
            raise LogError("bad_format", f"{problem} must be told from; take another delimiter")
        if self.written != "blanks":
            return block.replace(self.written.encode(), STAND_IN.encode())
        return _BLANKS.sub(STAND_IN.encode(), _OUTER_BLANKS.sub(b"", block))

    def fields(self, line: str) -> list[str]:
        """The fields of one line."""
        text = self.apply(line.encode()).decode()
        return next(csv_reader([text], self.character, quoting=self.is_plain), [])


def text_batches(
    source: FileSource, *, delimiter: str | None, quick: bool = True
) -> Generator[Batch, None, None]:
    """The rows of a delimited text file.

    Args:
        source: the file.
        delimiter: of the format; sniffed if it is None, or if the first line lacks it.
        quick: False takes every row by csv's rules, for comparison.

    Raises:
        LogError: any of its codes but `too_little_data`, with the line where there is one.
    """
    with CheckedBlocks(source.path, source.limits) as blocks:
        first = next(blocks, b"").removeprefix(BYTE_ORDER_MARK.encode())
        line = 1
        if separator := _separator(first):
            first, line, delimiter = first.partition(b"\n")[2], 2, separator
        layout, between, has_header = _layout(source, first, line, delimiter)
        if has_header:
            first, line = first.partition(b"\n")[2], line + 1
        rest: Iterator[bytes] = map(between.apply, chain([first], blocks))
        with closing(delimited_batches(rest, line, layout, quick=quick)) as batches:
            yield from batches
        source.seen.unpacked = blocks.unpacked


def _layout(
    source: FileSource, block: bytes, line: int, usual: str | None
) -> tuple[Layout, Delimiter, bool]:
    """How the file writes its rows, its delimiter, and whether it has a header.

    Args:
        source: the file.
        block: its first lines.
        line: number of the first of them.
        usual: delimiter of the format.
    """
    start, _, _ = block.partition(b"\n")
    text = start.decode().removesuffix("\r")
    if not block:
        raise LogError("empty_file", "the file is empty")
    if "\r" in text:
        raise LogError("bad_format", "lines end in a bare carriage return; use line feeds", line=1)
    asked = source.dialect.delimiter
    written = NAMED_DELIMITERS.get(asked, asked) if asked else _sniffed(text, usual)
    between = Delimiter(written)
    fields = between.fields(text)
    has_header = source.dialect.header
    if has_header is None:
        has_header = not source.columns.are_positions
    header = fields if has_header else [str(nth + 1) for nth in range(len(fields))]
    rows = partial(_sampled_rows, block, between, has_header)
    roles = _roles(source, header, line if has_header else None, rows, block)
    source.seen.roles, source.seen.delimiter, source.seen.header = roles, written, has_header
    layout = Layout(between.character, len(fields), roles, quoting=between.is_plain)
    return layout, between, has_header


def _roles(
    source: FileSource, header: list[str], line: int | None, rows: RowSource, block: bytes
) -> ColumnRoles:
    def sample(positions: Sequence[int]) -> list[list[str]]:
        whole = [row for row in rows() if len(row) == len(header)]
        return [[row[position] for row in whole] for position in positions]

    try:
        return find_columns(header, source.columns, source.limits, line=line, sample=sample)
    except LogError as error:
        if error.code != "missing_column":
            raise
        lines = block.decode().splitlines()[:SNIFFED_ROWS]
        advice = reading_options(lines, asked=source.columns, dialect=source.dialect)
        if advice is None:
            raise
        message = f"{error.message}; perhaps: {advice}"
        raise LogError("missing_column", message, line=error.line, column=error.column) from error


def _sampled_rows(block: bytes, between: Delimiter, has_header: bool) -> list[list[str]]:
    """The first rows of a file, by csv's rules; a row that csv refuses ends them."""
    lines = between.apply(block).decode().splitlines()[int(has_header) : SNIFFED_ROWS]
    try:
        return list(csv_reader(lines, between.character, quoting=between.is_plain))
    except csv.Error:
        return []  # the rows' reader will say where


def _separator(block: bytes) -> str | None:
    """The delimiter that a line above the header names."""
    start, feed, _ = block.partition(b"\n")
    found = _SEPARATOR_LINE.match(start.decode().strip()) if feed and len(start) < 10 else None
    return found[1] if found else None


def _sniffed(line: str, usual: str | None) -> str:
    """The delimiter of a file, by its first line."""
    if usual is not None and usual in line:
        return usual
    best = max(SNIFFED_DELIMITERS, key=line.count)
    if best in line:
        return best
    if "::" in line:
        return "::"
    return "blanks" if " " in line.strip() else ","


FORMATS = (
    Format("csv", (".csv",), partial(text_batches, delimiter=",")),
    Format("tsv", (".tsv",), partial(text_batches, delimiter="\t")),
    Format("inter", (".inter",), partial(text_batches, delimiter="\t")),
    # The last guess about a file whose name says nothing.
    Format("text", (), partial(text_batches, delimiter=None), looks_like=lambda _: True),
)
