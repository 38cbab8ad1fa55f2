"""Reading a log out of any Parquet file, in batches."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from td3engine.data.readers import arrow
from td3engine.data.readers.batches import collect_batches
from td3engine.data.readers.columns import ColumnRoles, find_columns
from td3engine.data.readers.format import Format
from td3engine.data.types import ColumnNames, Interactions, Limits, LogError

# pyarrow's OSError where the memory for a page is missing.
NO_MEMORY_SIGN = "malloc of size"


def read_parquet(
    path: Path, columns: ColumnNames, limits: Limits, scratch: Path | None = None
) -> Interactions:
    """A Parquet file whose ids are text or whole numbers, and whose times are numbers or moments.

    Raises:
        LogError: any of its codes that a file without lines can have; `line` is the row, from 1.
        MemoryError: there is not enough of it.
    """
    try:
        with pq.ParquetFile(path) as opened:
            schema, metadata = opened.schema_arrow, opened.metadata
        roles = find_columns(schema.names, columns, limits)
        names = [schema.names[position] for position in roles.positions]
        arrow.check_types([schema.types[position] for position in roles.positions], roles.names)
        _check_promises(metadata, names, limits, packed=path.stat().st_size)
        return _collect(path, names, roles, limits, scratch)
    # pyarrow decodes a damaged column name only when it is read, and without translating.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if NO_MEMORY_SIGN in str(error):
            raise MemoryError(str(error)) from error
        raise LogError("bad_format", f"the file is not valid Parquet: {error}") from error


def _check_promises(metadata: Any, names: list[str], limits: Limits, *, packed: int) -> None:
    """Refuses by what the footer says. Against a lying footer there are the checks made while rows
    arrive, and the limit on the memory of the process that reads uploads.
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
            if chunk.path_in_schema in names:
                unpacked += chunk.total_uncompressed_size
    limits.check_unpacked(unpacked, packed)


def _collect(
    path: Path, names: list[str], roles: ColumnRoles, limits: Limits, scratch: Path | None
) -> Interactions:
    # Ids come as dictionaries: a long id that repeats is held once.
    with pq.ParquetFile(path, read_dictionary=names[:2], pre_buffer=False) as opened:
        batches = opened.iter_batches(arrow.BATCH_ROWS, columns=names, use_threads=False)
        log, rows = collect_batches(
            arrow.row_batches((batch.select(names) for batch in batches), roles.narrowed()),
            limits,
            scratch,
        )
        promised = opened.metadata.num_rows
    if rows != promised:
        problem = f"the footer promises {promised:,} rows, there are {rows:,}"
        raise LogError("bad_format", f"the file is not valid Parquet: {problem}")
    return log


FORMATS = (Format("parquet", (".parquet", ".pq"), read_parquet, magic=b"PAR1"),)
