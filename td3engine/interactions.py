"""Interaction logs: reading, normalising, describing, filtering and splitting. Imports no torch.

Run as `python -m td3engine.interactions SOURCE TARGET` it normalises one file; the API does that
with every upload, in a child process whose memory it limits.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from td3engine._log import parquet, text
from td3engine._log.model import (
    ColumnNames,
    Interactions,
    Limits,
    LogError,
    LogErrorCode,
    LogFormat,
    LogStatistics,
    describe,
)
from td3engine._log.split import (
    FilterStatistics,
    Split,
    SplitStatistics,
    filter_statistics,
    split,
)
from td3engine.config import DataConfig

__all__ = [
    "ColumnNames",
    "FilterStatistics",
    "Interactions",
    "Limits",
    "LogError",
    "LogErrorCode",
    "LogFormat",
    "LogStatistics",
    "Split",
    "SplitStatistics",
    "describe",
    "filter_statistics",
    "format_of_name",
    "read_log",
    "read_normalised",
    "split",
    "write_normalised",
]

EXIT_UNUSABLE = 65
DELIMITERS: dict[LogFormat | None, str] = {"csv": ",", "tsv": "\t", "inter": "\t"}
SUFFIXES: dict[str, LogFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "inter",
    ".parquet": "parquet",
    ".pq": "parquet",
}
NORMALISED_NAMES = ["user_id", "item_id", "timestamp"]
NO_MEMORY = "the file needs more memory than it may have"
ROW_GROUP_ROWS = 2**20


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


def write_normalised(log: Interactions, path: Path) -> str:
    """Writes the normalised Parquet file (atomically) and returns its sha256.

    The same log gives the same bytes, as long as pyarrow is the same: it writes its version into
    every file.
    """
    table = pa.Table.from_arrays(
        [
            pa.DictionaryArray.from_arrays(log.user_codes, pa.array(log.user_ids, pa.string())),
            pa.DictionaryArray.from_arrays(log.item_codes, pa.array(log.item_ids, pa.string())),
            pa.array(log.times),
        ],
        NORMALISED_NAMES,
    )
    # Every row group has the whole dictionary, so one of more ids than rows only makes it longer.
    ids = {"user_id": log.user_ids, "item_id": log.item_ids}
    columns_of_few_ids = [name for name, texts in ids.items() if len(texts) <= ROW_GROUP_ROWS]
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            # Everything that shapes the bytes is said, so that a new default cannot change them.
            pq.write_table(
                table,
                file,
                row_group_size=ROW_GROUP_ROWS,
                version="2.6",
                data_page_version="1.0",
                use_dictionary=columns_of_few_ids,
                compression="zstd",
                compression_level=3,
                write_statistics=False,
                data_page_size=2**20,
                dictionary_pagesize_limit=2**20,
                store_schema=True,
            )
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return digest


def read_normalised(path: Path) -> Interactions:
    """Reads what `write_normalised` wrote.

    Raises:
        LogError: `bad_format`, the file is something else.
        OSError: there is no such file, or it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            table = pq.read_table(file, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise LogError("bad_format", f"not a normalised log: {error}") from error
    kinds = [str(kind) for kind in table.schema.types]
    ids = "dictionary<values=string, indices=int32, ordered=0>"
    if table.schema.names != NORMALISED_NAMES or kinds not in (
        [ids, ids, "int64"],
        [ids, ids, "double"],
    ):
        raise LogError("bad_format", f"not a normalised log: its columns are {kinds}")
    if not table.num_rows or any(column.null_count for column in table.columns):
        raise LogError("bad_format", "not a normalised log: it has no rows, or empty values")
    table = table.unify_dictionaries().combine_chunks()
    users, items, times = (column.chunk(0) for column in table.columns)
    log = Interactions(
        user_codes=users.indices.to_numpy(),
        item_codes=items.indices.to_numpy(),
        times=times.to_numpy(),
        user_ids=users.dictionary.to_pylist(),
        item_ids=items.dictionary.to_pylist(),
    )
    steps = np.diff(log.user_codes)
    if np.any(steps < 0) or np.any((steps == 0) & (np.diff(log.times) < 0)):
        raise LogError("bad_format", "not a normalised log: it is not sorted by user, then time")
    return log


def main(arguments: list[str] | None = None) -> int:
    """Normalises one file; prints one JSON line and returns the exit code (0, or 65)."""
    parser = argparse.ArgumentParser(
        prog="python -m td3engine.interactions", description=main.__doc__
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--limits", default="{}", help="JSON: fields of Limits")
    parser.add_argument("--columns", default="{}", help="JSON: fields of ColumnNames")
    parser.add_argument("--name", help="what the file was called; tells its format")
    options = parser.parse_args(arguments)
    try:
        limits = Limits.model_validate_json(options.limits)
        columns = ColumnNames.model_validate_json(options.columns)
    except ValidationError as error:
        parser.error(str(error))
    try:
        log = read_log(
            options.source,
            columns=columns,
            limits=limits,
            format=format_of_name(options.name or options.source.name),
            scratch=options.target.parent,
        )
        usual = DataConfig()
        filtered = filter_statistics(
            log,
            min_user_interactions=usual.min_user_interactions,
            min_item_interactions=usual.min_item_interactions,
        )
        answer = {
            "sha256": write_normalised(log, options.target),
            "bytes": options.target.stat().st_size,
            "statistics": {**describe(log).model_dump(), "filter": filtered.model_dump()},
        }
    except MemoryError:
        return _refuse(LogError("too_large", NO_MEMORY))
    except LogError as error:
        return _refuse(error)
    _say(answer)
    return 0


def _refuse(error: LogError) -> int:
    fields = ("code", "message", "line", "column")
    _say({"error": {field: getattr(error, field) for field in fields}})
    return EXIT_UNUSABLE


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
