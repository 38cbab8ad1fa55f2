"""Files as other tools and public data sets write them."""

import json
from datetime import date, datetime, time
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from td3engine.data.reading import read_log
from td3engine.data.types import ColumnNames, Limits, LogError
from tests.td3engine.data.kit import read_bytes, refusal, refusal_of, rows

SECONDS = {"user_id": ["u", "v", "u"], "item_id": ["i", "j", "k"], "timestamp": [1, 2, 0]}
PARSED = [("u", "k", 0), ("u", "i", 1), ("v", "j", 2)]
DAY = 86_400


def parquet(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    path = folder / "log.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize(
    ("ids", "times"),
    [
        ("DELTA_BYTE_ARRAY", "DELTA_BINARY_PACKED"),
        ("DELTA_LENGTH_BYTE_ARRAY", "PLAIN"),
        ("PLAIN", "BYTE_STREAM_SPLIT"),
    ],
)
@pytest.mark.parametrize("page", ["1.0", "2.0"])
def test_parquet_of_every_encoding_is_read(tmp_path: Path, ids: str, times: str, page: str) -> None:
    encodings = {"user_id": ids, "item_id": ids, "timestamp": times}
    path = parquet(
        tmp_path, SECONDS, use_dictionary=False, column_encoding=encodings, data_page_version=page
    )
    assert rows(read_log(path)) == PARSED


def test_moments_of_96_bits_keep_their_order_beyond_2262(tmp_path: Path) -> None:
    moments = [datetime(2020, 1, 1), datetime(1500, 1, 1), datetime(9999, 12, 31)]
    columns = {**SECONDS, "user_id": ["u"] * 3, "timestamp": pa.array(moments, pa.timestamp("us"))}
    path = parquet(tmp_path, columns, use_deprecated_int96_timestamps=True)
    assert pq.ParquetFile(path).metadata.schema.column(2).physical_type == "INT96"
    expected = [int((moment - datetime(1970, 1, 1)).total_seconds()) for moment in moments]
    assert read_log(path).times.tolist() == sorted(expected)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_infinite_moments_are_refused_by_row(tmp_path: Path, sign: int, unit: str) -> None:
    moments = pa.array([0, sign * (2**63 - 1), 1], pa.int64()).view(pa.timestamp(unit))
    columns = {**SECONDS, "timestamp": moments}
    sources = [pa.table(columns)]
    if unit != "s":  # Parquet has no such moments
        sources.append(parquet(tmp_path, columns))
    for source in sources:
        error = refusal_of(source)
        assert (error.code, error.line, error.column) == ("bad_value", 2, "timestamp")
        assert "infinite" in error.message


def test_infinite_days_are_refused_by_row() -> None:
    days = pa.array([0, 1, 2**31 - 1], pa.int32()).view(pa.date32())
    error = refusal_of(pa.table({**SECONDS, "timestamp": days}))
    assert (error.code, error.line) == ("bad_value", 3)


def test_ids_of_other_types(tmp_path: Path) -> None:
    uuids = [UUID(int=n) for n in (7, 2**100, 7)]
    columns = {
        **SECONDS,
        "user_id": pa.array([each.bytes for each in uuids], pa.uuid()),
        "item_id": pa.array([1, 10**17, 3], pa.decimal128(18, 0)),
    }
    expected = [(str(uuids[0]), "3", 0), (str(uuids[0]), "1", 1), (str(uuids[1]), str(10**17), 2)]
    assert rows(read_log(parquet(tmp_path, columns))) == expected
    assert rows(read_log(pa.table(columns))) == expected


@pytest.mark.parametrize(
    ("ids", "remedy"),
    [
        (pa.array([1.0, 2.0, 3.0]), "Int64"),
        (pa.array([1, 2, 3], pa.decimal128(9, 2)), "cast it to whole numbers or to text"),
        (pa.array([b"ab"] * 3, pa.binary(2)), "cast it to text"),
        (pa.array([True, False, True]), "cast it to text"),
    ],
)
def test_ids_that_cannot_be_read_are_refused_with_the_remedy(ids: Any, remedy: str) -> None:
    error = refusal_of(pa.table({**SECONDS, "item_id": ids}))
    assert (error.code, error.column) == ("bad_format", "item_id")
    assert remedy in error.message


