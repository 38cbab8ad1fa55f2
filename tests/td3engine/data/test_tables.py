"""DataFrames and Arrow tables, against the same rows in a CSV file."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.data.reading import read_log
from td3engine.data.types import ColumnNames, Limits
from tests.td3engine.data.kit import Row, refusal_of, rows

COLUMNS: dict[str, Any] = {"user_id": ["u", "v", "u"], "item_id": [3, 1, 2], "timestamp": [1, 2, 0]}
PARSED = [("u", "2", 0), ("u", "3", 1), ("v", "1", 2)]
PANDAS, POLARS, ARROW = pd.DataFrame(COLUMNS), pl.DataFrame(COLUMNS), pa.table(COLUMNS)


def arrow_with(**columns: Any) -> Any:
    return pa.table({name: columns.get(name, ARROW[name]) for name in ARROW.column_names})


class Exported:
    """A table of some other library."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        stream: object = ARROW.__arrow_c_stream__(requested_schema)
        return stream


class Derived(pd.DataFrame):  # type: ignore[misc]
    """A DataFrame of a library that extends pandas."""


@pytest.mark.parametrize(
    "table",
    [
        PANDAS,
        PANDAS.astype({"user_id": "category", "item_id": "category"}),
        PANDAS.astype({"user_id": object, "item_id": object, "timestamp": object}),
        PANDAS.astype({"user_id": "string", "item_id": "Int16", "timestamp": "Float64"}),
        PANDAS.astype({"item_id": "uint64", "timestamp": "float32"}),
        PANDAS.assign(timestamp=pd.to_datetime([1, 2, 0], unit="s")),
        PANDAS.assign(timestamp=pd.to_datetime([1, 2, 0], unit="s", utc=True).tz_convert("Asia/Tokyo")),  # noqa: E501
        PANDAS.assign(timestamp=["1", "2.0", "0"]),
        PANDAS.assign(note=[1, "x", [2]]),  # converted by no library
        PANDAS.set_axis([7, 7, 7]),
        PANDAS.set_axis([1, "mixed", None]),
        PANDAS.assign(x=["a", "b", "c"]).set_index("x"),
        pd.concat([PANDAS[:2], PANDAS[2:]]),
        pd.concat([PANDAS, PANDAS.assign(user_id="w")])[:3].astype({"user_id": "category"}),
        Derived(PANDAS),
        POLARS,
        POLARS.with_columns(pl.col("user_id").cast(pl.Categorical)),
        POLARS.with_columns(pl.col("user_id").cast(pl.Enum(["v", "u", "unused"]))),
        POLARS.with_columns(pl.col("user_id").cast(pl.Binary), pl.col("item_id").cast(pl.UInt8)),
        POLARS.with_columns(timestamp=pl.from_epoch("timestamp")),
        POLARS.with_columns(timestamp=pl.from_epoch("timestamp").dt.replace_time_zone("UTC")),
        POLARS.with_columns(pl.col("timestamp").cast(pl.Decimal(10, 2))),
        POLARS.with_columns(note=pl.Series([object()] * 3, dtype=pl.Object)),
        pl.concat([POLARS[:1], POLARS[1:]], rechunk=False),
        ARROW,
        ARROW.slice(0, 3).combine_chunks().to_batches()[0],
        ARROW.to_reader(max_chunksize=2),
        arrow_with(user_id=ARROW["user_id"].cast(pa.string_view())),
        arrow_with(user_id=ARROW["user_id"].cast(pa.large_string()).dictionary_encode()),
        arrow_with(user_id=pa.chunked_array([ARROW["user_id"].chunk(0).dictionary_encode()])),
        arrow_with(timestamp=ARROW["timestamp"].cast(pa.timestamp("s", "+05:30"))),
        Exported(),
    ],
)  # fmt: skip
def test_tables_in_every_dress_give_the_same_rows(table: Any) -> None:
    assert rows(read_log(table)) == PARSED


def test_dates_of_tables_are_days() -> None:
    days = pl.Series([1, 2, 0], dtype=pl.Int32).cast(pl.Date)
    assert read_log(POLARS.with_columns(timestamp=days)).times.tolist() == [0, 86400, 2 * 86400]


@pytest.mark.filterwarnings("ignore:The DataFrame has column names of mixed type")
def test_columns_can_be_named_by_labels_that_are_no_text() -> None:
    table = PANDAS.set_axis([0, 1, ("a", "b")], axis=1)
    names = ColumnNames(user="0", item="1", time="('a', 'b')")
    assert rows(read_log(table, columns=names)) == PARSED


def test_an_unused_or_repeated_category_is_no_id() -> None:
    users = pa.DictionaryArray.from_arrays([0, 2, 1], pa.array(["u", "u", "v", "never"]))
    assert read_log(arrow_with(user_id=users)).user_ids == ["u", "v"]


