"""The quick way of reading text against csv's rules, and temporary files against memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from td3engine.data.filtering import filter_statistics
from td3engine.data.normalised import read_normalised, write_normalised
from td3engine.data.readers import blocks, collect, rows
from td3engine.data.readers.batches import collect_batches
from td3engine.data.readers.format import FileSource
from td3engine.data.readers.text import text_batches
from td3engine.data.reading import read_log
from td3engine.data.types import Interactions, Limits, LogError
from tests.effort import effort

HEADER = "user_id,note,item_id,timestamp"
LIMITS = Limits(max_field_length=12)

plain = st.sampled_from(["u", "v", "longer name", "é", " x ", "0x1", "7"])
odd = st.sampled_from(["", " ", '"q"', '"a,b"', '"two\nlines"', '"\r\n"', 'in"side', '"open', "\t"])
numbers = st.sampled_from(["0", "-3", "12", " 4", "5.0", "2.5", "9223372036854775808"])
dates = st.sampled_from(["2020-01-02", "2020-01-02T03:04:05Z", "2020-01-02 03:04:05.25"])
good_rows = st.tuples(plain, plain, plain, numbers).map(",".join)
odd_rows = st.lists(plain | odd | numbers, max_size=6).map(",".join)
line_ends = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n"])


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Mostly rows that can be read, with some that cannot; or rows with dates."""
    times = draw(st.sampled_from([numbers, dates, st.integers(0, 99).map(str)]))
    good = st.tuples(plain, plain, plain, times).map(",".join)
    kinds = good if draw(st.booleans()) else st.one_of(good, good, good_rows, odd_rows)
    end = draw(st.sampled_from(["\n", "\r\n"]))
    ends = st.just(end) if draw(st.booleans()) else line_ends
    lines = draw(st.lists(st.tuples(kinds, ends), max_size=25))
    content = HEADER + end + "".join(line + stop for line, stop in lines)
    return (content if draw(st.booleans()) else content.rstrip("\r\n")).encode()


def outcome(path: Path, *, quick: bool) -> object:
    """What a file is read as, in a form that can be compared."""
    try:
        source = FileSource(path, limits=LIMITS)
        batches = text_batches(source, delimiter=",", quick=quick)
        log, _ = collect_batches(batches, LIMITS)
    except LogError as error:
        return (error.code, error.message, error.line, error.column)
    return as_lists(log)


def as_lists(log: Interactions) -> object:
    columns = (log.user_codes, log.item_codes, log.times)
    return [(str(c.dtype), c.tolist()) for c in columns], log.user_ids, log.item_ids


@contextmanager
def sizes(**values: int) -> Iterator[None]:
    """Modules' constants, changed for a while."""
    homes = {"BLOCK_BYTES": blocks, "SLICE_ROWS": rows, "BATCH_ROWS": rows, "RUN_ROWS": collect, "BUCKET_ROWS": collect, "RUNS_AT_ONCE": collect}  # noqa: E501  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(homes[name], name, value)
        yield