def test_empty_frames_hold_no_interactions(tmp_path: Path) -> None:
    for frame in (pd.DataFrame({name: [] for name in SECONDS}), pl.DataFrame(SECONDS).clear()):
        assert refusal_of(frame).code == "empty_file"
    pd.DataFrame({name: [] for name in SECONDS}).to_parquet(tmp_path / "empty.parquet")
    nulls = {name: pa.nulls(0) for name in SECONDS}
    for path in (tmp_path / "empty.parquet", parquet(tmp_path, nulls)):
        error = refusal_of(path)
        assert (error.code, error.message) == ("empty_file", "there are no interactions")


def test_a_name_that_nobody_needs_may_occur_twice(tmp_path: Path) -> None:
    arrays = [*map(pa.array, SECONDS.values()), pa.array([1, 2, 3]), pa.array([4, 5, 6])]
    table = pa.table(arrays, [*SECONDS, "note", "note"])
    pq.write_table(table, tmp_path / "log.parquet")
    frame = table.to_pandas()
    csv = b"user_id,note,item_id,note,timestamp\nu,,i,,1\nv,,j,,2\nu,,k,,0\n"
    lines = b'{"user_id": "u", "note": 1, "note": 2, "item_id": "k", "timestamp": 0}'
    assert rows(read_log(tmp_path / "log.parquet")) == PARSED
    assert rows(read_log(table)) == PARSED
    assert rows(read_log(frame)) == PARSED
    assert rows(read_bytes(tmp_path, csv)) == PARSED
    assert rows(read_bytes(tmp_path, lines, "log.jsonl")) == PARSED[:1]
    twice = lines.replace(b"note", b"item_id", 1)
    assert refusal(tmp_path, twice, "log.jsonl").code == "duplicate_column"


LISTS = {
    "user_id": ["u", "v", "w"],
    "item_id": [["k", "i"], ["j"], []],
    "timestamp": [[0, 1], [2], []],
}


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_a_list_a_user_is_its_history(tmp_path: Path, kind: Any) -> None:
    columns = LISTS | {"item_id": pa.array(LISTS["item_id"], kind(pa.string()))}
    for source in (
        parquet(tmp_path, columns),
        pa.table(columns),
        pl.DataFrame(LISTS),
        pd.DataFrame(LISTS),
    ):
        assert rows(read_log(source)) == PARSED


def test_the_order_of_a_list_is_the_time_where_there_is_none(tmp_path: Path) -> None:
    columns = {name: LISTS[name] for name in ("user_id", "item_id")}
    expected = [("u", "k", 0), ("u", "i", 1), ("v", "j", 0)]
    for source in (
        parquet(tmp_path, columns),
        pa.table(columns),
        pl.DataFrame(columns),
        pd.DataFrame(columns),
    ):
        log = read_log(source)
        assert rows(log) == expected
        assert log.reading is not None
        assert log.reading.times == "positions in lists"


def test_lists_of_numbers_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("td3engine.data.readers.arrow.LISTS_AT_ONCE", 2)
    monkeypatch.setattr("td3engine.data.readers.arrow.BATCH_ROWS", 3)
    columns = {
        "user_id": [1, 2, 3, 1],
        "item_id": [[7, 8], [9], None, [5, 6, 7, 8]],
        "timestamp": [[1, 2], [3], None, [9, 8, 7, 6]],
    }
    expected = [("1", "7", 1), ("1", "8", 2), ("1", "8", 6), ("1", "7", 7), ("1", "6", 8),
                ("1", "5", 9), ("2", "9", 3)]  # fmt: skip
    assert rows(read_log(parquet(tmp_path, columns))) == expected
    assert rows(read_log(pa.table(columns))) == expected


