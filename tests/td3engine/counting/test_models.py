"""What counting models make of histories, against loops over their events."""

import numpy as np
import pytest
import torch
from torch import Tensor

from td3engine.counting import kernels
from td3engine.counting.kernels import co_occurrences, cosine, transitions
from td3engine.counting.models import (
    WHOLE_HISTORY,
    CountingModel,
    KernelModel,
    Popularity,
    Reading,
    RepeatRule,
    history_matrix,
)
from td3engine.data.split import training_counts
from td3engine.ranking.holdout import HoldoutSet, holdout_set
from td3engine.ranking.metrics import evaluate
from td3engine.teacher.mixture import PartDistributions
from tests.td3engine.counting.kit import ITEMS, all_scores, dense, odd_log, training
from tests.td3engine.oracles import make_split

READINGS = [
    Reading(1, 1.0),
    Reading(3, 0.5),
    Reading(50, 0.9),
    Reading(WHOLE_HISTORY, 1.0),
    Reading(WHOLE_HISTORY, 0.7),
]


def pasts(histories: list[list[int]]) -> list[list[int]]:
    """What is before each test event."""
    return [history[:-1] for history in histories if len(history) >= 3]


def slow_weights(past: list[int], reading: Reading) -> list[float]:
    weights = [0.0] * ITEMS
    for age, item in enumerate(reversed(past)):
        if age < reading.last:
            weights[item] += reading.decay**age
    return weights


def cases_of(histories: list[list[int]]) -> HoldoutSet:
    return holdout_set(make_split(histories, ITEMS), "test", 6)


@pytest.mark.parametrize("reading", READINGS)
def test_history_matrix(reading: Reading) -> None:
    histories = odd_log(1)
    cases = cases_of(histories)
    wanted = [slow_weights(past, reading) for past in pasts(histories)]
    for rows in (slice(0, len(wanted)), slice(2, 5), slice(len(wanted) - 1, len(wanted))):
        found = torch.from_numpy(dense(history_matrix(cases, rows, reading)))
        torch.testing.assert_close(
            found, torch.tensor(wanted[rows], dtype=torch.float64), rtol=1e-5, atol=0
        )


def ordered(scores: Tensor) -> list[int]:
    return scores.argsort(descending=True, stable=True).tolist()


def test_popularity_counts_training_events() -> None:
    histories = odd_log(2)
    split = make_split(histories, ITEMS)
    events = [item for history in histories for item in training(history)]
    wanted = [float(events.count(item)) for item in range(ITEMS)]
    cases = cases_of(histories)
    model = Popularity(torch.from_numpy(training_counts(split)).float())
    found = all_scores(model, cases)
    assert found.tolist() == [wanted] * len(cases.targets)
    assert model.stored_bytes == 4 * ITEMS


@pytest.mark.parametrize("seed", range(3))
def test_repeat_rule_is_often_had_then_popular(seed: int) -> None:
    """Of items had equally often the more popular is first, as among all others."""
    histories = odd_log(seed)
    popularity = torch.rand(ITEMS, generator=torch.Generator().manual_seed(seed))
    model = RepeatRule(popularity, Reading(WHOLE_HISTORY, 1.0))
    found = all_scores(model, cases_of(histories))
    for scores, past in zip(found, pasts(histories), strict=True):
        wanted = sorted(range(ITEMS), key=lambda item: (-past.count(item), -popularity[item]))
        assert ordered(scores) == wanted
    assert model.stored_bytes == 4 * ITEMS


@pytest.mark.parametrize("decay", [0.9, 0.5])
def test_repeat_rule_prefers_what_was_had_lately_to_what_is_popular(decay: float) -> None:
    popularity = torch.linspace(0.99, 0, ITEMS)
    cases = cases_of([[0, 1, 2, 3, 5]])
    scores = all_scores(RepeatRule(popularity, Reading(WHOLE_HISTORY, decay)), cases)[0]
    assert ordered(scores)[:4] == [3, 2, 1, 0]


def test_where_a_kernel_knows_nothing_popularity_ranks() -> None:
    """And only there; a mixture is given what the kernel knows."""
    kernel = np.zeros((ITEMS, ITEMS), np.float32)
    kernel[3, [7, 8]] = 0.001, 0.002
    popularity = torch.linspace(0, 0.99, ITEMS)
    model = KernelModel(kernel, Reading(1, 1.0), popularity)
    cases = cases_of([[1, 3, 5]])
    others = [item for item in reversed(range(ITEMS)) if item not in (7, 8)]
    assert ordered(all_scores(model, cases)[0]) == [8, 7, *others]
    weights = model.weights(cases)(slice(0, 1))[0]
    assert weights.nonzero()[:, 0].tolist() == [7, 8]
    assert torch.equal(PartDistributions([model], cases).of(slice(0, 1))[0][0], weights)


@pytest.mark.parametrize("decay", [0.9, 0.7, 0.3])
def test_repeat_rule_never_forgets_that_an_item_was_had(decay: float) -> None:
    """However long ago, and however unpopular."""
    popularity = torch.full((ITEMS,), 0.999)
    popularity[:3] = 0.0
    cases = cases_of([[0, 1, *[2] * 2000, 5]])
    scores = all_scores(RepeatRule(popularity, Reading(WHOLE_HISTORY, decay)), cases)[0]
    assert scores[:3].min() > scores[3:].max()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", ["windowed", "cosine"])
def test_kernel_model_sums_what_events_contribute(name: str, reading: Reading) -> None:
    histories = odd_log(3)
    split = make_split(histories, ITEMS)
    kernel = (
        transitions(split, 3, 0.8, 2.0)
        if name == "windowed"
        else cosine(co_occurrences(split), 0.7)
    )
    table = dense(kernel)
    found = all_scores(KernelModel(kernel, reading), cases_of(histories))
    assert found.dtype == torch.float32
    for scores, past in zip(found.tolist(), pasts(histories), strict=True):
        wanted = [
            sum(
                reading.decay**age * table[item, scored]
                for age, item in enumerate(reversed(past))
                if age < reading.last
            )
            for scored in range(ITEMS)
        ]
        assert scores == pytest.approx(wanted, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("reading", READINGS)
def test_a_sparse_kernel_scores_and_ranks_as_a_dense_one(
    monkeypatch: pytest.MonkeyPatch, reading: Reading
) -> None:
    split = make_split(odd_log(4), ITEMS)
    cases = cases_of(odd_log(4))

    def model() -> KernelModel:
        return KernelModel(transitions(split, 5, 0.7, 1.0), reading)

    small = model()
    monkeypatch.setattr(kernels, "LARGEST_DENSE", 1)
    large = model()
    assert isinstance(small.kernel, type(dense(small.kernel)))
    assert not isinstance(large.kernel, type(small.kernel))
    torch.testing.assert_close(all_scores(small, cases), all_scores(large, cases))
    assert evaluate(small, cases, "all") == evaluate(large, cases, "all")
    assert small.stored_bytes == large.stored_bytes or small.stored_bytes == 4 * ITEMS**2


@pytest.mark.parametrize(
    "model",
    [
        Popularity(torch.arange(ITEMS).float()),
        RepeatRule(torch.arange(ITEMS) / ITEMS, Reading(WHOLE_HISTORY, 0.9)),
        KernelModel(transitions(make_split(odd_log(), ITEMS), 5, 0.7, 1.0), Reading(5, 0.5)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_scores_do_not_depend_on_how_many_are_made_at_once(model: CountingModel) -> None:
    cases = cases_of(odd_log())
    assert torch.equal(all_scores(model, cases, 1), all_scores(model, cases, 1000))
