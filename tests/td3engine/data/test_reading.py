"""What good logs are read as, in every format."""

import bz2
import gzip
import json
import lzma
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.data.normalised import read_normalised, write_normalised
from td3engine.data.reading import format_of_name, read_log
from td3engine.data.types import ColumnNames, LogError, describe
from tests.td3engine.data.kit import Row, read_bytes, rows

CSV = b"user_id,item_id,timestamp\nu,i,1\nv,j,2\nu,k,0\n"
PARSED = [("u", "k", 0), ("u", "i", 1), ("v", "j", 2)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", CSV),
        ("log.csv", CSV.rstrip()),
        ("log.csv", CSV.replace(b"\n", b"\r\n")),
        ("log.csv", b"\xef\xbb\xbf" + CSV),
        ("log.csv", CSV + b"\n\n"),
        ("log.csv", CSV.replace(b"u,", b'"u",')),
        ("log.tsv", CSV.replace(b",", b"\t")),
        ("log.csv", CSV.replace(b",", b";")),
        ("upload", CSV.replace(b",", b"|")),
        ("x.inter", b"user_id:token\titem_id:token\ttime:float\nu\ti\t1\nv\tj\t2\nu\tk\t0\n"),
        ("log.csv.gz", gzip.compress(CSV, mtime=0)),
        ("log.csv.zst", zstandard.compress(CSV)),
        ("log.csv.bz2", bz2.compress(CSV[:30]) + bz2.compress(CSV[30:])),
        ("log.csv.xz", lzma.compress(CSV[:30]) + lzma.compress(CSV[30:])),
        ("log.csv", b"sep=;\r\n" + CSV.replace(b",", b";")),
        ("log.csv", CSV.replace(b",", b"::")),
        ("log.csv", CSV.replace(b",", b"   ")),
        ("log.csv.gz", gzip.compress(CSV[:30], mtime=0) + gzip.compress(CSV[30:], mtime=0)),
        ("misnamed.csv", gzip.compress(CSV, mtime=0)),
        ("unpacked-on-the-way.csv.gz", CSV),
        ("Extra.CSV", b"x,TIME,Item,note,UserID\n,1,i,a,u\n,2,j,,v\n,0,k,c,u\n"),
    ],
)  # fmt: skip
def test_text_in_every_dress_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    log = read_bytes(tmp_path, content, name)
    assert rows(log) == PARSED
    assert log.times.dtype == np.int64
    assert log.user_codes.dtype == log.item_codes.dtype == np.int32


def test_parquet_of_every_type_gives_the_same_rows(tmp_path: Path) -> None:
    users = pa.array(["u", "v", "u"])
    items = pa.array(["i", "j", "k"])
    seconds = pa.array([1, 2, 0])
    for number, (user, time) in enumerate(
        [
            (users, seconds),
            (users.dictionary_encode(), seconds.cast(pa.float32())),
            (users.cast(pa.large_string()), seconds.cast(pa.int16())),
            (users.cast(pa.binary()), seconds.cast(pa.timestamp("s")).cast(pa.timestamp("ns"))),
            (users.cast(pa.string_view()), seconds.cast(pa.timestamp("s", "UTC"))),
            (users, seconds.cast(pa.decimal128(22, 2))),
            (users, seconds.cast(pa.decimal256(50, 9))),
            (users.cast(pa.large_binary()), seconds.cast(pa.string()).dictionary_encode()),
            (users, seconds.cast(pa.timestamp("s", "America/New_York"))),
            (users, seconds.cast(pa.timestamp("s", "+05:30")).dictionary_encode()),
            (users, seconds.cast(pa.float16())),
        ]
    ):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(
            pa.table({"user": user, "item": items, "nested": [[1], [], [2]], "ts": time}), path
        )
        assert rows(read_log(path)) == PARSED


def test_ids_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    log = read_bytes(tmp_path, CSV + b"1,01,3\n01,1.0,3\n1 , x,3\n")
    assert rows(log)[:3] == [("01", "1.0", 3), ("1", "01", 3), ("1 ", " x", 3)]
    pq.write_table(pa.table({"user": [7], "item": [-3], "time": [1]}), tmp_path / "x.parquet")
    assert rows(read_log(tmp_path / "x.parquet")) == [("7", "-3", 1)]