def test_lists_of_unequal_length_are_refused_by_row(tmp_path: Path) -> None:
    columns = LISTS | {"timestamp": [[0, 1], [2, 3], []]}
    error = refusal_of(parquet(tmp_path, columns))
    assert (error.code, error.line) == ("bad_value", 2)
    assert "1 items and 2 times" in error.message
    scalar = refusal_of(pa.table(LISTS | {"timestamp": [1, 2, 3]}), columns={"time": "timestamp"})
    assert (scalar.code, scalar.column) == ("bad_format", "timestamp")
    within = refusal_of(pa.table(LISTS | {"item_id": [["k", ""], ["j"], []]}))
    assert (within.code, within.line, within.column) == ("bad_value", 1, "item_id")


# Without a header, as these sets are published (the rows are made up); what reads them, and the
# first row.
HEADERLESS: dict[str, tuple[bytes, dict[str, Any], tuple[str, str, float]]] = {
    "u.data": (
        b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
        {"columns": {"user": 1, "item": 2, "time": 4}},
        ("186", "302", 891717742),
    ),
    "ratings.dat": (
        b"1::1193::5::978300760\n1::661::3::978302109\n",
        {"columns": {"user": 1, "item": 2, "time": 4}, "delimiter": "::"},
        ("1", "1193", 978300760),
    ),
    "UserBehavior.csv": (
        b"1,2268318,2520377,pv,1511544070\n1,2333346,2520771,pv,1511561733\n",
        {"columns": {"user": 1, "item": 2, "time": 5}},
        ("1", "2268318", 1511544070),
    ),
    "Gowalla_totalCheckins.txt": (
        b"0\t2010-10-19T23:55:27Z\t30.2359\t-97.7951\t22847\n"
        b"0\t2010-10-18T22:17:43Z\t30.2691\t-97.7493\t420315\n",
        {"columns": {"user": 1, "item": 5, "time": 2}},
        ("0", "420315", 1287440263),
    ),
    "dataset_TSMC2014_NYC.txt": (
        b"470\t49bbd6c0\t4bf58dd8\tArts\t40.719\t-74.002\t-240\tTue Apr 03 18:00:09 +0000 2012\n"
        b"979\t4a43c0aa\t4bf58dd8\tBridge\t40.606\t-74.044\t-240\tTue Apr 03 18:00:25 +0000 2012\n",
        {
            "columns": {"user": 1, "item": 2, "time": 8},
            "time_format": "%a %b %d %H:%M:%S %z %Y",
        },
        ("470", "49bbd6c0", 1333476009),
    ),
    "behaviors.tsv": (
        b"1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782\n"
        b"2\tU91836\t11/12/2019 6:11:30 PM\tN31739 N6072\n",
        {
            "columns": {"user": 2, "item": 1, "time": 3},
            "time_format": "%m/%d/%Y %I:%M:%S %p",
        },
        ("U13740", "1", 1573463158),
    ),
    "blanks.txt": (
        b"  7   12  1700000000\n  8   13  1700000001  \n",
        {"columns": {"user": 1, "item": 2, "time": 3}, "delimiter": "blanks"},
        ("7", "12", 1700000000),
    ),
}


@pytest.mark.parametrize("name", HEADERLESS)
def test_files_without_a_header(tmp_path: Path, name: str) -> None:
    content, options, first = HEADERLESS[name]
    log = read_bytes(tmp_path, content, name, **options)
    assert rows(log)[0] == first
    assert len(log.times) == 2
    assert log.reading is not None
    assert log.reading.header is False


@pytest.mark.parametrize("name", [name for name in HEADERLESS if name != "behaviors.tsv"])
def test_a_refusal_prints_the_options_that_would_work(tmp_path: Path, name: str) -> None:
    """As a shell takes them, so that they can be pasted; MIND's items are no column."""
    content, options, _ = HEADERLESS[name]
    message = refusal(tmp_path, content, name).message
    for role, position in options["columns"].items():
        assert f"--columns {role}={position}" in message
    if "delimiter" in options:
        assert f"--delimiter {options['delimiter']}" in message
    if "time_format" in options:
        assert f"--time-format '{options['time_format']}'" in message


def test_a_header_of_unusual_names_is_read_as_advised(tmp_path: Path) -> None:
    content = b"person;score;track;when\nu;0.5;i;1700000000\nv;0.25;j;1700000001\n"
    message = refusal(tmp_path, content).message
    assert message.endswith("--columns user=person --columns item=track --columns time=when")
    names = ColumnNames(user="person", item="track", time="when")
    assert len(read_bytes(tmp_path, content, columns=names).times) == 2


