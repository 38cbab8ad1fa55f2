"""Columns of arrow schemas and batches: what Parquet files and tables in memory have in common."""

from collections.abc import Iterable, Iterator
from typing import Any

from td3engine.data.readers.batches import Batch
from td3engine.data.readers.columns import ColumnRoles
from td3engine.data.readers.values import is_id_type, is_time_type
from td3engine.data.types import LogError

BATCH_ROWS = 2**18


def check_types(types: list[Any], names: tuple[str, str, str]) -> None:
    """Refuses a column whose type can hold neither ids nor times.

    Args:
        types: arrow types of the user, item and time column.
        names: of these columns.

    Raises:
        LogError: `bad_format`.
    """
    for role, (kind, name) in enumerate(zip(types, names, strict=True)):
        usable, needed = (
            (is_time_type(kind), "a number, a moment or text")
            if role == 2
            else (is_id_type(kind), "text or a whole number")
        )
        if not usable:
            problem = f"column {name!r} has the type {kind}; it must be {needed}"
            raise LogError("bad_format", problem, column=name)


def row_batches(batches: Iterable[Any], roles: ColumnRoles) -> Iterator[Batch]:
    """Batches whose places are rows, counted from 1.

    Args:
        batches: arrow record batches.
        roles: where in each batch the three columns are, and their names.
    """
    row = 1
    for batch in batches:
        user, item, time = (batch.column(position) for position in roles.positions)
        places = range(row, row + batch.num_rows)
        yield Batch((user, item, time), [places], roles.names, unit="row")
        row = places.stop