def test_ties_keep_the_order_of_the_file(tmp_path: Path) -> None:
    content = b"user,item,time\n" + b"".join(b"u%d,%d,7\n" % (n % 3, n) for n in range(300))
    log = read_bytes(tmp_path, content)
    assert [int(item) for _, item, _ in rows(log)] == sorted(range(300), key=lambda n: n % 3)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["-5", "3"], [-5, 3]),
        ([" 1.0", "2e3 "], [1, 2000]),
        (["1", "2.5"], [1.0, 2.5]),
        (["9007199254740993", "9007199254740994"], [9007199254740993, 9007199254740994]),
        (["2", "1e300"], [2.0, 1e300]),
        (["-9223372036854775808", "1"], [-(2**63), 1]),
        (["1", "9223372036854775808"], [1.0, 2.0**63]),
        (["-1", "9" * 300], [-1.0, 1e300]),
        (["1970-01-01", "1970-01-02"], [0, 86400]),
        (["1970-01-01T00:00:01Z", "1970-01-01 01:00:02+01:00"], [1, 2]),
        (["1970-01-01 00:00:01", "1970-01-01T00:00:01.25"], [1.0, 1.25]),
        # Finer than a microsecond, with a zone and without, beside times that are not.
        (["1970-01-01T00:00:01.2500009Z", "1970-01-01T01:00:02+01:00"], [1.25, 2.0]),
        (["1970-01-01 00:00:01.250000999", "1970-01-01 00:00:02.5"], [1.25, 2.5]),
    ],
)
def test_times(tmp_path: Path, times: list[str], expected: list[int | float]) -> None:
    content = "user,item,time\n" + "".join(f"u,i,{time}\n" for time in times)
    log = read_bytes(tmp_path, content.encode())
    assert log.times.tolist() == expected
    assert log.times.dtype == (np.int64 if isinstance(expected[0], int) else np.float64)


def test_columns_can_be_named(tmp_path: Path) -> None:
    content = b"user_id:token,a,b,c:float\nx,u,i,4\n"
    names = ColumnNames(user="a", item="b", time="c")
    assert rows(read_bytes(tmp_path, content, columns=names)) == [("u", "i", 4)]
    with_type = ColumnNames(user="a", item="b", time="c:float")
    assert rows(read_bytes(tmp_path, content, columns=with_type)) == [("u", "i", 4)]


def test_the_format_goes_by_the_name_without_its_packing() -> None:
    assert format_of_name("Ratings.CSV.gz") == "csv"
    assert format_of_name("ml-100k.inter") == "inter"
    assert format_of_name("a.b/log.parquet") == "parquet"
    assert format_of_name("upload.bin") is None


def test_a_log_larger_than_a_block_is_read_whole(tmp_path: Path) -> None:
    count = 100_000
    lines = (b"user %d,item %d,%d\n" % (n % 977, n % 89, n) for n in range(count))
    log = read_bytes(
        tmp_path, gzip.compress(b"user,item,time\n" + b"".join(lines), 1, mtime=0), "x.csv.gz"
    )
    assert describe(log).model_dump() == {
        "users": 977, "items": 89, "interactions": count, "time_min": 0, "time_max": count - 1,
    }  # fmt: skip
    assert [log.user_ids[code] for code in np.unique(log.user_codes)] == sorted(
        f"user {n}" for n in range(977)
    )
    of_first_user = log.times[log.user_codes == 0]
    assert of_first_user.tolist() == list(range(0, count, 977))


ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda text: bool(text.strip()) and text.strip() == text
)
logs = st.lists(st.tuples(ids, ids, st.integers(-(2**62), 2**62)), min_size=1, max_size=30)


def as_parquet(folder: Path, log: list[Row], name: str = "in.parquet") -> Path:
    users, items, times = zip(*log, strict=True)
    path = folder / name
    pq.write_table(pa.table({"user": users, "item": items, "time": times}), path)
    return path


def by_user_then_time(log: list[Row]) -> list[Row]:
    return sorted(log, key=lambda row: (row[0].encode(), row[2]))


