"""Training windows against a plain Python account of each user's events."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.data import windows as windows_module
from td3engine.data.windows import WindowIndex, batches_of_like_length, training_windows
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


def some_windows(lengths: Sequence[int]) -> WindowIndex:
    end = np.cumsum(lengths)
    return WindowIndex(end - np.array(lengths, dtype=np.int64), end)


def batches(lengths: Sequence[int], batch: int, seed: int) -> list[list[int]]:
    cut = batches_of_like_length(some_windows(lengths), batch, np.random.default_rng(seed))
    return [each.tolist() for each in cut]


@examples
@given(
    lengths=st.lists(st.integers(2, 30), min_size=0, max_size=60),
    batch=st.integers(1, 12),
    group=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_batches_hold_each_window_once(
    lengths: list[int], batch: int, group: int, seed: int
) -> None:
    """In as few batches as there must be: all full but one. The same for the same generator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows_module, "SORTED_BATCHES", group)
        found = batches(lengths, batch, seed)
        assert found == batches(lengths, batch, seed)
    assert sorted(window for each in found for window in each) == list(range(len(lengths)))
    sizes = sorted((len(each) for each in found), reverse=True)
    assert sizes == [min(batch, len(lengths) - first) for first in range(0, len(lengths), batch)]


def padding(lengths: Sequence[int], cut: Sequence[Sequence[int]]) -> int:
    return sum(max(lengths[w] for w in each) - lengths[w] for each in cut for w in each)


@pytest.mark.parametrize("seed", range(3))
def test_batches_of_like_length_pad_little(seed: int) -> None:
    """Most windows are short and some long: a tenth of what random batches pad."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(2 + rng.geometric(0.15, 4000), 51).tolist()
    order = rng.permutation(len(lengths))
    random = [order[first : first + 32].tolist() for first in range(0, len(order), 32)]
    assert padding(lengths, batches(lengths, 32, seed)) < 0.1 * padding(lengths, random)


def test_batches_come_in_random_order_with_random_companions() -> None:
    """30 batches, so one group: without the last shuffle they would come in order of length."""
    lengths = [2 + nth // 40 for nth in range(240)]
    found = [batches(lengths, 8, seed) for seed in range(8)]
    for cut in found:
        assert all(len({lengths[window] for window in each}) == 1 for each in cut)
        order = [lengths[each[0]] for each in cut]
        assert order != sorted(order)
    # Those beside window 0 differ from seed to seed: of 39 others of its length 7 are with it.
    assert len({frozenset(each) for cut in found for each in cut if 0 in each}) == 8


def test_windows_are_sorted_within_a_group_of_batches_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a batch is no fixed set of the longest: in groups of one batch, they are random."""
    monkeypatch.setattr(windows_module, "SORTED_BATCHES", 1)
    lengths = [2 + nth // 40 for nth in range(240)]
    cut = batches(lengths, 8, 0)
    assert sum(len({lengths[window] for window in each}) > 2 for each in cut) > 25


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
