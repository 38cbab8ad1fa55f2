"""What bad logs are refused with: always a LogError that says where, never anything else."""

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.data.readers import rows as rows_module
from td3engine.data.reading import read_log
from td3engine.data.types import ColumnNames, Limits, LogError
from tests import lying_parquet
from tests.td3engine.data.kit import refusal

HEADER = b"user_id,item_id,timestamp\n"
GOOD = HEADER + b"u,i,1\n"
MANY = HEADER + b"u,i,1\n" * 2000
MIB = 2**20


@pytest.mark.parametrize(
    ("content", "code", "line", "column"),
    [
        (b"", "empty_file", None, None),
        (HEADER, "empty_file", None, None),
        (HEADER.strip(), "empty_file", None, None),
        (HEADER + b"\n\r\n\n", "empty_file", None, None),
        (b"\n" + GOOD, "missing_column", 1, "user"),
        (b"user_id,item_id\nu,i\n", "missing_column", 1, "time"),
        (b"1,2,3\n4,5,6\n", "missing_column", 1, "user"),
        (b"user_id,item_id,timestamp,item_id\n", "duplicate_column", 1, "item_id"),
        (b"user_id,item_id,timestamp,UserID\nu,i,1,2\n", "duplicate_column", 1, "user_id"),
        (GOOD.replace(b"\n", b"\r"), "bad_format", 1, None),
        (GOOD + b"M\xfcller,i,2\n", "bad_encoding", 3, None),
        (GOOD + b"u,i,\xc3", "bad_encoding", 3, None),
        (GOOD.decode().encode("utf-16"), "bad_encoding", 1, None),
        (GOOD + b"u,i,2\nu,\0,2\n", "bad_encoding", 4, None),
        (GOOD + b"u,i\n", "ragged_row", 3, None),
        (GOOD + b"\n\nu,i,2,4\n", "ragged_row", 5, None),
        (GOOD + b'u,"i,2\nu,k,3\n', "ragged_row", 3, None),
        (GOOD + b",i,2\n", "bad_value", 3, "user_id"),
        (GOOD + b"u,\" \",2\n", "bad_value", 3, "item_id"),
        (GOOD + b"\n\nu,i,\n", "bad_value", 5, "timestamp"),
        (GOOD + b'"two\nlines",i,2\nu,i,nan\n', "bad_value", 5, "timestamp"),
        (GOOD + b"u,i,inf\n", "bad_value", 3, "timestamp"),
        (GOOD + b"u,i,yesterday\n", "bad_value", 3, "timestamp"),
        (GOOD + b"u,i,2020-01-01\n", "bad_value", 3, "timestamp"),
        (GOOD + b"u,i,0x1F\n", "bad_value", 3, "timestamp"),
        (HEADER + b"u,i,2020-01-01\nu,i,5\n", "bad_value", 3, "timestamp"),
        (HEADER + b"u,i,2020-02-30\n", "bad_value", 2, "timestamp"),
        (GOOD + b"u" * 2000 + b",i,2\n", "field_too_long", 3, "user_id"),
        (GOOD + b"u,i," + b"1" * 2000 + b"\n", "field_too_long", 3, "timestamp"),
        (GOOD + b"u" * 5 * MIB + b",i,2\n", "field_too_long", 3, None),
        (GOOD + b'"a\nb",i,2\nu,"' + b"i\n" * 5 * MIB, "field_too_long", 5, None),
        (GOOD + b'u,"' + b"i\n" * 5 * MIB, "field_too_long", 3, None),
        (b"u" * 5 * MIB, "field_too_long", 1, None),
        (b",".join(b"c%d" % n for n in range(2000)) + b"\n", "too_many_columns", 1, None),
        (b"PK\x03\x04" + GOOD, "bad_format", None, None),
    ],
)  # fmt: skip
def test_bad_text_is_refused_with_its_place(
    tmp_path: Path, content: bytes, code: str, line: int | None, column: str | None
) -> None:
    error = refusal(tmp_path, content)
    assert (error.code, error.line, error.column) == (code, line, column)
    if line and line > 1:
        assert f"line {line}" in error.message


def test_a_missing_column_says_what_is_there_and_what_was_looked_for(tmp_path: Path) -> None:
    message = refusal(tmp_path, b"person,item_id,when\n1,2,3\n").message
    assert "'person', 'item_id', 'when'" in message
    assert "user_id" in message
    asked = refusal(tmp_path, GOOD, columns=ColumnNames(time="when"))
    assert (asked.code, "'when'" in asked.message) == ("missing_column", True)
    one_for_two = ColumnNames(user="item_id")
    assert refusal(tmp_path, GOOD, columns=one_for_two).code == "duplicate_column"


