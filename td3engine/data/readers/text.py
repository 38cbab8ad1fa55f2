"""Reading CSV, TSV and RecBole `.inter`, plain or compressed, without trusting a byte of it."""

import csv
from contextlib import closing
from itertools import chain
from pathlib import Path

from td3engine.data.readers.blocks import CheckedBlocks
from td3engine.data.readers.collect import Collector
from td3engine.data.readers.columns import find_columns
from td3engine.data.readers.rows import Layout, batches
from td3engine.data.readers.values import BadRowError
from td3engine.data.types import ColumnNames, Interactions, Limits, LogError

SNIFFED_DELIMITERS = "\t,;|"


def read_text(
    path: Path,
    delimiter: str | None,
    columns: ColumnNames,
    limits: Limits,
    *,
    scratch: Path | None = None,
    quick: bool = True,
) -> Interactions:
    """A delimited text file with a header line; a delimiter that the header lacks is sniffed.

    Args:
        path: the file.
        delimiter: as the file's name has it.
        columns: which columns hold what.
        limits: what the file may cost.
        scratch: folder for temporary files of a long log; None is the system's.
        quick: False takes every row by csv's rules, for comparison.

    Raises:
        LogError: any of its codes but `too_little_data`, with the line where there is one.
    """
    with CheckedBlocks(path, limits) as blocks:
        start, end, first = next(blocks, b"").partition(b"\n")
        header, delimiter = _read_header((start + end).decode(), delimiter)
        found = find_columns(header, columns, limits)
        layout = Layout(delimiter, len(header), found.positions)
        collector = Collector(limits, scratch)
        with closing(batches(chain([first], blocks), 2, layout, quick=quick)) as pieces:
            for batch in pieces:
                try:
                    collector.add(*batch.columns)
                except BadRowError as error:
                    line = batch.line_of(error.row - collector.rows)
                    name = found.names[error.role]
                    problem = f"line {line}, column {name!r} {error.problem}"
                    raise LogError(error.code, problem, line=line, column=name) from error
        return collector.finish()


def _read_header(line: str, delimiter: str | None) -> tuple[list[str], str]:
    if not line:
        raise LogError("empty_file", "the file is empty")
    text = line.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")
    if "\r" in text:
        raise LogError("bad_format", "lines end in a bare carriage return; use line feeds", line=1)
    if delimiter is None or delimiter not in text:
        delimiter = max(SNIFFED_DELIMITERS, key=text.count)
    return next(csv.reader([text], delimiter=delimiter), []), delimiter
