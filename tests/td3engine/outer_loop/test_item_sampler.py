"""Distilling over samples of the catalogue: what it estimates, and that with all items it is the
same as without samples."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from td3engine.inner_loop.gradients import AutogradGradient
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.losses.sampled_softmax import NegativeSampler
from td3engine.outer_loop import item_sampler
from td3engine.outer_loop.distillation import Distillation
from td3engine.outer_loop.item_sampler import highest
from td3engine.summary.tucker import query
from tests.td3engine.distill_kit import ITEMS, ZETA, config_of, make
from tests.td3engine.oracles import default_double, distance, normal

EXACT = 1e-9


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_double():
        yield


def distillation(**outer: Any) -> Distillation:
    return make(config_of("shared-items", **outer), biased=False)


def test_with_every_item_at_hand_distilling_is_as_without_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full, some = distillation(softmax="full"), distillation(softmax="sampled")
    monkeypatch.setattr(item_sampler, "ITEMS_A_POSITION", ITEMS)
    everything = (torch.arange(ITEMS), torch.zeros(ITEMS))
    monkeypatch.setattr(NegativeSampler, "draw", lambda _self, _rng: everything)
    for _ in range(3):
        full.step()
        some.step()
        full.done += 1
        some.done += 1
    assert some.training.model.log_weight is not None
    assert not torch.equal(full.factors[0], full.summary.learned[0])
    for found, expected in zip(some.factors, full.factors, strict=True):
        assert distance(found, expected) < EXACT


def test_on_average_over_draws_the_sum_is_that_over_all_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(item_sampler, "ITEMS_A_POSITION", 1)
    distilled = distillation(softmax="sampled", negatives=1)
    sampler = distilled.sampler
    assert sampler is not None
    C_UTD = query(*distilled.factors).detach()[:1, :2]
    # Or nothing would be left to draws.
    assert len(highest(distilled.V_ND, C_UTD, 1).unique()) < ITEMS
    hidden_KD = normal(5, 4, distilled.V_ND.shape[1])
    weight_N = np.exp(-sampler.negatives.log_weight_N)  # M q, for M = 1
    average_K = torch.zeros(4)
    for item in range(ITEMS):
        drawn = (
            torch.tensor([item]),
            torch.tensor(sampler.negatives.log_weight_N[[item]]).double(),
        )
        monkeypatch.setattr(NegativeSampler, "draw", lambda _self, _rng, drawn=drawn: drawn)
        part = sampler.sampled_recommender(C_UTD, np.random.default_rng(0))
        assert part.frozen is not None
        assert part.log_weight is not None
        scores_KR = hidden_KD @ part.frozen.T
        average_K += float(weight_N[item]) * (scores_KR + part.log_weight).exp().sum(-1)
    expected_K = (hidden_KD @ distilled.V_ND.T).exp().sum(-1)
    torch.testing.assert_close(average_K, expected_K, rtol=1e-5, atol=0.0)  # q is in float32


def test_the_items_pointed_at_are_those_with_most_weight() -> None:
    table = normal(1, ITEMS, 3)
    queries = normal(2, 2, 2, 3)
    found = highest(table, queries, 4).tolist()
    for scores, items in zip((queries.flatten(0, 1) @ table.T).tolist(), found, strict=True):
        assert items == sorted(range(ITEMS), key=lambda item: -scores[item])[:4]


def test_weighted_scores_by_hand_and_by_autograd() -> None:
    distilled = distillation(softmax="sampled", negatives=3)
    distilled._sample(query(*distilled.factors).detach())
    training = distilled.training
    synthetic = normal(3, 5, 2 * ZETA, distilled.V_ND.shape[1])
    draw = torch.Generator().manual_seed(0)
    [step] = training.steps(0, 1, 5, draw)
    theta = training.model.initial(draw)
    direction = normal(4, len(theta))
    analytic = training.grad_fn(theta, synthetic[step.rows], step.randomness, True)
    by_autograd = AutogradGradient(
        theta, synthetic[step.rows], step.randomness, True, loss=training.loss
    )
    assert type(analytic) is not type(by_autograd)
    assert distance(analytic.gradient, by_autograd.gradient) < EXACT
    for found, expected in zip(analytic.hvp(direction), by_autograd.hvp(direction), strict=True):
        assert distance(found, expected) < EXACT


def test_a_sampled_distillation_goes_on_where_it_stopped_and_takes_new_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Tensor] = []

    def pointed(_table: Tensor, queries: Tensor, _count: int) -> Tensor:
        asked.append(queries)
        return torch.tensor([2, 5])

    monkeypatch.setattr(item_sampler, "highest", pointed)
    over = {"softmax": "sampled", "negatives": 4, "steps": 4, "validate_every": 2}
    whole, first, second = distillation(**over), distillation(**over), distillation(**over)
    seen: list[Tensor] = []
    first_predicted = whole.summary.soft_sequences().targets
    for _ in whole.steps():
        assert whole.training.model.log_weight is not None
        seen.append(whole.training.model.log_weight)
    assert any(not torch.equal(seen[0], other) for other in seen[1:])
    assert torch.equal(asked[0], first_predicted)  # where the targets' weight lies
    steps = first.steps()
    next(steps)
    next(steps)
    second.restore(first.state())
    for _ in second.steps():
        pass
    for found, expected in zip(second.result()[0].learned, whole.result()[0].learned, strict=True):
        assert torch.equal(found, expected)
    assert isinstance(second.training, InnerLoopTrainer)
    assert second.result()[0].V.shape == whole.V_ND.shape
