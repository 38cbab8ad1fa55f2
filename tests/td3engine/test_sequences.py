"""Training windows and ranking questions against a plain Python account of each user's events."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from td3engine.sequences import Questions, Role, gather, questions, training_windows
from tests.td3engine.oracles import make_split

N_ITEMS = 9
Histories = list[list[int]]

some_histories = st.lists(
    st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=12), min_size=1, max_size=6
)
examples = settings(max_examples=80, deadline=None)


def training_part(history: Sequence[int]) -> Sequence[int]:
    """All but the last two; of a user too short to be evaluated, everything."""
    return history[:-2] if len(history) >= 3 else history


def windows_of(histories: Histories, history: int, seed: int) -> list[tuple[int, int, int]]:
    """(user, first event, end) of each window, in the user's own counting."""
    split = make_split(histories, N_ITEMS)
    index = training_windows(split, history, np.random.default_rng(seed))
    assert len(index) == len(index.start) == len(index.end)
    found = []
    for start, end in zip(index.start.tolist(), index.end.tolist(), strict=True):
        user = int(np.searchsorted(split.offsets, start, side="right")) - 1
        first = int(split.offsets[user])
        found.append((user, start - first, end - first))
    return found


@examples
@given(histories=some_histories, history=st.integers(1, 14), seed=st.integers(0, 99))
def test_each_training_transition_is_a_target_once(
    histories: Histories, history: int, seed: int
) -> None:
    found = windows_of(histories, history, seed)
    targets = Counter[tuple[int, int]]()
    for user, start, end in found:
        assert start >= 0
        assert 2 <= end - start <= history + 1
        assert end <= len(training_part(histories[user]))  # no validation or test event
        targets.update((user, place) for place in range(start + 1, end))
    wanted = {
        (user, place)
        for user, events in enumerate(histories)
        for place in range(1, len(training_part(events)))
    }
    assert targets == Counter(wanted)
    # No more windows than random first cuts need.
    for user, events in enumerate(histories):
        transitions = len(training_part(events)) - 1
        own = sum(owner == user for owner, _, _ in found)
        assert own <= 1 + -(-max(transitions - 1, 0) // history)


@examples
@given(histories=some_histories, history=st.integers(1, 14), seed=st.integers(0, 99))
def test_windows_gathered_are_those_events(histories: Histories, history: int, seed: int) -> None:
    split = make_split(histories, N_ITEMS)
    index = training_windows(split, history, np.random.default_rng(seed))
    items, lengths = gather(split, index.start, index.end, history + 1)
    assert items.shape == (len(index), history + 1)
    assert items.dtype == lengths.dtype == torch.int64
    for row, length, (user, start, end) in zip(
        items.tolist(), lengths.tolist(), windows_of(histories, history, seed), strict=True
    ):
        assert length == end - start
        assert row == [*histories[user][start:end], *[0] * (history + 1 - length)]


def test_users_with_too_few_events_give_no_window() -> None:
    """1: one event. 3: one training event, two held out. 4: two training events, one transition.
    2: too short to be evaluated, so both train."""
    for events, windows in [(1, 0), (3, 0), (4, 1), (2, 1)]:
        assert len(windows_of([[1] * events], 5, 0)) == windows
    assert [user for user, _, _ in windows_of([[1], [1] * 4, [1, 2, 3], [1] * 5], 5, 0)] == [1, 3]


def test_the_first_cut_is_random_and_the_seeds() -> None:
    """20 transitions in windows of 4: the first window has 1 to 4 of them, each about as often."""
    heads = Counter[int]()
    for seed in range(400):
        found = windows_of([[1] * 23], 4, seed)
        heads[found[0][2] - 1] += 1
        assert found == windows_of([[1] * 23], 4, seed)
    assert sorted(heads) == [1, 2, 3, 4]
    assert all(60 <= count <= 140 for count in heads.values())  # 100 each, standard deviation 9
    # Users are cut apart from each other.
    first_ends = {end for _, start, end in windows_of([[1] * 23] * 30, 4, 0) if start == 0}
    assert first_ends == {2, 3, 4, 5}


def pairs_of(rows: Tensor, items: Tensor) -> list[tuple[int, int]]:
    return list(zip(rows.tolist(), items.tolist(), strict=True))


@examples
@given(
    histories=some_histories,
    role=st.sampled_from(["validation", "test"]),
    history=st.integers(1, 14),
)
def test_questions_by_user(histories: Histories, role: Role, history: int) -> None:
    asked = questions(make_split(histories, N_ITEMS), role, history)
    users = [events for events in histories if len(events) >= 3]
    before = [events[: -1 if role == "test" else -2] for events in users]
    assert asked.n_items == N_ITEMS
    assert asked.targets.tolist() == [
        events[len(past)] for events, past in zip(users, before, strict=True)
    ]
    assert asked.items.shape == (len(users), history)
    assert asked.lengths.tolist() == [min(len(past), history) for past in before]
    for row, length, past in zip(asked.items.tolist(), asked.lengths.tolist(), before, strict=True):
        assert row == [*past[-history:], *[0] * (history - length)]
    seen = [(row, item) for row, past in enumerate(before) for item in past]
    whole = [(row, item) for row, events in enumerate(users) for item in events]
    assert pairs_of(asked.seen_rows, asked.seen_items) == seen
    assert pairs_of(asked.user_rows, asked.user_items) == whole
    for tensor in (asked.items, asked.lengths, asked.targets, asked.seen_items, asked.user_items):
        assert tensor.dtype == torch.int64


def test_questions_by_hand() -> None:
    """Two users that can be asked of four, at most two events of history."""
    split = make_split([[1, 2], [3, 4, 5], [8], [6, 7, 6, 0]], N_ITEMS)

    def plain(asked: Questions) -> tuple[list[list[int]], list[int], list[int]]:
        return asked.items.tolist(), asked.lengths.tolist(), asked.targets.tolist()

    assert plain(questions(split, "validation", 2)) == ([[3, 0], [6, 7]], [1, 2], [4, 6])
    assert plain(questions(split, "test", 2)) == ([[3, 4], [7, 6]], [2, 2], [5, 0])


@pytest.mark.parametrize("role", ["validation", "test"])
def test_no_user_can_be_asked(role: Role) -> None:
    asked = questions(make_split([[1, 2], [3]], N_ITEMS), role, 4)
    assert asked.items.shape == (0, 4)
    assert len(asked.targets) == len(asked.seen_rows) == len(asked.user_rows) == 0
