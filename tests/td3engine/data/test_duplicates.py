"""Exact duplicates: rows of one user, item and time are one event."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.config import DataConfig
from td3engine.data.filtering import filter_statistics
from td3engine.data.reading import read_log
from td3engine.data.repeats import duplicate_rows
from td3engine.data.split import Split, split_log
from td3engine.data.types import Interactions

ONE = {"min_user_interactions": 1, "min_item_interactions": 1}
Rows = list[tuple[int, int, int]]
rows_of_few = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40
)


def log_of(rows: Rows) -> Interactions:
    users, items, times = zip(*rows, strict=True)
    return read_log(
        pa.table(
            {
                "user": [f"u{user}" for user in users],
                "item": [f"i{item}" for item in items],
                "time": times,
            }
        )
    )


def events_of(cut: Split) -> dict[str, list[tuple[str, int]]]:
    """Items and times of each user."""
    found = {}
    for user, name in enumerate(cut.user_ids):
        rows = slice(cut.offsets[user], cut.offsets[user + 1])
        items = [cut.item_ids[item] for item in cut.histories[rows]]
        found[name] = list(zip(items, cut.times[rows].tolist(), strict=True))
    return found


@given(rows=rows_of_few, at_once=st.sampled_from([1, 5, 1000]))
@settings(max_examples=150, deadline=None)
def test_the_first_of_equal_rows_stays(rows: Rows, at_once: int) -> None:
    """Against a loop over the rows in the order of the sorted log."""
    log = log_of(rows)
    seen: set[tuple[int, int, int]] = set()
    wanted = []
    columns = (log.user_codes, log.item_codes, log.times)
    for row in zip(*(column.tolist() for column in columns), strict=True):
        wanted.append(row in seen)
        seen.add(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("td3engine.data.repeats.ROWS_AT_ONCE", at_once)
        assert duplicate_rows(log).tolist() == wanted


@given(rows=rows_of_few, users=st.integers(1, 3), items=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_rows_written_twice_are_the_rows_once(rows: Rows, users: int, items: int) -> None:
    """In the counts of the filter, and in what is left."""
    once = list(dict.fromkeys(rows))
    once += [(9, item, time) for time, item in enumerate([0, 1, 2] * 3)]  # enough to split
    config = DataConfig(min_user_interactions=users, min_item_interactions=items)
    counts = config.model_dump(include=set(ONE))
    whole, twice = log_of(once), log_of([row for row in once for _ in range(2)])
    by_hand = split_log(whole, config)
    found = split_log(twice, config)
    assert by_hand.duplicates == 0
    assert found.duplicates == len(once)
    assert events_of(found) == events_of(by_hand)
    assert found.item_ids == by_hand.item_ids
    filtered, unfiltered = (filter_statistics(log, **counts) for log in (twice, whole))
    assert filtered == unfiltered.model_copy(update={"duplicates": len(once)})
    assert (filtered.users, filtered.interactions) == (found.n_users, len(found.histories))


@pytest.mark.parametrize(("copies", "dropped"), [(1, False), (9, False), (10, True), (30, True)])
def test_auto_drops_them_from_a_tenth_of_the_rows_on(copies: int, dropped: bool) -> None:
    """Of 100 rows so many are copies: fewer than a tenth may be meant, more are a fault."""
    once = [(row % 9, row // 9, row) for row in range(100 - copies)]
    rows = [*once, *(once * 2)[:copies]]
    log, config = log_of(rows), DataConfig(**ONE)
    assert config.duplicates == "auto"
    cut = split_log(log, config)
    counts = filter_statistics(log, min_user_interactions=1, min_item_interactions=1)
    assert cut.duplicates == counts.duplicates == copies * dropped
    assert len(cut.histories) == counts.interactions == 100 - copies * dropped
    told = config.model_copy(update={"duplicates": "drop" if dropped else "keep"})
    assert events_of(split_log(log, told)) == events_of(cut)


def test_they_can_be_kept() -> None:
    rows = [(0, item, 5) for item in (1, 1, 2, 1)] + [(0, 1, 6)]
    config = DataConfig(**ONE)
    assert split_log(log_of(rows), config).lengths.tolist() == [3]
    kept = config.model_copy(update={"duplicates": "keep"})
    cut = split_log(log_of(rows), kept)
    assert (cut.lengths.tolist(), cut.duplicates) == ([5], 0)
    counted = filter_statistics(
        log_of(rows), min_user_interactions=1, min_item_interactions=1, duplicates="keep"
    )
    assert counted.interactions == 5


def test_times_that_are_no_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\nu,i,1.5\nu,i,1.5\nu,i,1.25\nu,j,1.5\n")
    log = read_log(path)
    assert log.times.dtype == np.float64
    assert split_log(log, DataConfig(**ONE)).times.tolist() == [1.25, 1.5, 1.5]
