"""Reading a log out of a table in memory: a DataFrame of pandas or polars, or an Arrow table.

The Arrow PyCapsule interface (`__arrow_c_stream__`) is all that a table must have. Neither pandas
nor polars is imported: where a table is theirs, its user, item and time column are selected first,
so that no other column is converted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from td3engine.data.readers import arrow
from td3engine.data.readers.batches import collect_batches
from td3engine.data.readers.columns import find_columns
from td3engine.data.types import ColumnNames, Interactions, Limits, LogError

_DATA_FRAMES = frozenset({"pandas", "polars"})


class ArrowTable(Protocol):
    """Whatever exports its rows by the Arrow PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


def read_table(
    table: ArrowTable, columns: ColumnNames, limits: Limits, scratch: Path | None = None
) -> Interactions:
    """A table whose ids are text or whole numbers, and whose times are numbers, moments or text.

    An index of pandas is ignored. The limits on bytes are for files: they do not apply.

    Raises:
        LogError: any of its codes that a table can have; `line` is the row, from 1.
        MemoryError: there is not enough of it.
    """
    roles = None
    source: Any = table
    if _is_data_frame(source):
        labels = list(source.columns)
        roles = find_columns([str(label) for label in labels], columns, limits)
        source = _Selected(source, [labels[position] for position in roles.positions], roles.names)
        roles = roles.narrowed()
    try:
        with _opened(source) as reader:
            roles = roles or find_columns(reader.schema.names, columns, limits)
            types = [reader.schema.types[position] for position in roles.positions]
            arrow.check_types(types, roles.names)
            pieces = _pieces(reader, roles.positions)
            batches = arrow.row_batches(pieces, roles.narrowed())
            return collect_batches(batches, limits, scratch)[0]
    except (pa.ArrowMemoryError, pa.lib.ArrowCapacityError):
        raise
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise LogError("bad_format", f"the table cannot be read: {error}") from error


class _Selected:
    """Three columns of a DataFrame, without the index.

    Args:
        frame: of pandas or polars.
        labels: of the three columns.
        names: the labels as text, for messages.
    """

    def __init__(self, frame: Any, labels: list[Any], names: tuple[str, str, str]) -> None:
        self._frame, self._labels, self._names = frame, labels, names

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        exported: object = self._columns(self._labels).__arrow_c_stream__(requested_schema)
        return exported

    def refuse_unreadable(self) -> None:
        """Refuses the first column that cannot be exported and opened by itself.

        Raises:
            LogError: `bad_format`.
        """
        for label, name in zip(self._labels, self._names, strict=True):
            try:
                pa.RecordBatchReader.from_stream(self._columns([label])).close()
            except pa.ArrowException as error:
                problem = f"column {name!r} holds values of different types, or of an unknown one"
                raise LogError("bad_format", f"{problem}: {error}", column=name) from error

    def _columns(self, labels: list[Any]) -> Any:
        columns = self._frame[labels]
        # Only pandas has an index; one of mixed types could not be exported.
        return columns.reset_index(drop=True) if hasattr(columns, "reset_index") else columns


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


def _pieces(reader: Any, positions: tuple[int, int, int]) -> Iterator[Any]:
    """The three columns in batches of at most `arrow.BATCH_ROWS` rows."""
    for whole in reader:
        columns = whole.select(list(positions))
        for first in range(0, columns.num_rows, arrow.BATCH_ROWS):
            piece = columns.slice(first, arrow.BATCH_ROWS)
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
    if pa.types.is_string_view(texts.type):
        return texts.cast(pa.large_string())
    return texts.cast(pa.large_binary()) if pa.types.is_binary_view(texts.type) else texts