def test_positions_and_names_with_and_without_a_header(tmp_path: Path) -> None:
    csv = b"user_id,item_id,timestamp\nu,i,1\n"
    by_position = {"user": 1, "item": 2, "time": 3}
    assert len(read_bytes(tmp_path, csv, columns=by_position, header=True).times) == 1
    assert len(read_bytes(tmp_path, csv, columns={"time": 3}).times) == 1
    # All by position: the first line is a row, whose time is none.
    error = refusal(tmp_path, csv, columns=by_position)
    assert (error.code, error.line, error.column) == ("bad_value", 1, "3")
    outside = refusal(tmp_path, csv, columns={"time": 4})
    assert (outside.code, "column 4 of 3" in outside.message) == ("missing_column", True)
    numbered = b"1,2,3\nu,i,5\n"
    assert rows(read_bytes(tmp_path, numbered, columns=by_position, header=True)) == [("u", "i", 5)]
    table = pa.table({"a": ["u"], "b": ["i"], "c": [5]})
    assert rows(read_log(table, columns=by_position)) == [("u", "i", 5)]


def test_quotes_mean_nothing_to_long_delimiters(tmp_path: Path) -> None:
    content = b'user::item::time\n"u::i"::1\nv::j\r::2\n'.replace(b"\r", b"")
    assert rows(read_bytes(tmp_path, content)) == [('"u', 'i"', 1), ("v", "j", 2)]
    stand_in = refusal(tmp_path, content + b"x\x1fy::i::3\n")
    assert (stand_in.code, "U+001F" in stand_in.message) == ("bad_format", True)


@pytest.mark.parametrize(
    ("written", "time_format", "expected"),
    [
        ("2017-09-08 10:44:24 UTC", None, 1504867464),
        ("2017-09-08 10:44:24 GMT", None, 1504867464),
        ("Fri Sep 08 10:44:24 -0700 2017", "%a %b %d %H:%M:%S %z %Y", 1504892664),
        ("08.09.2017 10:44", "%d.%m.%Y %H:%M", 1504867440),
        ("8 September 2017", "%d %B %Y", 1504828800),
        ("08/Sep/17 12:00:00 a.m.", "%d/%b/%y %I:%M:%S %p", 1504828800),
        ("20170908104424.25", "%Y%m%d%H%M%S.%f", 1504867464.25),
        ("2017-09-08 10:44:24+05:30", "%Y-%m-%d %H:%M:%S%z", 1504847664),
    ],
)
def test_written_times(
    tmp_path: Path, written: str, time_format: str | None, expected: float
) -> None:
    content = f'user,item,time\nu,i,"{written}"\n'.encode()
    assert read_bytes(tmp_path, content, time_format=time_format).times.tolist() == [expected]


@pytest.mark.parametrize(
    ("written", "time_format"),
    [
        ("29/02/2023", "%d/%m/%Y"),
        ("01/13/2023", "%d/%m/%Y"),
        ("01/01/2023 24:00", "%d/%m/%Y %H:%M"),
        ("01/01/2023 13:00 PM", "%d/%m/%Y %I:%M %p"),
        ("01/01/2023 x", "%d/%m/%Y"),
        ("Foo 1, 2023", "%b %d, %Y"),
    ],
)
def test_times_that_are_not_of_the_format_are_refused(
    tmp_path: Path, written: str, time_format: str
) -> None:
    content = f'user,item,time\nu,i,"{written}"\n'.encode()
    error = refusal(tmp_path, content, time_format=time_format)
    assert (error.code, error.line, error.column) == ("bad_value", 2, "time")
    assert repr(time_format) in error.message


@pytest.mark.parametrize("wrong", ["%d/%m", "%Q %Y %m %d", "%Y %m %d %d", "%Y %m %d %I"])
def test_wrong_formats_are_refused(tmp_path: Path, wrong: str) -> None:
    error = refusal(tmp_path, b"user,item,time\nu,i,1\n", time_format=wrong)
    assert (error.code, "format of times" in error.message) == ("bad_value", True)


