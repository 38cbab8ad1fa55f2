"""Kernels against their definitions, in dictionaries and loops over users."""

from collections import defaultdict
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from td3engine.counting import kernels
from td3engine.counting.kernels import (
    Kernel,
    co_occurrences,
    cosine,
    ease,
    stored_bytes,
    transitions,
)
from tests.td3engine.counting.kit import HELD_OUT_ONLY, ITEMS, NEVER, dense, odd_log, training
from tests.td3engine.oracles import make_split

Matrix = NDArray[np.float64]


def slow_transitions(
    histories: list[list[int]], window: int, decay: float, shrinkage: float
) -> Matrix:
    weight: dict[tuple[int, int], float] = defaultdict(float)
    for history in map(training, histories):
        for place, item in enumerate(history):
            for later in range(place + 1, min(place + window + 1, len(history))):
                weight[item, history[later]] += decay ** (later - place - 1)
    found = np.zeros((ITEMS, ITEMS))
    for (item, after), value in weight.items():
        total = sum(other for (first, _), other in weight.items() if first == item)
        found[item, after] = value / (total + shrinkage)
    return found


def users_of(histories: list[list[int]], longest: int) -> list[set[int]]:
    """Of each item, the users that have it among their last training events."""
    return [
        {user for user, history in enumerate(histories) if item in training(history)[-longest:]}
        for item in range(ITEMS)
    ]


def slow_co_occurrences(histories: list[list[int]], longest: int = 500) -> Matrix:
    users = users_of(histories, longest)
    return np.array([[len(one & other) for other in users] for one in users], dtype=np.float64)


def slow_cosine(histories: list[list[int]], exponent: float) -> Matrix:
    users = users_of(histories, 500)
    found = np.zeros((ITEMS, ITEMS))
    for one, other in product(range(ITEMS), repeat=2):
        both = len(users[one] & users[other])
        if one != other and both:
            scale = len(users[one]) ** exponent * len(users[other]) ** (1 - exponent)
            found[one, other] = both / scale
    return found


def slow_ease(histories: list[list[int]], ridge: float) -> Matrix:
    """Item by item: argmin |x_j - X b|^2 + ridge |b|^2 with b_j = 0, as ordinary least squares
    with a row of sqrt(ridge) for each number of b."""
    users = users_of(histories, 500)
    X = np.array([[user in had for had in users] for user in range(len(histories))], dtype=float)
    found = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = [other for other in range(ITEMS) if other != item]
        extended = np.vstack([X[:, others], np.sqrt(ridge) * np.eye(len(others))])
        wanted = np.concatenate([X[:, item], np.zeros(len(others))])
        found[others, item] = np.linalg.lstsq(extended, wanted, rcond=None)[0]
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("window", "decay", "shrinkage"),
    [(1, 1.0, 0.0), (1, 0.5, 5.0), (3, 1.0, 0.0), (5, 0.7, 2.5), (60, 0.8, 0.0)],
)
def test_transitions(seed: int, window: int, decay: float, shrinkage: float) -> None:
    histories = odd_log(seed)
    found = dense(transitions(make_split(histories, ITEMS), window, decay, shrinkage))
    np.testing.assert_allclose(
        found, slow_transitions(histories, window, decay, shrinkage), rtol=1e-5
    )
    assert found.any()


def test_transitions_by_hand() -> None:
    """Two held out of three or more; of two events, both count; none leads to another user."""
    histories = [[0, 1, 0, 2, 3, 3], [2, 0], [1], [4, 4, 4]]
    found = dense(transitions(make_split(histories, 5), 2, 0.5, 1.0))
    # 0 -> 1 and 0 -> 2 at lag 1, 0 -> 0 at lag 2; 1 -> 0 at lag 1, 1 -> 2 at lag 2; 2 -> 0.
    assert found[0].tolist() == pytest.approx([0.5 / 3.5, 1 / 3.5, 1 / 3.5, 0, 0])
    assert found[1].tolist() == pytest.approx([1 / 2.5, 0, 0.5 / 2.5, 0, 0])
    assert found[2].tolist() == pytest.approx([1 / 2, 0, 0, 0, 0])
    assert not found[3:].any()


