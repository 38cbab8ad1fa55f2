"""The filter and the split, on small logs by hand and on real ones by their published counts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.config import Duplicates
from td3engine.data.reading import read_log
from td3engine.data.split import Split, split
from td3engine.data.types import Interactions, LogError, describe

KEEPING: tuple[Duplicates, ...] = ("auto", "keep")


def make_log(pairs: list[tuple[int, int]]) -> Interactions:
    """A log of (user, item) pairs, in time order, users sorted."""
    pairs = sorted(pairs, key=lambda pair: pair[0])
    users, user_codes = np.unique([user for user, _ in pairs], return_inverse=True)
    items, item_codes = np.unique([item for _, item in pairs], return_inverse=True)
    return Interactions(
        user_codes=user_codes.astype(np.int32),
        item_codes=item_codes.astype(np.int32),
        times=np.arange(len(pairs), dtype=np.int64),
        user_ids=[f"u{user}" for user in users],
        item_ids=[f"i{item}" for item in items],
    )


def cut(
    log: Interactions,
    *,
    users: int = 1,
    items: int = 1,
    core: bool = False,
    duplicates: Duplicates = "drop",
) -> Split:
    return split(
        log,
        min_user_interactions=users,
        min_item_interactions=items,
        iterative_core=core,
        duplicates=duplicates,
    )


def test_movielens_100k_has_the_published_counts(ml100k_path: Path) -> None:
    log = read_log(ml100k_path)
    assert describe(log).model_dump() == {
        "users": 943, "items": 1682, "interactions": 100_000,
        "time_min": 874_724_710, "time_max": 893_286_638,
    }  # fmt: skip
    data = cut(log, users=5, items=5)
    assert data.statistics().model_dump().items() >= {
        "users": 943, "items": 1349, "interactions": 99_287,
        "training_interactions": 99_287 - 2 * 943, "evaluated_users": 943,
        "repeat_share": 0.0, "duplicates": 0, "equal_rows": 0, "dropped_repeats": 0,
        "columns": "user_id, item_id, timestamp",
    }.items()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "counts", "duplicates", "without_them", "too_short"),
    [
        # The published counts have rows that the file holds twice.
        ("amazon2018-magazine", (665, 848, 4691), 1222, (642, 844, 4530), 0),
        # 615 users keep one or two events: they count, they train, and nothing of theirs is ranked.
        ("epinions-ordered", (21_995, 31_678, 550_117), 0, (21_995, 31_678, 550_117), 615),
    ],
)
def test_shared_logs_have_the_published_counts(
    shared_log: Callable[[str], Path],
    name: str,
    counts: tuple[int, int, int],
    duplicates: int,
    without_them: tuple[int, int, int],
    too_short: int,
) -> None:
    log = read_log(shared_log(name))
    for setting in KEEPING:
        kept = cut(log, users=5, items=5, duplicates=setting).statistics()
        assert (kept.users, kept.items, kept.interactions, kept.duplicates) == (*counts, 0)
    found = cut(log, users=5, items=5).statistics()
    assert (found.users, found.items, found.interactions) == without_them
    assert found.duplicates == duplicates
    assert found.users - found.evaluated_users == too_short


def test_the_cut_of_each_user() -> None:
    log = make_log(
        [(1, 10), (1, 11), (1, 12), (1, 13), (2, 10), (2, 11), (3, 12), (3, 11), (3, 10)]
    )
    data = cut(log)
    assert (data.n_users, data.n_items) == (3, 4)
    assert data.history(0).tolist() == [0, 1, 2, 3]
    assert data.training(0).tolist() == [0, 1]
    assert data.training(1).tolist() == [0, 1]  # two events are too few to hold any out
    assert data.training(2).tolist() == [2]
    assert data.evaluated.tolist() == [0, 2]
    assert data.validation_items.tolist() == [2, 1]
    assert data.test_items.tolist() == [3, 0]
    assert data.statistics().training_interactions == 5
    assert data.histories.dtype == np.int32
    assert data.offsets.dtype == np.int64


def test_both_counts_are_taken_before_anything_goes() -> None:
    # Item 9 has two events, so it goes at 3; user 1 keeps its place, counted as having had four.
    log = make_log([(1, 7), (1, 7), (1, 7), (1, 9), (2, 7), (2, 7), (2, 7), (2, 9)])
    kept = cut(log, users=4, items=3)
    assert kept.lengths.tolist() == [3, 3]
    with pytest.raises(LogError):
        cut(log, users=4, items=3, core=True)


def test_too_little_data_says_how_much_is_left() -> None:
    log = make_log([(1, 7), (1, 8), (2, 7), (2, 8)])
    for users, left in ((3, "0 of 4"), (2, "4 of 4")):
        with pytest.raises(LogError, match=left) as caught:
            cut(log, users=users)
        assert caught.value.code == "too_little_data"


pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


@given(pairs=pairs, users=st.integers(1, 5), items=st.integers(1, 5), core=st.booleans())
@settings(max_examples=150, deadline=None)
def test_split_against_a_slow_reading_of_the_rules(
    pairs: list[tuple[int, int]], users: int, items: int, core: bool
) -> None:
    rows = sorted(pairs, key=lambda pair: pair[0])
    while True:
        of_user = [user for user, _ in rows]
        of_item = [item for _, item in rows]
        kept = [r for r in rows if of_user.count(r[0]) >= users and of_item.count(r[1]) >= items]
        if kept == rows or not core:
            break
        rows = kept
    histories = {user: [item for u, item in kept if u == user] for user, _ in kept}
    if not any(len(items) >= 3 for items in histories.values()):
        with pytest.raises(LogError):
            cut(make_log(pairs), users=users, items=items, core=core)
        return
    data = cut(make_log(pairs), users=users, items=items, core=core)
    assert data.user_ids == [f"u{user}" for user in histories]
    assert sorted(data.item_ids) == sorted({f"i{item}" for _, item in kept})
    for number, history in enumerate(histories.values()):
        named = [data.item_ids[item] for item in data.history(number)]
        assert named == [f"i{item}" for item in history]
        held_out = 2 if len(history) >= 3 else 0
        assert len(data.training(number)) == len(history) - held_out
    ends = [history[-2:] for history in histories.values() if len(history) >= 3]
    assert [data.item_ids[item] for item in data.validation_items] == [f"i{a}" for a, _ in ends]
    assert [data.item_ids[item] for item in data.test_items] == [f"i{b}" for _, b in ends]