def test_a_fault_deep_in_a_large_packed_file_has_its_line(tmp_path: Path) -> None:
    lines = [b"user %d,item %d,%d\n" % (n, n % 7, n) for n in range(100_000)]
    for position, bad, code in [
        (99_000, b"user,item\n", "ragged_row"),
        (65_537, b"user,item,soon\n", "bad_value"),
        (99_999, b"us\xe9r,item,1\n", "bad_encoding"),
    ]:
        broken = [*lines[:position], bad, *lines[position + 1 :]]
        packed = zstandard.compress(HEADER + b"".join(broken))
        error = refusal(tmp_path, packed, "log.csv.zst")
        assert (error.code, error.line) == (code, position + 2)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bz2.compress, lzma.compress])
def test_damaged_packing_is_refused(tmp_path: Path, pack: Any) -> None:
    content = HEADER + b"".join(b"u%d,i,%d\n" % (n * n, n) for n in range(3000))
    packed = pack(content)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    for damaged in (packed[:-1], packed[: len(packed) // 2], packed + b"garbage", bytes(flipped)):
        assert refusal(tmp_path, damaged, "log.csv.gz").code in ("bad_format", "bad_encoding", "bad_value", "ragged_row")  # noqa: E501  # fmt: skip
    assert refusal(tmp_path, packed[:-1]).code == "bad_format"
    twice = refusal(tmp_path, pack(packed))
    assert (twice.code, "packed twice" in twice.message) == ("bad_format", True)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bz2.compress, lzma.compress])
def test_bombs_are_refused_early_and_in_little_memory(tmp_path: Path, pack: Any) -> None:
    before = pa.total_allocated_bytes()
    row = b"u,i,1," + b"x" * 100_000 + b"\n"
    bomb = pack(HEADER.replace(b"\n", b",note\n") + row * 1000)
    error = refusal(tmp_path, bomb)
    assert (error.code, "times its size" in error.message) == ("too_large", True)
    assert pa.total_allocated_bytes() - before < 64 * MIB


