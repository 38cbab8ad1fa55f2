"""Outer steps whose positions meet few items one by one."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from td3engine.config import DistillConfig
from td3engine.config.presets import merge
from td3engine.inner_loop.learner import learn
from td3engine.outer_loop.distillation import Distillation
from td3engine.summary import item_cells
from td3engine.summary.soft_sequences import SparseSupport
from td3engine.summary.tucker import query
from tests.td3engine.distill_kit import ITEMS, config_of, make
from tests.td3engine.oracles import default_double, distance


@pytest.fixture(autouse=True)
def _small_cells_in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four cells of two or three items: those of one item are exact anyway."""
    monkeypatch.setattr(item_cells, "FEWEST_ITEMS", 1)
    monkeypatch.setattr(item_cells, "CELLS_A_ROOT", 4 / 3)
    with default_double():
        yield


def distillation(**outer: Any) -> Distillation:
    config = config_of("shared-items", **outer)
    soft = {"summary": {"inputs": "soft"}, "learner": {"loss": "cross-entropy"}}
    return make(DistillConfig.model_validate(merge(config.model_dump(), soft)), biased=False)


def test_a_step_is_near_that_over_all_items_and_learners_that_are_measured_read_all() -> None:
    sparse, whole = distillation(support=6), distillation(support="all")
    assert isinstance(sparse.training.soft_embedding, SparseSupport)
    for each in (sparse, whole):
        each.step()
    some, all_items = (
        torch.cat([factor.grad.flatten() for factor in each.factors if factor.grad is not None])
        for each in (sparse, whole)
    )
    assert 1e-6 < distance(some, all_items) < 0.3  # of nine items, six are near
    draw = torch.Generator().manual_seed(0)
    expected = learn(sparse.summary, sparse.backbone, sparse.config.learner, "shared-items", draw)
    draw.manual_seed(0)
    found = sparse._learner_of(sparse.summary, draw)
    assert torch.equal(found.parameters, expected.model.parameters)


@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_a_stopped_distillation_goes_on_to_the_same_bytes(softmax: str) -> None:
    over = {"softmax": softmax, "negatives": 4, "support": 3, "steps": 4, "validate_every": 2}
    whole, first, second = (distillation(**over) for _ in range(3))
    for _ in whole.steps():
        pass
    steps = first.steps()
    next(steps)
    next(steps)
    second.restore(first.state())
    for _ in second.steps():
        pass
    for found, expected in zip(second.factors, whole.factors, strict=True):
        assert torch.equal(found, expected)


def test_the_sampler_asks_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    distilled = distillation(softmax="sampled", negatives=4, support=3)
    assert distilled.sampler is not None
    C_UTD = query(*distilled.factors).detach()
    found = distilled.sampler.top(C_UTD, 2)
    assert found.shape == (C_UTD.shape[0] * C_UTD.shape[1], 2)
    assert set(found.flatten().tolist()) <= set(range(ITEMS))
    embedding = distilled.training.soft_embedding
    assert isinstance(embedding, SparseSupport)
    assert torch.equal(found, embedding.top(C_UTD, 2))