@given(log=logs)
@settings(max_examples=60, deadline=None)
def test_normalising_sorts_and_keeps_every_row(
    tmp_path_factory: pytest.TempPathFactory, log: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("round-trip")
    expected = by_user_then_time(log)
    first, again = folder / "first.parquet", folder / "again.parquet"
    read = read_log(as_parquet(folder, log))
    assert rows(read) == expected
    fingerprint = write_normalised(read, first)
    assert rows(read_normalised(first)) == expected
    # Normalising what is normal already changes nothing, and says so by the same bytes.
    assert write_normalised(read_log(first), again) == fingerprint
    assert write_normalised(read_normalised(first), again) == fingerprint
    assert first.read_bytes() == again.read_bytes()


@given(log=logs, data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_does_not_matter_but_for_ties(
    tmp_path_factory: pytest.TempPathFactory, log: list[Row], data: st.DataObject
) -> None:
    """Any order that leaves rows of one user and time as they were gives the same bytes."""
    folder = tmp_path_factory.mktemp("shuffled")
    shuffled = data.draw(st.permutations(log))
    ties = {(user, time): iter([row for row in log if (row[0], row[2]) == (user, time)])
            for user, _, time in log}  # fmt: skip
    kept = [next(ties[user, time]) for user, _, time in shuffled]
    out = folder / "out.parquet"
    first, second = read_log(as_parquet(folder, log)), read_log(as_parquet(folder, kept))
    assert write_normalised(first, out) == write_normalised(second, out)
    assert (first.user_ids, first.item_ids) == (second.user_ids, second.item_ids)


def test_packing_and_format_leave_the_fingerprint_alone(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    fingerprints = {
        write_normalised(read_bytes(tmp_path, content, name), target)
        for name, content in [
            ("a.csv", CSV),
            ("a.csv.gz", gzip.compress(CSV, mtime=0)),
            ("a.csv.zst", zstandard.compress(CSV)),
            ("a.tsv", CSV.replace(b",", b"\t")),
            ("a.csv", CSV.replace(b",1\n", b",1.0\n")),
        ]
    }
    assert len(fingerprints) == 1


def test_a_file_that_is_not_normalised_is_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.parquet"
    write_normalised(read_bytes(tmp_path, CSV), good)
    table = pq.read_table(good)
    bad = tmp_path / "bad.parquet"
    for wrong in (
        table.rename_columns(["user", "item_id", "timestamp"]),
        table.set_column(2, "timestamp", table["timestamp"].cast(pa.int32())),
        table.take(pa.array([2, 1, 0])),
        table.slice(0, 0),
    ):
        pq.write_table(wrong, bad)
        with pytest.raises(LogError, match="not a normalised log") as caught:
            read_normalised(bad)
        assert caught.value.code == "bad_format"
    bad.write_bytes(good.read_bytes()[:-9])
    with pytest.raises(LogError, match="not a normalised log"):
        read_normalised(bad)


def run_child(*arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "td3engine.data.normalise", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    [line] = done.stdout.splitlines()
    return done.returncode, json.loads(line)


def test_the_child_process_answers_in_one_line(tmp_path: Path) -> None:
    source, target = tmp_path / "upload-1234", tmp_path / "normal.parquet"
    source.write_bytes(b"a;b;c\nu;i;1\n")
    columns = '{"user": "a", "item": "b", "time": "c"}'
    code, answer = run_child(str(source), str(target), "--name", "x.csv", "--columns", columns)
    assert code == 0
    assert answer["bytes"] == target.stat().st_size
    left = {"users": 0, "items": 0, "interactions": 0}
    statistics = answer["statistics"]
    assert statistics.pop("facts")["largest_user_share"] == 1.0
    assert statistics.pop("reading")["columns"] == ["a", "b", "c"]
    assert any(
        "the filter removes 100% of interactions" in each for each in statistics.pop("notes")
    )
    assert statistics == {
        "users": 1, "items": 1, "interactions": 1, "time_min": 1, "time_max": 1,
        "filter": {
            **left, "min_user_interactions": 5, "min_item_interactions": 5,
            "rare_users": 1, "rare_items": 1,
            "interactions_of_rare_users": 1, "interactions_of_rare_items": 1,
            "duplicates": 0,
        },
    }  # fmt: skip
    assert answer["sha256"] == write_normalised(read_normalised(target), tmp_path / "again")


def test_the_child_process_says_what_is_wrong_and_leaves_no_file(tmp_path: Path) -> None:
    source, target = tmp_path / "x.csv", tmp_path / "normal.parquet"
    source.write_bytes(CSV + b"u,i,never\n")
    code, answer = run_child(str(source), str(target))
    assert code == 65
    assert answer["error"]["code"] == "bad_value"
    assert (answer["error"]["line"], answer["error"]["column"]) == (5, "timestamp")
    assert "'never'" in answer["error"]["message"]
    assert list(tmp_path.iterdir()) == [source]
    code, answer = run_child(str(source), str(target), "--limits", '{"max_rows": 2}')
    assert (code, answer["error"]["code"]) == (65, "too_many_rows")


def test_the_child_process_ends_at_its_memory_limit(tmp_path: Path) -> None:
    """With too little memory it refuses the file. It never hangs."""
    source = tmp_path / "x.csv"
    lines = (b"user %d,item %d,%d\n" % (n, n, n) for n in range(600_000))
    source.write_bytes(b"user,item,time\n" + b"".join(lines))
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (460 * 2**20,) * 2);"
        "from td3engine.data.normalise import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    # pyarrow aborts the process in some places where memory can run out, so callers must take a
    # death by SIGABRT for the same answer.
    assert done.returncode in (65, -signal.SIGABRT), done.stderr
    if done.returncode == 65:
        assert json.loads(done.stdout)["error"]["code"] == "too_large"
    assert list(tmp_path.iterdir()) == [source]


def test_reading_imports_no_torch_and_no_pandas() -> None:
    script = "import sys, td3engine.data.normalise; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