def test_a_row_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quoted line feeds make one row of everything, though each line and field is short."""
    monkeypatch.setattr(rows_module, "SLICE_ROWS", 4)
    error = refusal(tmp_path, GOOD + b'u,"i' + b'\n","' * MIB)
    assert (error.code, error.line) == ("field_too_long", 3)
    assert "quote" in error.message


def test_limits(tmp_path: Path) -> None:
    assert refusal(tmp_path, MANY, limits=Limits(max_bytes=100)).code == "too_large"
    assert refusal(tmp_path, MANY, limits=Limits(max_unpacked_bytes=100)).code == "too_large"
    assert refusal(tmp_path, MANY, limits=Limits(max_rows=1999)).code == "too_many_rows"
    assert refusal(tmp_path, MANY, limits=Limits(max_columns=2)).code == "too_many_columns"
    packed = refusal(tmp_path, gzip.compress(MANY, mtime=0), limits=Limits(max_unpacked_bytes=9000))
    assert packed.code == "too_large"
    path = tmp_path / "log.csv"
    path.write_bytes(MANY)
    exact = Limits(max_bytes=len(MANY), max_unpacked_bytes=len(MANY), max_rows=2000, max_columns=3)
    assert len(read_log(path, limits=exact).times) == 2000


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    good = {"user": ["u", "v"], "item": ["i", "j"], "time": [1, 2]}
    pq.write_table(pa.table(good | columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("column", "values", "code", "row"),
    [
        ("user", ["u", None], "bad_value", 2),
        ("item", ["i", ""], "bad_value", 2),
        ("item", ["\0", "j"], "bad_value", 1),
        ("time", [1, None], "bad_value", 2),
        ("time", [1.0, float("nan")], "bad_value", 2),
        ("time", ["1", "x"], "bad_value", 2),
        ("user", ["u", "v" * 2000], "field_too_long", 2),
        ("user", [1.0, 2.0], "bad_format", None),
        ("user", [["u"], ["v"]], "bad_format", None),
        ("item", [{"a": 1}, {"a": 2}], "bad_format", None),
        ("time", [True, False], "bad_format", None),
        ("user", pa.nulls(2), "bad_value", 1),
        ("user", pa.array([1, 2], pa.decimal128(9, 2)), "bad_format", None),
        ("user", pa.array([1.0, 2.0]).dictionary_encode(), "bad_format", None),
        ("user", [b"u", b"\xff"], "bad_encoding", 2),
        ("time", [b"1", b"\xff"], "bad_encoding", 2),
        ("item", pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int8())), "bad_format", None),
        ("item", pa.array([b"ab", b"cd"], pa.binary(2)), "bad_format", None),
        ("time", pa.array([1, 2], pa.duration("s")), "bad_format", None),
        ("time", pa.array([1, 2], pa.time32("s")), "bad_format", None),
        ("time", pa.array([1, None], pa.timestamp("us", "Asia/Tokyo")), "bad_value", 2),
        ("time", pa.array(["1", None]).dictionary_encode(), "bad_value", 2),
    ],
)
def test_bad_parquet_columns(
    tmp_path: Path, column: str, values: Any, code: str, row: int | None
) -> None:
    error = refusal(tmp_path, parquet(**{column: values}), "x.parquet")
    assert (error.code, error.line, error.column) == (code, row, column)


def test_bad_parquet_files(tmp_path: Path) -> None:
    good = parquet()
    unreadable_name = good.replace(b"\x18\x04user", b"\x18\x04use\x80")
    no_footer = b"PAR1" + bytes(200) + b"PAR1"
    for damaged in (good[:-5], good[:8], no_footer, MANY, unreadable_name):
        assert refusal(tmp_path, damaged, "x.parquet").code == "bad_format"
    assert refusal(tmp_path, gzip.compress(good, mtime=0), "x.parquet.gz").code == "bad_format"
    unchecked = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"v"]).buffers())
    assert refusal(tmp_path, parquet(user=unchecked)).code == "bad_encoding"
    nothing = parquet(
        user=pa.array([], "string"), item=pa.array([], "string"), time=pa.array([], "int64")
    )
    assert refusal(tmp_path, nothing).code == "empty_file"
    million = np.zeros(MIB, np.int64)
    large = parquet(user=million, item=million, time=million)
    assert refusal(tmp_path, large, limits=Limits(max_rows=MIB - 1)).code == "too_many_rows"
    assert refusal(tmp_path, large, limits=Limits(max_unpacked_bytes=50)).code == "too_large"


def test_parquet_footers_that_promise_too_much_or_too_little(tmp_path: Path) -> None:
    content = parquet(user=["x" * 1000] * 2000, item=["i"] * 2000, time=[1] * 2000)
    assert refusal(tmp_path, content, limits=Limits(max_unpacked_bytes=999)).code == "too_large"
    rows = Limits(max_rows=150)
    assert refusal(tmp_path, lying_parquet.claiming_rows(200), limits=rows).code == "too_many_rows"
    missing = refusal(tmp_path, lying_parquet.claiming_rows(200))
    assert (missing.code, "promises 200 rows, there are 100" in missing.message) == (
        "bad_format",
        True,
    )


@given(
    kind=st.sampled_from(["csv", "csv.gz", "csv.zst"]),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=4)), max_size=4),
    cut=st.none() | st.integers(0, 10**6),
)
@settings(max_examples=300, deadline=None)
def test_no_damage_leads_to_anything_but_rows_or_a_log_error(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    edits: list[tuple[int, bytes]],
    cut: int | None,
) -> None:
    """Text only: what a damaged Parquet file does is pyarrow's."""
    plain = HEADER + b"".join(b'"u%d",i%d,%d\n' % (n % 5, n, n) for n in range(40))
    content = {
        "csv": plain,
        "csv.gz": gzip.compress(plain, mtime=0),
        "csv.zst": zstandard.compress(plain),
    }[kind]
    for position, piece in edits:
        start = position % (len(content) + 1)
        content = content[:start] + piece + content[start + len(piece) :]
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(content if cut is None else content[: cut % (len(content) + 1)])
    try:
        log = read_log(path)
    except LogError as error:
        assert error.message
    else:
        assert len(log.times) == len(log.user_codes) == len(log.item_codes) > 0


@given(content=st.text(st.sampled_from('ui,;\t"\n\r 1.é'), max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_text_at_all_leads_to_anything_but_rows_or_a_log_error(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(HEADER + content.encode())
    try:
        read_log(path)
    except LogError as error:
        assert error.code == "empty_file" or error.line