def test_an_unknown_way_of_writing_times_is_refused_with_the_format(tmp_path: Path) -> None:
    content = b"user,item,time\nu,i,03/04/2020 10:00\nu,j,25/04/2020 10:00\n"
    message = refusal(tmp_path, content).message
    assert "--time-format '%d/%m/%Y %H:%M' would read it" in message
    assert "(or" not in message, "the second row tells day from month"


KUAIRAND = b"""user_id,video_id,date,hourmin,time_ms,is_click
7,third,20220408,2100,1649451600000,1
7,first,20220408,900,1649408400000,1
7,second,20220408,1200,1649419200000,1
7,fourth,20220409,800,1649491200000,1
"""


def test_of_several_time_columns_the_finest_is_taken_and_the_others_are_named(
    tmp_path: Path,
) -> None:
    as_json = "\n".join(
        json.dumps(dict(zip(KUAIRAND.decode().split()[0].split(","), line.split(","), strict=True)))
        for line in KUAIRAND.decode().split()[1:]
    )
    frame = pd.read_csv(__import__("io").BytesIO(KUAIRAND))
    frame.to_parquet(tmp_path / "log.parquet")
    for source in (
        read_bytes(tmp_path, KUAIRAND),
        read_bytes(tmp_path, as_json.encode(), "log.jsonl"),
        read_log(frame),
        read_log(pl.DataFrame(frame)),
        read_log(pa.Table.from_pandas(frame)),
        read_log(tmp_path / "log.parquet"),
    ):
        assert [item for _, item, _ in rows(source)] == ["first", "second", "third", "fourth"]
        assert source.reading is not None
        assert source.reading.columns == ("user_id", "video_id", "time_ms")
        assert source.reading.other_times == ["date"]
        assert "finer" in source.reading.time_reason or "more" in source.reading.time_reason
        assert source.reading.times == "milliseconds since 1970"


def test_a_column_of_other_days_is_not_taken_for_the_time(tmp_path: Path) -> None:
    """An account's creation is finer than the day of the event, and something else."""
    content = KUAIRAND.replace(b"16494", b"15494")
    log = read_bytes(tmp_path, content)
    assert log.reading is not None
    assert log.reading.columns[2] == "date"
    assert log.reading.other_times == ["time_ms"]
    assert log.reading.times == "days written YYYYMMDD"


def test_a_day_and_a_time_of_day_are_joined_when_asked(tmp_path: Path) -> None:
    expected = [("7", item, time) for item, time in
                [("first", 1649408400), ("second", 1649419200), ("third", 1649451600),
                 ("fourth", 1649491200)]]  # fmt: skip
    log = read_bytes(tmp_path, KUAIRAND, columns={"time": "date+hourmin"})
    assert rows(log) == expected
    assert log.reading is not None
    assert log.reading.columns[2] == "date+hourmin"
    days = [date(2022, 4, 8), date(2022, 4, 8), date(2022, 4, 9)]
    clocks = [time(21), time(9, 30, 15), time(0)]
    columns = {"user": ["u"] * 3, "item": ["a", "b", "c"], "day": days, "clock": clocks}
    for source in (pa.table(columns), parquet(tmp_path, columns), pl.DataFrame(columns)):
        found = rows(read_log(source, columns={"time": "day+clock"}))
        assert found == [("u", "b", 1649410215), ("u", "a", 1649451600), ("u", "c", 1649462400)]
    one = refusal_of(pa.table(columns), columns={"time": "clock"})
    assert "--columns time=DAY+clock" in one.message
    written = b"user,item,day,clock\nu,i,08/04/2022,9:30 PM\n"
    joined = read_bytes(
        tmp_path, written, columns={"time": "day+clock"}, time_format="%d/%m/%Y %I:%M %p"
    )
    assert joined.times.tolist() == [1649453400]


