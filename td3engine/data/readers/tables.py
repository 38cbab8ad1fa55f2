"""Reading a log out of a table in memory: a DataFrame of pandas or polars, or an Arrow table.

The Arrow PyCapsule interface (`__arrow_c_stream__`) is all that a table must have. Neither pandas
nor polars is imported: where a table is theirs, its user, item and time column are selected first,
so that no other column is converted.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from td3engine.data.readers import arrow
from td3engine.data.readers.batches import Batch
from td3engine.data.readers.columns import ColumnRoles, Sample, find_columns
from td3engine.data.readers.format import Seen
from td3engine.data.types import ColumnNames, Limits, LogError

_DATA_FRAMES = frozenset({"pandas", "polars"})


class ArrowTable(Protocol):
    """Whatever exports its rows by the Arrow PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


def table_batches(
    table: ArrowTable, columns: ColumnNames, limits: Limits, seen: Seen
) -> Generator[Batch, None, None]:
    """The rows of a table whose ids are text or whole numbers, and whose times are numbers, moments
    or text; or of one list of items a user.

    An index of pandas is ignored. The limits on bytes are for files: they do not apply.

    Args:
        table: the table.
        columns: which columns hold what.
        limits: of the log.
        seen: filled in before the first batch.

    Raises:
        LogError: any of its codes that a table can have; `line` is the row, from 1.
        MemoryError: there is not enough of it.
    """
    source: Any = table
    try:
        roles = None
        if _is_data_frame(source):
            if not len(source):  # columns of an empty frame have types that mean nothing
                raise LogError("empty_file", "there are no interactions")
            source, roles = _selected(source, columns, limits)
        sample = _sample(source) if isinstance(source, pa.Table | pa.RecordBatch) else None
        with _opened(source) as reader:
            names, types = reader.schema.names, list(reader.schema.types)
            if roles is None:
                roles = arrow.find_in_schema(names, types, columns, limits, sample)
            arrow.check_types([types[position] for position in roles.positions], roles.names)
            seen.roles = roles
            yield from arrow.row_batches(_pieces(reader, roles.positions), roles.narrowed())
    except (pa.ArrowMemoryError, pa.lib.ArrowCapacityError):
        raise
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise LogError("bad_format", f"the table cannot be read: {error}") from error


class _Selected:
    """Some columns of a DataFrame, without the index.

    Args:
        frame: of pandas or polars.
        labels: of the columns.
    """

    def __init__(self, frame: Any, labels: list[Any]) -> None:
        self._frame, self._labels = frame, labels

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        exported: object = self._columns(self._labels).__arrow_c_stream__(requested_schema)
        return exported

    def refuse_unreadable(self) -> None:
        """Refuses the first column that cannot be exported and opened by itself.

        Raises:
            LogError: `bad_format`.
        """
        for label in self._labels:
            try:
                pa.RecordBatchReader.from_stream(self._columns([label])).close()
            except pa.ArrowException as error:
                name = str(label)
                problem = f"column {name!r} holds values of different types, or of an unknown one"
                remedy = "cast it to text or to 64-bit numbers"
                raise LogError(
                    "bad_format", f"{problem}: {error}; {remedy}", column=name
                ) from error

    def _columns(self, labels: list[Any]) -> Any:
        columns = self._frame[labels]
        # Only pandas has an index; one of mixed types could not be exported.
        return columns.reset_index(drop=True) if hasattr(columns, "reset_index") else columns


def _selected(frame: Any, columns: ColumnNames, limits: Limits) -> tuple[_Selected, ColumnRoles]:
    """The needed columns of a DataFrame, and their roles among these."""
    labels = list(frame.columns)

    def sample(positions: Sequence[int]) -> list[list[str]]:
        some = _Selected(frame.head(arrow.SAMPLED_ROWS), [labels[each] for each in positions])
        with _opened(some) as reader:
            table = reader.read_all().combine_chunks()
        return arrow.as_texts(table.columns)

    roles = find_columns(
        [str(label) for label in labels],
        columns,
        limits,
        sample=sample,
        lists=[nth for nth, kind in enumerate(frame.dtypes) if _is_list(frame, nth, kind)],
    )
    return _Selected(frame, [labels[each] for each in roles.positions]), roles.narrowed()


def _is_list(frame: Any, position: int, kind: object) -> bool:
    """Whether a column of a DataFrame has a list a row."""
    if str(kind) == "object" and len(frame):
        return isinstance(frame.iloc[0, position], list | tuple | np.ndarray)
    return str(kind).lower().startswith(("list", "array"))


def _sample(table: Any) -> Sample:
    def sample(positions: Sequence[int]) -> list[list[str]]:
        some = table.slice(0, arrow.SAMPLED_ROWS)
        return arrow.as_texts([some.column(position) for position in positions])

    return sample


def _opened(source: Any) -> Any:
    """A reader of record batches."""
    try:
        return pa.RecordBatchReader.from_stream(source)
    except pa.ArrowException:
        if isinstance(source, _Selected):
            source.refuse_unreadable()
        raise


def _is_data_frame(table: object) -> bool:
    """Whether this is a DataFrame of a known library, or of a class derived from one."""
    libraries = {kind.__module__.partition(".")[0] for kind in type(table).__mro__}
    return bool(libraries & _DATA_FRAMES) and hasattr(table, "columns")


def _pieces(reader: Any, positions: tuple[int, ...]) -> Iterator[Any]:
    """The needed columns in batches of at most `arrow.BATCH_ROWS` rows, fewer of lists."""
    for whole in reader:
        columns = whole.select(list(positions))
        rows = arrow.LISTS_AT_ONCE if arrow.is_list(columns.column(1).type) else arrow.BATCH_ROWS
        for first in range(0, columns.num_rows, rows):
            piece = columns.slice(first, rows)
            yield pa.record_batch([_short(column) for column in piece.columns], piece.schema.names)


def _short(column: Any) -> Any:
    """A column in types for which pyarrow has all kernels, and without a dictionary that is longer
    than the column: each piece would carry it whole."""
    if not pa.types.is_dictionary(column.type):
        return _without_views(column)
    texts = _without_views(column.dictionary)
    if texts is not column.dictionary:
        column = pa.DictionaryArray.from_arrays(column.indices, texts)
    return column.dictionary_decode() if len(texts) > len(column) else column


def _without_views(texts: Any) -> Any:
    if arrow.is_list(texts.type) and pa.types.is_string_view(texts.type.value_type):
        return texts.cast(pa.large_list(pa.large_string()))
    if pa.types.is_string_view(texts.type):
        return texts.cast(pa.large_string())
    return texts.cast(pa.large_binary()) if pa.types.is_binary_view(texts.type) else texts
