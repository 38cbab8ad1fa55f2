"""Drawn windows against the exact distribution, enumerated over every cut of a small log."""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.data.windows import WindowSampler
from tests.td3engine.oracles import make_split

# start and end, as rows of the log.
Window = tuple[int, int]

HISTORY = 3
DRAWS = 20_000
# 2, 1, 6, 0, 3, 1 and 4 training transitions; the users of 2 events are too short to be evaluated.
LENGTHS = [5, 2, 9, 3, 6, 2, 7]
# 6 + 1 training transitions, in 4 windows at most.
FEW_LENGTHS = [8, 2]


def training_rows(lengths: list[int]) -> list[tuple[int, int]]:
    """First and last training event of each user, as rows of the log."""
    rows, first = [], 0
    for length in lengths:
        rows.append((first, first + length - (2 if length >= 3 else 0) - 1))
        first += length
    return rows


def cut(first: int, last: int, head: int) -> Iterator[Window]:
    """A user's windows: each ends `HISTORY` transitions after the one before, the first `head`."""
    stop = first
    while stop < last:
        start, stop = stop, min(last, stop + (head if stop == first else HISTORY))
        yield start, stop + 1


def cuts(lengths: list[int]) -> Iterator[list[Window]]:
    """Every cut of the log; each is equally likely."""
    users = [(first, last) for first, last in training_rows(lengths) if last > first]
    for heads in product(range(1, HISTORY + 1), repeat=len(users)):
        pairs = zip(users, heads, strict=True)
        yield [window for (first, last), head in pairs for window in cut(first, last, head)]


def chances(lengths: list[int], count: int) -> dict[frozenset[Window], Fraction]:
    """The probability of each set of `count` windows, chosen uniformly from a random cut."""
    found = Counter[frozenset[Window]]()
    every = list(cuts(lengths))
    for windows in every:
        sets = list(combinations(windows, count))
        for some in sets:
            found[frozenset(some)] += Fraction(1, len(every) * len(sets))  # type: ignore[assignment]
    return dict(found)  # type: ignore[arg-type]


def draws(lengths: list[int], count: int, times: int, seed: int = 0) -> list[list[Window]]:
    split = make_split([[0] * length for length in lengths], 1)
    sampler, rng = WindowSampler(split, HISTORY), np.random.default_rng(seed)
    drawn = (sampler.draw(count, rng) for _ in range(times))
    return [list(zip(w.start.tolist(), w.end.tolist(), strict=True)) for w in drawn]


def p_value(counts: list[int], expected: list[float]) -> float:
    """Of the chi-square test."""
    statistic = sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True))
    half = torch.tensor([(len(counts) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@pytest.mark.parametrize(
    ("lengths", "count"),
    # Of the first log's 11 slots a draw of 1 is sampled; other draws are chosen from a whole cut.
    [(LENGTHS, 1), (LENGTHS, 2), (FEW_LENGTHS, 1), (FEW_LENGTHS, 2)],
)
def test_sets_of_windows_have_the_chances_of_a_whole_cut(lengths: list[int], count: int) -> None:
    expected = chances(lengths, count)
    found = Counter(frozenset(windows) for windows in draws(lengths, count, DRAWS))
    assert found.keys() <= expected.keys()
    counts = [found[each] for each in expected]
    assert p_value(counts, [DRAWS * float(chance) for chance in expected.values()]) > 0.001


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sampled_draws_have_the_chances_of_a_whole_cut(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where even a large part of a small log's windows is sampled slot by slot."""
    monkeypatch.setattr("td3engine.data.windows.LARGEST_SAMPLED_SHARE", 1)
    expected = chances(FEW_LENGTHS, count)
    found = Counter(frozenset(windows) for windows in draws(FEW_LENGTHS, count, DRAWS))
    assert found.keys() <= expected.keys()
    counts = [found[each] for each in expected]
    assert p_value(counts, [DRAWS * float(chance) for chance in expected.values()]) > 0.001


def test_the_order_within_a_draw_is_random() -> None:
    """Which of the two windows comes first is a coin's toss, for every pair."""
    drawn = draws(LENGTHS, 2, DRAWS)
    rising = sum(first < second for first, second in drawn)
    assert abs(rising - DRAWS / 2) < 4 * (DRAWS / 4) ** 0.5


def test_every_transition_is_a_target_equally_often() -> None:
    """Exactly: the chance of a transition is that of its windows, and the same for all."""
    exact = Counter[int]()
    for windows, chance in chances(LENGTHS, 1).items():
        for start, end in windows:
            for target in range(start + 1, end):
                exact[target] += chance  # type: ignore[assignment]
    assert len(set(exact.values())) == 1
    drawn = Counter(
        target
        for [(start, end)] in draws(LENGTHS, 1, DRAWS, seed=1)
        for target in range(start + 1, end)
    )
    assert drawn.keys() == exact.keys()
    share = float(next(iter(exact.values())))
    spread = (DRAWS * share * (1 - share)) ** 0.5
    assert all(abs(count - DRAWS * share) < 4 * spread for count in drawn.values())


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    history=st.integers(1, 12),
    count=st.integers(1, 60),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_drawn_windows_are_distinct_windows_of_one_cut(
    lengths: list[int], history: int, count: int, seed: int
) -> None:
    split = make_split([[0] * length for length in lengths], 1)
    sampler = WindowSampler(split, history)
    drawn, again = (sampler.draw(count, np.random.default_rng(seed)) for _ in range(2))
    windows = list(zip(drawn.start.tolist(), drawn.end.tolist(), strict=True))
    assert windows == list(zip(again.start.tolist(), again.end.tolist(), strict=True))
    targets = [target for start, end in windows for target in range(start + 1, end)]
    assert len(set(targets)) == len(targets)
    of_target = {
        target: user
        for user, (first, last) in enumerate(training_rows(lengths))
        for target in range(first + 1, last + 1)
    }
    begins: dict[int, set[int]] = {}
    for start, end in windows:
        assert 2 <= end - start <= history + 1
        [user] = {of_target[target] for target in range(start + 1, end)}
        first, last = training_rows(lengths)[user]
        if start > first:
            begins.setdefault(user, set()).add((start - first) % history)
        # A window that is not the first or the last of its user is whole.
        assert start == first or end == last + 1 or end - start == history + 1
    # Windows after a user's first begin whole windows apart: they are of one cut.
    assert all(len(distances) == 1 for distances in begins.values())
    fewest = sum(-(-(last - first) // history) for first, last in training_rows(lengths))
    assert min(count, fewest) <= len(windows) <= count


def test_a_draw_of_more_than_all_windows_is_the_whole_cut() -> None:
    [windows] = draws(LENGTHS, 1000, 1)
    assert sorted(windows) in [sorted(each) for each in cuts(LENGTHS)]


def test_a_log_without_transitions_gives_no_window() -> None:
    assert draws([3, 1, 3], 4, 1) == [[]]