def write_parts(folder: Path) -> Path:
    """As Spark leaves them, with marks and checksums beside."""
    folder.mkdir()
    for nth, (user, item, moment) in enumerate(zip(*SECONDS.values(), strict=True)):
        columns = {"user_id": [user], "item_id": [item], "timestamp": [moment]}
        pq.write_table(pa.table(columns), folder / f"part-0000{nth}-x.snappy.parquet")
        (folder / f".part-0000{nth}-x.snappy.parquet.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    return folder


def test_a_folder_or_several_files_are_one_log(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "log.parquet")
    for source in (folder, sorted(folder.glob("part*")), [str(p) for p in folder.glob("part*")]):
        log = read_log(source)
        assert rows(log) == PARSED
        assert log.reading is not None
        assert log.reading.files == 3
    lines = tmp_path / "lines"
    lines.mkdir()
    for nth, row in enumerate(zip(*SECONDS.values(), strict=True)):
        (lines / f"{nth}.jsonl").write_text(json.dumps(dict(zip(SECONDS, row, strict=True))))
    assert rows(read_log(lines)) == PARSED
    mixed = [lines / "0.jsonl", lines / "2.jsonl", sorted(folder.glob("part*"))[1]]
    assert rows(read_log(mixed)) == PARSED


def test_several_files_are_refused_with_the_name_of_the_one(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "a.csv").write_text("user,item,time,when\nu,i,1,5\n")
    (folder / "b.csv").write_text("user,item,time,when\nu,i,2,6\nu,i,soon,7\n")
    error = refusal_of(folder)
    assert (error.code, error.line, error.column) == ("bad_value", 3, "time")
    assert error.message.startswith("b.csv: line 3")
    (folder / "b.csv").write_text("user,item,when\nu,i,6\n")
    assert refusal_of(folder).message.startswith("b.csv: no time column: looked for a column named")
    (folder / "b.csv").write_text("user,item,time\nu,i,2020-01-01\n")
    assert "b.csv: line 2, column 'time' is not a number" in refusal_of(folder).message
    (folder / "b.csv").write_text("")
    assert refusal_of(folder).message == "b.csv: the file is empty"
    assert refusal_of([]).code == "empty_file"


def test_limits_count_all_files_together(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "log")
    sizes = [path.stat().st_size for path in folder.glob("part*")]
    assert refusal_of(folder, limits=Limits(max_rows=2)).code == "too_many_rows"
    assert refusal_of(folder, limits=Limits(max_files=2)).code == "too_large"
    assert refusal_of(folder, limits=Limits(max_bytes=sum(sizes) - 1)).code == "too_large"
    assert len(read_log(folder, limits=Limits(max_bytes=sum(sizes), max_rows=3)).times) == 3
    text = tmp_path / "text"
    text.mkdir()
    for name in ("a.csv", "b.csv"):
        (text / name).write_text("user,item,time\nu,i,1\n")
    assert refusal_of(text, limits=Limits(max_unpacked_bytes=30)).code == "too_large"
    assert len(read_log(text, limits=Limits(max_unpacked_bytes=42)).times) == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PK\x03\x04" + bytes(99), "zip archive"),
        (bytes(257) + b"ustar" + bytes(99), "tar archive"),
        (b"ARROW1" + bytes(99), "Arrow IPC"),
        (b"SQLite format 3\0" + bytes(99), "SQLite"),
        (b"\x89HDF\r\n" + bytes(99), "HDF5"),
    ],
)
def test_what_is_no_log_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    error = refusal(tmp_path, content)
    assert (error.code, told in error.message) == ("bad_format", True)


def test_a_preview_has_the_first_rows_as_they_are_written(tmp_path: Path) -> None:
    log = read_bytes(tmp_path, KUAIRAND.replace(b",", b";"))
    assert log.reading is not None
    assert log.reading.delimiter == ";"
    assert log.reading.header
    assert log.reading.first_rows[0] == ("7", "third", "1649451600000")
    assert len(log.reading.first_rows) == 4


def test_wrong_options_of_a_dialect_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="delimiter"):
        read_bytes(tmp_path, KUAIRAND, delimiter="")
    with pytest.raises(ValueError, match="extra"):
        read_bytes(tmp_path, KUAIRAND, columns={"rating": "x"})
    with pytest.raises(LogError):
        read_bytes(tmp_path, KUAIRAND, delimiter="|")