@given(
    content=files(),
    block=st.sampled_from([1, 7, 40, 2**20]),
    pieces=st.sampled_from([(1, 2), (3, 6), (256, 2**16)]),
)
@effort(400)
def test_the_quick_way_reads_and_refuses_what_csv_does(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, block: int, pieces: tuple[int, int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "ways.csv"
    path.write_bytes(content)
    with sizes(BLOCK_BYTES=block, SLICE_ROWS=pieces[0], BATCH_ROWS=pieces[1]):
        assert outcome(path, quick=True) == outcome(path, quick=False)


def test_the_quick_way_is_taken_again_after_a_quote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [b"user,item,time\n", *(b"u%d,i%d,%d\n" % (n, n, n) for n in range(900))]
    lines[450] = b'u,"two\nlines",449\n'
    path = tmp_path / "log.csv"
    path.write_bytes(b"".join(lines))
    taken: list[bool] = []

    def watched(block: bytes, layout: rows.Layout) -> object:
        columns = rows_of(block, layout)
        taken.append(columns is not None)
        return columns

    rows_of = rows.plain_columns
    monkeypatch.setattr(rows, "plain_columns", watched)
    with sizes(BLOCK_BYTES=1000):
        log = read_log(path)
    assert taken.count(False) == 1
    assert taken[0]
    assert taken[-1]
    assert "two\nlines" in log.item_ids
    assert len(log.times) == 900


def test_a_fault_after_a_quoted_line_feed_has_its_line(tmp_path: Path) -> None:
    lines = [b"user,item,time\n", *(b"u%d,i%d,%d\n" % (n, n, n) for n in range(900))]
    lines[450] = b'u,"two\nlines",449\n'
    lines[800] = b"u,i,soon\n"
    path = tmp_path / "log.csv"
    path.write_bytes(b"".join(lines))
    with sizes(BLOCK_BYTES=1000), pytest.raises(LogError) as caught:
        read_log(path)
    assert (caught.value.line, caught.value.column) == (802, "time")


logs = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=40
)


@given(log=logs, run=st.integers(1, 12), bucket=st.integers(1, 12), floats=st.booleans())
@effort(150)
def test_a_log_in_temporary_files_is_the_same_log(
    tmp_path_factory: pytest.TempPathFactory,
    log: list[tuple[int, int, int]],
    run: int,
    bucket: int,
    floats: bool,
) -> None:
    folder = tmp_path_factory.mktemp("files")
    users, items, times = (np.array(column) for column in zip(*log, strict=True))
    path = folder / "log.parquet"
    columns = {"user": users, "item": items, "time": times + 0.5 * floats * (users == 3)}
    pq.write_table(pa.table(columns), path)
    scratch = folder / "scratch"
    scratch.mkdir()
    expected = read_log(path)
    small = sizes(RUN_ROWS=run, BUCKET_ROWS=bucket, RUNS_AT_ONCE=2)
    with small, pytest.MonkeyPatch.context() as patch:
        patch.setattr("td3engine.data.readers.arrow.BATCH_ROWS", 3)
        found = read_log(path, limits=Limits(max_rows_in_memory=1), scratch=scratch)
    assert as_lists(found) == as_lists(expected)
    assert isinstance(found.times, np.memmap) == (len(log) > 1)
    assert not list(scratch.iterdir())
    filtered = [
        filter_statistics(one, min_user_interactions=2, min_item_interactions=3)
        for one in (found, expected)
    ]
    assert filtered[0] == filtered[1]
    out = folder / "out.parquet"
    assert write_normalised(found, out) == write_normalised(expected, out)


def test_a_dictionary_that_holds_a_text_twice_gives_one_id() -> None:
    """As a Parquet file of some other writer may have it."""
    users = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array(["u", "v", "u"]))
    items = pa.array(["i", "j", "k"])
    for runs in (1, 2):
        collector = collect.Collector(Limits())
        for _ in range(runs):
            collector.add(users, items, pa.array([3, 2, 1]))
            with sizes(RUN_ROWS=1):
                collector.add(users, items, pa.array([3, 2, 1]))
        log = collector.finish()
        assert (log.user_ids, log.item_ids) == (["u", "v"], ["k", "i", "j"])
        assert len(log.times) == 6 * runs


def test_more_ids_than_a_row_group_has_rows_are_written_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "log.csv", tmp_path / "out.parquet"
    rows = "".join(f"u{n // 2},i{n % 3},{n}\n" for n in range(10))
    source.write_text("user,item,time\n" + rows)
    log = read_log(source)
    monkeypatch.setattr("td3engine.data.normalised.ROW_GROUP_ROWS", 4)
    write_normalised(log, target)
    assert as_lists(read_normalised(target)) == as_lists(log)
    with pq.ParquetFile(target) as opened:
        group = opened.metadata.row_group(0)
    encodings = [group.column(column).encodings for column in range(2)]
    assert ["RLE_DICTIONARY" in some for some in encodings] == [False, True]


def test_the_filter_is_counted_as_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("td3engine.data.filtering.ROWS_AT_ONCE", 2)
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\nu,i,1\nu,i,2\nu,j,3\nv,i,4\nv,k,5\nw,i,6\nw,i,6\n")
    found = filter_statistics(read_log(path), min_user_interactions=2, min_item_interactions=2)
    assert found.model_dump() == {
        "min_user_interactions": 2, "min_item_interactions": 2,
        "users": 2, "items": 1, "interactions": 3,
        "rare_users": 1, "rare_items": 2,
        "interactions_of_rare_users": 1, "interactions_of_rare_items": 2,
        "duplicates": 1,
    }  # fmt: skip


def test_the_delimiter_and_header_of_a_file_are_not_taken_for_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_bytes(b"user\titem\ttime\r\nu,1\ti|2\t3\r\n")
    log, _ = collect_batches(text_batches(FileSource(path), delimiter="\t"), Limits())
    assert (log.user_ids, log.item_ids, log.times.tolist()) == (["u,1"], ["i|2"], [3])
