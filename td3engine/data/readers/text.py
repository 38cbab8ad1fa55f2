"""Reading CSV, TSV and RecBole `.inter`, plain or compressed, without trusting a byte of it."""

import csv
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path

from td3engine.data.readers.batches import collect_batches
from td3engine.data.readers.blocks import CheckedBlocks
from td3engine.data.readers.columns import find_columns
from td3engine.data.readers.format import Format
from td3engine.data.readers.rows import Layout, delimited_batches
from td3engine.data.types import ColumnNames, Interactions, Limits, LogError

SNIFFED_DELIMITERS = "\t,;|"


def read_text(
    path: Path,
    columns: ColumnNames,
    limits: Limits,
    scratch: Path | None = None,
    *,
    delimiter: str | None,
    quick: bool = True,
) -> Interactions:
    """A delimited text file with a header line.

    Args:
        path: the file.
        columns: which columns hold what.
        limits: what the file may cost.
        scratch: folder for temporary files of a long log; None is the system's.
        delimiter: of the format; sniffed if it is None, or if the header lacks it.
        quick: False takes every row by csv's rules, for comparison.

    Raises:
        LogError: any of its codes but `too_little_data`, with the line where there is one.
    """
    with CheckedBlocks(path, limits) as blocks:
        start, end, first = next(blocks, b"").partition(b"\n")
        header, delimiter = _read_header((start + end).decode(), delimiter)
        roles = find_columns(header, columns, limits, line=1)
        layout = Layout(delimiter, len(header), roles)
        rest = chain([first], blocks)
        with closing(delimited_batches(rest, 2, layout, quick=quick)) as batches:
            return collect_batches(batches, limits, scratch)[0]


def _read_header(line: str, delimiter: str | None) -> tuple[list[str], str]:
    if not line:
        raise LogError("empty_file", "the file is empty")
    text = line.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")
    if "\r" in text:
        raise LogError("bad_format", "lines end in a bare carriage return; use line feeds", line=1)
    if delimiter is None or delimiter not in text:
        delimiter = max(SNIFFED_DELIMITERS, key=text.count)
    return next(csv.reader([text], delimiter=delimiter), []), delimiter


FORMATS = (
    Format("csv", (".csv",), partial(read_text, delimiter=",")),
    Format("tsv", (".tsv",), partial(read_text, delimiter="\t")),
    Format("inter", (".inter",), partial(read_text, delimiter="\t")),
    # The last guess about a file whose name says nothing.
    Format("text", (), partial(read_text, delimiter=None), looks_like=lambda _: True),
)
