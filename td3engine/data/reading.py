"""Read a log: from a file in any supported format, or from a table in memory. Imports no torch."""

import os
from pathlib import Path

import pyarrow as pa

from td3engine.data.readers.blocks import CheckedBlocks
from td3engine.data.readers.format import Format
from td3engine.data.readers.registry import FORMATS
from td3engine.data.readers.tables import ArrowTable, read_table
from td3engine.data.types import ColumnNames, Interactions, Limits, LogError

COMPRESSED_SUFFIXES = (".gz", ".zst")
ZIP_MAGIC = b"PK\x03\x04"
MAGIC_BYTES = max(len(ZIP_MAGIC), *(len(each.magic) for each in FORMATS))
NO_MEMORY = "the log needs more memory than it may have"


def format_of_name(name: str) -> str | None:
    """The format that a file's name tells, by its name: `x.csv.gz` is csv. None: it tells none."""
    path = Path(name.lower())
    if path.suffix in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    return next((each.name for each in FORMATS if path.suffix in each.suffixes), None)


def read_log(
    source: str | os.PathLike[str] | ArrowTable,
    *,
    columns: ColumnNames | None = None,
    limits: Limits | None = None,
    format: str | None = None,  # noqa: A002 (the natural word, and only ever a keyword)
    scratch: Path | None = None,
) -> Interactions:
    """Reads a log from a file or from a table.

    A file is CSV, TSV, RecBole `.inter`, JSON lines or Parquet; text may be packed with gzip or
    zstd. Content goes before the name: compression and Parquet are told by their first bytes, and
    a delimiter that the header does not have is sniffed.

    A table is a pandas or polars DataFrame, or any other object with `__arrow_c_stream__` (pyarrow
    Table, RecordBatch, RecordBatchReader). The index of a DataFrame is ignored.

    Args:
        source: path of the file, or the table.
        columns: which columns hold what; None finds all by the usual names.
        limits: what the log may cost. Its limits on bytes are for files.
        format: of the file, by the name in `readers/registry.py`; None goes by the file's name,
            then by its first bytes.
        scratch: folder for the temporary files of a log with more than `max_rows_in_memory` rows
            (32 bytes a row, and ids); None is the system's.

    Raises:
        LogError: the log cannot be read or used. `line` is the line of a text file, and the row,
            from 1, of a Parquet file or a table.
        OSError: there is no such file, or it cannot be opened.
        TypeError: `source` is neither a path nor a table.
        ValueError: there is no such format, or a table was given one.
    """
    columns, limits = columns or ColumnNames(), limits or Limits()
    try:
        if isinstance(source, str | os.PathLike):
            return _read_file(Path(source), columns, limits, format, scratch)
        if not hasattr(source, "__arrow_c_stream__"):
            kind = f"{type(source).__module__}.{type(source).__qualname__}"
            raise TypeError(
                "read_log takes a path, a DataFrame or an Arrow table (an object with "
                f"__arrow_c_stream__, which pandas has from 2.2 on), not a {kind}"
            )
        if format is not None:
            raise ValueError(f"a table in memory has no file format, such as {format!r}")
        return read_table(source, columns, limits, scratch)
    except (MemoryError, pa.lib.ArrowCapacityError) as error:
        raise LogError("too_large", NO_MEMORY) from error


def _read_file(
    path: Path, columns: ColumnNames, limits: Limits, name: str | None, scratch: Path | None
) -> Interactions:
    with path.open("rb") as file:
        start = file.read(MAGIC_BYTES)
        size = file.seek(0, os.SEEK_END)
    if size > limits.max_bytes:
        raise LogError(
            "too_large", f"the file has {size:,} bytes; at most {limits.max_bytes:,} are allowed"
        )
    if not size:
        raise LogError("empty_file", "the file is empty")
    if start.startswith(ZIP_MAGIC):
        raise LogError("bad_format", "the file is a zip archive or a spreadsheet, not a log")
    chosen = _format_of(path, start, limits, name)
    return chosen.read(path, columns, limits, scratch)


def _format_of(path: Path, start: bytes, limits: Limits, name: str | None) -> Format:
    """The format of a file that is not empty: by magic bytes, then by name, then by a guess."""
    for each in FORMATS:
        if each.magic and start.startswith(each.magic):
            return each
    if name is None:
        name = format_of_name(path.name)
    if name is None:
        with CheckedBlocks(path, limits) as blocks:
            first = next(blocks, b"")
        return next(each for each in FORMATS if each.looks_like(first))
    by_name = {each.name: each for each in FORMATS}
    if name not in by_name:
        raise ValueError(f"there is no format {name!r}; there are {', '.join(by_name)}")
    if by_name[name].magic:
        problem = f"the file is not {name} (if it is packed, it must be unpacked)"
        raise LogError("bad_format", problem)
    return by_name[name]