@pytest.mark.parametrize(
    ("table", "code", "row", "column"),
    [
        (PANDAS[:0], "empty_file", None, None),
        (POLARS[:0], "empty_file", None, None),
        (ARROW[:0], "empty_file", None, None),
        (PANDAS.assign(user_id=["u", None, "v"]), "bad_value", 2, "user_id"),
        (PANDAS.assign(item_id=pd.array([1, 2, None], dtype="Int64")), "bad_value", 3, "item_id"),
        (PANDAS.assign(timestamp=[1, np.nan, 2]), "bad_value", 2, "timestamp"),
        (PANDAS.assign(timestamp=pd.to_datetime(["2020", None, "2020"])), "bad_value", 2, "timestamp"),  # noqa: E501
        (PANDAS.assign(user_id=pd.Categorical(["u", None, "v"])), "bad_value", 2, "user_id"),
        (PANDAS.assign(user_id=["u", " ", "v"]), "bad_value", 2, "user_id"),
        (PANDAS.assign(user_id=["u", "\0", "v"]), "bad_value", 2, "user_id"),
        (PANDAS.assign(user_id=["u", "v" * 2000, "v"]), "field_too_long", 2, "user_id"),
        (PANDAS.assign(timestamp=["1", "x", "2"]), "bad_value", 2, "timestamp"),
        (PANDAS.assign(user_id=[1, "u", 2]), "bad_format", None, "user_id"),
        (PANDAS.assign(item_id=["i", 2.5, b"x"]), "bad_format", None, "item_id"),
        (PANDAS.assign(timestamp=[1, "x", 2]), "bad_format", None, "timestamp"),
        (PANDAS.assign(item_id=[1.0, 2.0, 3.0]), "bad_format", None, "item_id"),
        (PANDAS.assign(user_id=[[1], [2], [3]]), "bad_format", None, "user_id"),
        (PANDAS.assign(timestamp=pd.to_timedelta([1, 2, 3])), "bad_format", None, "timestamp"),
        (PANDAS.set_index("user_id"), "missing_column", None, "user"),
        (PANDAS.rename(columns={"timestamp": 0}), "missing_column", None, "time"),
        (pd.concat([PANDAS, PANDAS["user_id"]], axis=1), "duplicate_column", None, "user_id"),
        (PANDAS.assign(UserID=0), "duplicate_column", None, "user_id"),
        (POLARS.with_columns(user_id=pl.Series(["u", None, "v"])), "bad_value", 2, "user_id"),
        (POLARS.with_columns(user_id=pl.Series([[1], [], [2]])), "bad_format", None, "user_id"),
        (POLARS.with_columns(pl.col("item_id").cast(pl.Int128)), "bad_format", None, "item_id"),
        (POLARS.with_columns(user_id=pl.Series([object()] * 3, dtype=pl.Object)), "bad_format", None, "user_id"),  # noqa: E501
        (POLARS["user_id"], "bad_format", None, None),
        (arrow_with(user_id=pa.array([b"u", b"\xff", b"v"])), "bad_encoding", 2, "user_id"),
        (pa.table([*ARROW.columns, ARROW[0]], [*ARROW.column_names, "user_id"]), "duplicate_column", None, "user_id"),  # noqa: E501
    ],
)  # fmt: skip
def test_bad_tables_are_refused_with_their_place(
    table: Any, code: str, row: int | None, column: str | None
) -> None:
    error = refusal_of(table)
    assert (error.code, error.line, error.column) == (code, row, column)
    if row:
        assert f"row {row}" in error.message


def test_limits_on_rows_and_columns_hold() -> None:
    for table in (PANDAS, POLARS, ARROW):
        assert refusal_of(table, limits=Limits(max_rows=2)).code == "too_many_rows"
        assert refusal_of(table, limits=Limits(max_columns=2)).code == "too_many_columns"
        assert rows(read_log(table, limits=Limits(max_rows=3, max_columns=3))) == PARSED


def test_what_is_neither_a_path_nor_a_table_is_a_type_error() -> None:
    sources: list[Any] = [5, [ARROW], POLARS.lazy()]
    for source in sources:
        with pytest.raises(TypeError, match="read_log takes a path, a DataFrame or an Arrow table"):
            read_log(source)
    with pytest.raises(ValueError, match="no file format"):
        read_log(ARROW, format="csv")
    with pytest.raises(ValueError, match="no format 'xls'; there are parquet, jsonl, csv"):
        read_log(__file__, format="xls")


def test_a_path_may_be_text(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    PANDAS.to_csv(path, index=False)
    assert rows(read_log(str(path))) == PARSED


logs: st.SearchStrategy[list[Row]] = st.lists(
    st.tuples(
        st.sampled_from(["u", "v", "longer name", "é", "01"]),
        st.integers(-3, 12).map(str),
        st.integers(0, 5) | st.sampled_from([0.5, 2.25]),
    ),
    min_size=1,
    max_size=30,
)


@given(log=logs, batch=st.integers(1, 8), categories=st.booleans(), run=st.sampled_from([3, 2**21]))
@settings(max_examples=80, deadline=None)
def test_a_table_is_the_log_that_its_csv_file_is(
    tmp_path_factory: pytest.TempPathFactory,
    log: list[Row],
    batch: int,
    categories: bool,
    run: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "same.csv"
    users, items, times = (list(column) for column in zip(*log, strict=True))
    columns = {"user": users, "item": items, "time": [float(time) for time in times]}
    frame = pl.DataFrame(columns)
    frame.write_csv(path)
    expected = read_log(path)
    if categories:
        frame = frame.with_columns(pl.col("user", "item").cast(pl.Categorical))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("td3engine.data.readers.arrow.BATCH_ROWS", batch)
        patch.setattr("td3engine.data.readers.collect.RUN_ROWS", run)
        for table in (frame, frame.to_pandas(), frame.to_arrow()):
            found = read_log(table, limits=Limits(max_rows_in_memory=10))
            assert rows(found) == rows(expected)
            assert found.user_ids == expected.user_ids
            assert found.item_ids == expected.item_ids
            assert found.times.dtype == expected.times.dtype


def test_reading_a_file_imports_neither_library() -> None:
    script = "import sys, td3engine.data.reading; print({'pandas', 'polars', 'torch'} & set(sys.modules))"  # noqa: E501  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
