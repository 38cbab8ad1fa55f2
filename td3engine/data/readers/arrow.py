"""Columns of arrow schemas and batches: what Parquet files and tables in memory have in common."""

from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from td3engine.data.readers.batches import Batch
from td3engine.data.readers.columns import ColumnRoles, Sample, find_columns
from td3engine.data.readers.values import is_id_type, is_time_type, texts_of
from td3engine.data.types import ColumnNames, Limits, LogError

BATCH_ROWS = 2**18
# A row of lists is a whole history: so many of them are read at once.
LISTS_AT_ONCE = 2**12
SAMPLED_ROWS = 1000


def find_in_schema(
    names: list[str],
    types: list[Any],
    columns: ColumnNames,
    limits: Limits,
    sample: Sample | None = None,
) -> ColumnRoles:
    """The roles of a schema's columns.

    Items may be a list a row, the history of the row's user; times are then such a list too, or
    none, where the order of the list is the order of time.

    Args:
        names: of all columns.
        types: arrow types of all columns.
        columns: which columns hold what.
        limits: of the log.
        sample: gives first values.

    Raises:
        LogError: as `find_columns`; `bad_format`: a type that can hold neither ids nor times.
    """
    lists = [nth for nth, kind in enumerate(types) if is_list(kind)]
    roles = find_columns(names, columns, limits, sample=sample, lists=lists)
    chosen = [types[position] for position in roles.positions]
    check_types(chosen, roles.names)
    return roles


def is_list(kind: Any) -> bool:
    """Whether an arrow type is one of lists."""
    types = pa.types
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def check_types(types: list[Any], names: tuple[str, str, str]) -> None:
    """Refuses a column whose type can hold neither ids nor times, with what would help."""
    user, item, *times = types
    listed = is_list(item)
    _check_id(user, names[0])
    _check_id(item.value_type if listed else item, names[1])
    for kind in times:
        if is_list(kind) != listed:
            problem = "a list, and the items are not" if is_list(kind) else "no list, as items are"
            raise LogError("bad_format", f"column {names[2]!r} is {problem}", column=names[2])
        _check_time(kind.value_type if listed else kind, names[2], joined=len(times) > 1)


def _check_id(kind: Any, name: str) -> None:
    if is_id_type(kind):
        return
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    remedy = "cast it to text"
    if pa.types.is_floating(plain) or pa.types.is_decimal(plain):
        remedy = (
            "cast it to whole numbers or to text (a pandas column of integers with gaps becomes "
            "one of floats: `.astype('Int64')`; DuckDB writes HUGEINT as DOUBLE: cast to VARCHAR)"
        )
    problem = f"column {name!r} has the type {kind}; it must be text or a whole number"
    raise LogError("bad_format", f"{problem}: {remedy}", column=name)


def _check_time(kind: Any, name: str, *, joined: bool) -> None:
    if is_time_type(kind) or (joined and pa.types.is_time(kind)):
        return
    problem = f"column {name!r} has the type {kind}; it must be a number, a moment or text"
    if pa.types.is_time(kind):
        problem += f"; with a column of days: --columns time=DAY+{name}"
    raise LogError("bad_format", problem, column=name)


def row_batches(batches: Iterable[Any], roles: ColumnRoles) -> Generator[Batch, None, int]:
    """Batches whose places are rows, counted from 1; rows of lists become one row an element.

    Args:
        batches: arrow record batches.
        roles: where in each batch the columns are, and their names.

    Returns:
        How many rows there were, lists not taken apart.
    """
    row = 1
    for batch in batches:
        columns = tuple(batch.column(position) for position in roles.positions)
        places = range(row, row + batch.num_rows)
        if is_list(columns[1].type):
            yield from _taken_apart(columns, places, roles)
        else:
            yield Batch(columns, [places], roles.names, unit="row")
        row = places.stop
    return row - 1


def _taken_apart(columns: tuple[Any, ...], places: range, roles: ColumnRoles) -> Iterator[Batch]:
    """One row an element of the lists of items, in batches of at most `BATCH_ROWS`."""
    user, items, *times = columns
    lengths = _lengths(items)
    for time in times:
        unequal = np.flatnonzero(lengths != _lengths(time))
        if len(unequal):
            row = int(unequal[0])
            counts = f"{lengths[row]:,} items and {_lengths(time)[row]:,} times"
            place = places[row]
            raise LogError("bad_value", f"row {place} has {counts}", line=place)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    flat = pc.list_flatten(items), *(pc.list_flatten(time) for time in times)
    rows = np.asarray(places)[owners]
    for first in range(0, len(owners), BATCH_ROWS):
        some = slice(first, first + BATCH_ROWS)
        of_users = user.take(pa.array(owners[some]))
        parts = tuple(part.slice(first, BATCH_ROWS) for part in flat)
        if not times:
            parts = (*parts, pa.array(positions[some]))
        yield Batch((of_users, *parts), [rows[some].tolist()], roles.names, unit="row")


def _lengths(lists: Any) -> Any:
    """How many elements each list has; none where there is no list."""
    return pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)


def as_texts(columns: Iterable[Any]) -> list[list[str]]:
    """The first values of columns as text, rows with a missing value left out."""
    texts = [texts_of(column.slice(0, SAMPLED_ROWS)) for column in columns]
    whole = [row for row in zip(*texts, strict=True) if "" not in row]
    return [[row[nth] for row in whole] for nth in range(len(texts))]
