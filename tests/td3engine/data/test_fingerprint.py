"""Fingerprints against a plain writing of the canonical bytes, and what they depend on."""

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from td3engine.data.normalised import read_normalised, write_normalised
from td3engine.data.reading import read_log
from td3engine.data.types import Interactions, Limits
from tests.effort import effort
from tests.td3engine.data.kit import Row, read_bytes

ids = st.sampled_from(["u", "v", "é", "z", "\U0001f600", "\uffee", "longer name", "01"])
whole = st.integers(-3, 3)
logs = st.lists(st.tuples(ids, ids, whole), min_size=1, max_size=30) | st.lists(
    st.tuples(ids, ids, st.sampled_from([-0.0, 0.0, 0.5, -1.25])), min_size=1, max_size=30
)


def table(log: list[Row]) -> Any:
    users, items, times = zip(*log, strict=True)
    return pa.table({"user": users, "item": items, "time": times})


def slow_fingerprint(log: list[Row]) -> str:
    """Word by word as the module's docstring has it."""
    users = sorted({user.encode() for user, _, _ in log})
    items = sorted({item.encode() for _, item, _ in log})
    is_whole = all(time == int(time) for _, _, time in log)
    out = b"td3 log 1\n" + struct.pack("<QQQ", len(users), len(items), len(log))
    out += b"i" if is_whole else b"f"
    of_user = {user: [row for row in log if row[0].encode() == user] for user in users}
    out += b"".join(struct.pack("<QQ", len(user), len(of_user[user])) for user in users)
    out += b"".join(users)
    out += b"".join(struct.pack("<Q", len(item)) for item in items) + b"".join(items)
    for user in users:
        for _, item, time in sorted(of_user[user], key=lambda row: row[2]):
            out += struct.pack("<I", items.index(item.encode()))
            out += struct.pack("<q", int(time)) if is_whole else struct.pack("<d", time or 0.0)
    return hashlib.sha256(out).hexdigest()


@given(log=logs, part=st.integers(1, 9))
@effort(150)
def test_the_fingerprint_is_the_hash_of_the_canonical_bytes(log: list[Row], part: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("td3engine.data.fingerprint.ROWS_AT_ONCE", part)
        patch.setattr("td3engine.data.fingerprint.IDS_AT_ONCE", part)
        for in_memory in (1, 1000):
            read = read_log(table(log), limits=Limits(max_rows_in_memory=in_memory))
            assert read.fingerprint() == slow_fingerprint(log)


@given(log=logs, data=st.data())
@effort(100)
def test_the_order_of_rows_counts_only_within_a_user_and_a_time(
    log: list[Row], data: st.DataObject
) -> None:
    """Any shuffle that leaves such ties in their order gives the same fingerprint."""
    shuffled = data.draw(st.permutations(log))
    ties = {(user, time): iter([r for r in log if (r[0], r[2]) == (user, time)])
            for user, _, time in log}  # fmt: skip
    kept = [next(ties[user, time]) for user, _, time in shuffled]
    assert read_log(table(kept)).fingerprint() == read_log(table(log)).fingerprint()


def test_another_order_of_ties_is_another_log() -> None:
    first, second = ("u", "i", 1), ("u", "j", 1)
    assert (
        read_log(table([first, second])).fingerprint()
        != read_log(table([second, first])).fingerprint()
    )


def test_every_part_of_an_interaction_counts() -> None:
    log: list[Row] = [("u", "i", 1), ("v", "j", 2), ("u", "k", 3)]
    others: list[list[Row]] = [
        log[:2], [*log, log[0]], [("w", "i", 1), *log[1:]], [("u", "x", 1), *log[1:]],
        [("u", "i", 0), *log[1:]], [("u", "i", 1.5), *log[1:]], [("v", "i", 1), *log[1:]],
    ]  # fmt: skip
    found = {read_log(table(each)).fingerprint() for each in [log, *others]}
    assert len(found) == 1 + len(others)


def test_format_and_packing_do_not_count_nor_does_normalising(tmp_path: Path) -> None:
    csv = read_bytes(tmp_path, b"user,x,item,time\nv,,i,2\nu,,j,1.0\n")
    lines = read_bytes(
        tmp_path,
        b'{"user": "u", "item": "j", "time": 1}\n{"user": "v", "item": "i", "time": "2"}',
        "log.jsonl",
    )
    write_normalised(csv, tmp_path / "log.parquet")
    normalised = read_normalised(tmp_path / "log.parquet")
    expected = slow_fingerprint([("u", "j", 1), ("v", "i", 2)])
    assert {each.fingerprint() for each in (csv, lines, normalised)} == {expected}


def test_the_fingerprint_is_known() -> None:
    """Of all releases: a change of the canonical bytes needs another number in their first line."""
    log = Interactions(
        np.array([0, 0, 1], np.int32),
        np.array([0, 1, 0], np.int32),
        np.array([1, 2, 3]),
        ["u", "v"],
        ["i", "j"],
    )
    content = b"td3 log 1\n" + struct.pack("<QQQ", 2, 2, 3) + b"i"
    content += struct.pack("<QQQQ", 1, 2, 1, 1) + b"uv" + struct.pack("<QQ", 1, 1) + b"ij"
    content += struct.pack("<IqIqIq", 0, 1, 1, 2, 0, 3)
    assert log.fingerprint() == hashlib.sha256(content).hexdigest()