@pytest.mark.parametrize("longest", [500, 5, 1])
@pytest.mark.parametrize("seed", range(3))
def test_co_occurrences(monkeypatch: pytest.MonkeyPatch, seed: int, longest: int) -> None:
    monkeypatch.setattr(kernels, "LONGEST_USER", longest)
    histories = odd_log(seed)
    found = dense(co_occurrences(make_split(histories, ITEMS)))
    np.testing.assert_array_equal(found, slow_co_occurrences(histories, longest))
    assert found.any()


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_cosine(seed: int, exponent: float) -> None:
    histories = odd_log(seed)
    found = dense(cosine(co_occurrences(make_split(histories, ITEMS)), exponent))
    np.testing.assert_allclose(found, slow_cosine(histories, exponent), rtol=1e-5)
    assert found.any()


@pytest.mark.parametrize("exponent", [0.5, 0.7])
def test_an_item_may_be_its_own_neighbour(exponent: float) -> None:
    histories = odd_log(2)
    found = dense(cosine(co_occurrences(make_split(histories, ITEMS)), exponent, itself=True))
    had = {item for history in histories for item in training(history)}
    own = np.diag([float(item in had) for item in range(ITEMS)])
    np.testing.assert_allclose(found, slow_cosine(histories, exponent) + own, rtol=1e-5)


@pytest.mark.parametrize("ridge", [0.5, 10.0, 500.0])
@pytest.mark.parametrize("seed", range(3))
def test_ease(seed: int, ridge: float) -> None:
    histories = odd_log(seed)
    found = dense(ease(co_occurrences(make_split(histories, ITEMS)), ridge))
    wanted = slow_ease(histories, ridge)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_the_gram_matrix_outlives_what_is_made_of_it() -> None:
    together = co_occurrences(make_split(odd_log(), ITEMS))
    before = dense(together).copy()
    cosine(together, 0.5)
    ease(together, 1.0)
    np.testing.assert_array_equal(dense(together), before)


KERNELS: dict[str, Callable[[list[list[int]]], Kernel]] = {
    "Markov": lambda log: transitions(make_split(log, ITEMS), 1, 1.0, 0.0),
    "windowed": lambda log: transitions(make_split(log, ITEMS), 10, 0.8, 5.0),
    "cosine": lambda log: cosine(co_occurrences(make_split(log, ITEMS)), 0.7),
    "EASE": lambda log: ease(co_occurrences(make_split(log, ITEMS)), 1.0),
}


@pytest.mark.parametrize("name", KERNELS)
def test_only_training_events_count(name: str) -> None:
    histories = odd_log()
    others = [
        [*history[:-2], HELD_OUT_ONLY, NEVER] if len(history) >= 3 else history
        for history in histories
    ]
    assert others != histories
    made, remade = (dense(KERNELS[name](log)) for log in (histories, others))
    np.testing.assert_array_equal(made, remade)


@pytest.mark.parametrize("name", KERNELS)
def test_an_item_without_training_events_is_next_to_nothing(name: str) -> None:
    found = dense(KERNELS[name](odd_log()))
    assert np.isfinite(found).all()
    for item in (HELD_OUT_ONLY, NEVER):
        assert not found[item].any()
        assert not found[:, item].any()


@pytest.mark.parametrize("name", ["Markov", "windowed", "cosine"])
def test_a_large_kernel_is_sparse_and_the_same(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    small = KERNELS[name](odd_log())
    monkeypatch.setattr(kernels, "LARGEST_DENSE", ITEMS**2 - 1)
    large = KERNELS[name](odd_log())
    assert isinstance(small, np.ndarray)
    assert sp.issparse(large)
    assert small.dtype == large.dtype == np.float32
    np.testing.assert_array_equal(dense(small), dense(large))


def test_stored_bytes() -> None:
    """As floats, or as floats with their columns and the bounds of rows, whichever is less."""
    full = np.ones((10, 10), np.float32)
    few = np.diag(np.arange(10, dtype=np.float32))
    assert stored_bytes(full) == 400
    assert stored_bytes(few) == 9 * 8 + 11 * 4
    assert stored_bytes(sp.csr_array(few)) == 9 * 8 + 11 * 4
