"""Read a log in any supported format. Imports no torch."""

import os
from pathlib import Path

import pyarrow as pa

from td3engine.data.readers import parquet, text
from td3engine.data.types import (
    ColumnNames,
    Interactions,
    Limits,
    LogError,
    LogFormat,
)

DELIMITERS: dict[LogFormat | None, str] = {"csv": ",", "tsv": "\t", "inter": "\t"}
SUFFIXES: dict[str, LogFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "inter",
    ".parquet": "parquet",
    ".pq": "parquet",
}
NO_MEMORY = "the file needs more memory than it may have"


def format_of_name(name: str) -> LogFormat | None:
    """What a file's name says of its format (`x.csv.gz` is CSV); None if nothing."""
    path = Path(name.lower())
    if path.suffix in (".gz", ".zst"):
        path = path.with_suffix("")
    return SUFFIXES.get(path.suffix)


def read_log(
    path: Path,
    *,
    columns: ColumnNames | None = None,
    limits: Limits | None = None,
    format: LogFormat | None = None,  # noqa: A002 (the natural word, and only ever a keyword)
    scratch: Path | None = None,
) -> Interactions:
    """Reads a log in any supported format, plain or packed with gzip or zstd.

    What the file *is* goes before what it is called: compression and Parquet are told by their
    first bytes, and a delimiter that the header does not have is sniffed.

    Args:
        path: the file.
        columns: which columns hold what; None finds all by the usual names.
        limits: what the file may cost.
        format: None goes by the name.
        scratch: folder for the temporary files of a log with more than `max_rows_in_memory` rows
            (32 bytes a row, and ids); None is the system's.

    Raises:
        LogError: the file cannot be read or used.
        OSError: there is no such file, or it cannot be opened.
    """
    columns, limits = columns or ColumnNames(), limits or Limits()
    with path.open("rb") as file:
        start = file.read(4)
        size = file.seek(0, os.SEEK_END)
    if size > limits.max_bytes:
        raise LogError(
            "too_large", f"the file has {size:,} bytes; at most {limits.max_bytes:,} are allowed"
        )
    if not size:
        raise LogError("empty_file", "the file is empty")
    if start == b"PK\x03\x04":
        raise LogError("bad_format", "the file is a zip archive or a spreadsheet, not a log")
    wanted = format or format_of_name(path.name)
    try:
        if start == parquet.MAGIC:
            return parquet.read_parquet(path, columns, limits, scratch=scratch)
        if wanted == "parquet":
            raise LogError("bad_format", "the file is not Parquet (a packed one must be unpacked)")
        delimiter = DELIMITERS.get(wanted)
        return text.read_text(path, delimiter, columns, limits, scratch=scratch)
    except (MemoryError, pa.lib.ArrowCapacityError) as error:
        raise LogError("too_large", NO_MEMORY) from error
