"""Held-out sets against a plain Python account of each user's events."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from td3engine.ranking.holdout import HoldoutSet, Role, holdout_set
from tests.td3engine.oracles import make_split

N_ITEMS = 9


def pairs_of(rows: Tensor, items: Tensor) -> list[tuple[int, int]]:
    return list(zip(rows.tolist(), items.tolist(), strict=True))


@settings(max_examples=80, deadline=None)
@given(
    histories=st.lists(
        st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=12), min_size=1, max_size=6
    ),
    role=st.sampled_from(["validation", "test"]),
    history=st.integers(1, 14),
)
def test_holdout_set_by_user(histories: list[list[int]], role: Role, history: int) -> None:
    holdout = holdout_set(make_split(histories, N_ITEMS), role, history)
    users = [events for events in histories if len(events) >= 3]
    before = [events[: -1 if role == "test" else -2] for events in users]
    assert holdout.n_items == N_ITEMS
    assert holdout.targets.tolist() == [
        events[len(past)] for events, past in zip(users, before, strict=True)
    ]
    width = max((min(len(past), history) for past in before), default=0)
    assert holdout.items.shape == (len(users), width)
    assert holdout.lengths.tolist() == [min(len(past), history) for past in before]
    for row, length, past in zip(
        holdout.items.tolist(), holdout.lengths.tolist(), before, strict=True
    ):
        assert row == [*past[-history:], *[0] * (width - length)]
    seen = [(row, item) for row, past in enumerate(before) for item in past]
    whole = [(row, item) for row, events in enumerate(users) for item in events]
    assert pairs_of(holdout.seen_rows, holdout.seen_items) == seen
    assert pairs_of(holdout.user_rows, holdout.user_items) == whole
    for tensor in (
        holdout.items,
        holdout.lengths,
        holdout.targets,
        holdout.seen_items,
        holdout.user_items,
    ):
        assert tensor.dtype == torch.int64


def test_holdout_set_by_hand() -> None:
    """Two of four users can be evaluated, at most two events of history."""
    split = make_split([[1, 2], [3, 4, 5], [8], [6, 7, 6, 0]], N_ITEMS)

    def plain(holdout: HoldoutSet) -> tuple[list[list[int]], list[int], list[int]]:
        return holdout.items.tolist(), holdout.lengths.tolist(), holdout.targets.tolist()

    assert plain(holdout_set(split, "validation", 2)) == ([[3, 0], [6, 7]], [1, 2], [4, 6])
    assert plain(holdout_set(split, "test", 2)) == ([[3, 4], [7, 6]], [2, 2], [5, 0])


@pytest.mark.parametrize("role", ["validation", "test"])
def test_no_user_can_be_evaluated(role: Role) -> None:
    holdout = holdout_set(make_split([[1, 2], [3]], N_ITEMS), role, 4)
    assert len(holdout.items) == 0
    assert len(holdout.targets) == len(holdout.seen_rows) == len(holdout.user_rows) == 0
