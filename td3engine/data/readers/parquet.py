"""Reading a log out of any Parquet file, in batches."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from td3engine.data.readers.collect import Collector
from td3engine.data.readers.columns import FoundColumns, find_columns
from td3engine.data.readers.values import BadRowError, is_id_type, is_time_type
from td3engine.data.types import ColumnNames, Interactions, Limits, LogError

MAGIC = b"PAR1"
# What pyarrow says, as an OSError, where the memory for a page cannot be had.
NO_MEMORY_SIGN = "malloc of size"
BATCH_ROWS = 2**18


def read_parquet(
    path: Path, columns: ColumnNames, limits: Limits, *, scratch: Path | None = None
) -> Interactions:
    """A Parquet file whose ids are text or whole numbers, and whose times are numbers or moments.

    Raises:
        LogError: any of its codes that a file without lines can have; `line` is the row, from 1.
        MemoryError: there is not enough of it.
    """
    try:
        with pq.ParquetFile(path) as opened:
            schema, metadata = opened.schema_arrow, opened.metadata
        found = find_columns(schema.names, columns, limits)
        wanted = [schema.names[position] for position in found.positions]
        _check_types(schema, found)
        _check_promises(metadata, wanted, limits, packed=path.stat().st_size)
        return _collect(path, wanted, Collector(limits, scratch))
    except BadRowError as error:
        name = found.names[error.role]
        row = error.row + 1
        problem = f"row {row}, column {name!r} {error.problem}"
        raise LogError(error.code, problem, line=row, column=name) from error
    # pyarrow decodes a damaged column name only when it is asked for, and without translating.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if NO_MEMORY_SIGN in str(error):
            raise MemoryError(str(error)) from error
        raise LogError("bad_format", f"the file is not valid Parquet: {error}") from error


def _check_types(schema: Any, found: FoundColumns) -> None:
    for role, (position, name) in enumerate(zip(found.positions, found.names, strict=True)):
        kind = schema.types[position]
        usable, needed = (
            (is_time_type(kind), "a number, a moment or text")
            if role == 2
            else (is_id_type(kind), "text or a whole number")
        )
        if not usable:
            problem = f"column {name!r} has the type {kind}; it must be {needed}"
            raise LogError("bad_format", problem, column=name)


def _check_promises(metadata: Any, wanted: list[str], limits: Limits, *, packed: int) -> None:
    """Refuses by what the footer says. A lying footer meets the checks made while rows arrive, and
    the limit on the memory of the process that reads uploads.
    """
    if metadata.num_rows > limits.max_rows:
        raise LogError(
            "too_many_rows",
            f"the file has {metadata.num_rows:,} rows; at most {limits.max_rows:,} are allowed",
        )
    unpacked = 0
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        for chunk in (chunks.column(index) for index in range(chunks.num_columns)):
            if chunk.path_in_schema in wanted:
                unpacked += chunk.total_uncompressed_size
    limits.check_unpacked(unpacked, packed)


def _collect(path: Path, wanted: list[str], collector: Collector) -> Interactions:
    # Ids come as dictionaries: a long id that repeats is held once.
    with pq.ParquetFile(path, read_dictionary=wanted[:2], pre_buffer=False) as opened:
        for batch in opened.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
            collector.add(*(batch.column(name) for name in wanted))
        promised = opened.metadata.num_rows
    if collector.rows != promised:
        problem = f"the footer promises {promised:,} rows, there are {collector.rows:,}"
        raise LogError("bad_format", f"the file is not valid Parquet: {problem}")
    return collector.finish()
