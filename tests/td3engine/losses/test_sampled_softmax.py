"""The sampled softmax against the one over all items, and sampled steps against whole ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from td3engine.config import (
    OUTER_SAMPLED_FROM,
    BackboneConfig,
    BackboneName,
    TeacherConfig,
    softmax_over,
)
from td3engine.data.split import Split, training_counts
from td3engine.data.windows import training_windows
from td3engine.losses.sampled_softmax import NegativeSampler, sampled_cross_entropy
from td3engine.models.recommender import Recommender
from td3engine.models.registry import build_backbone
from td3engine.ranking.holdout import holdout_set
from td3engine.teacher.sampled_steps import SampledSteps
from td3engine.teacher.training import FullSteps, LogTraining

CPU = torch.device("cpu")
ITEMS, WIDTH, TARGETS = 9, 5, 6


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(TARGETS, WIDTH, generator=draw, dtype=torch.float64, requires_grad=True)
    table = torch.randn(ITEMS, WIDTH, generator=draw, dtype=torch.float64, requires_grad=True)
    return hidden, table, torch.randint(ITEMS, (TARGETS,), generator=draw)


def test_with_every_item_once_it_is_the_softmax_over_all() -> None:
    hidden, table, targets = tensors()
    everything = torch.arange(ITEMS).flip(0)
    sampled = sampled_cross_entropy(hidden, targets, table, everything, torch.zeros(ITEMS).double())
    dense = torch.nn.functional.cross_entropy(hidden @ table.T, targets, reduction="none")
    torch.testing.assert_close(sampled, dense, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 2, TARGETS, dtype=torch.float64)
    found = torch.autograd.grad((sampled * weights).sum(), (hidden, table))
    expected = torch.autograd.grad((dense * weights).sum(), (hidden, table))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_on_average_over_draws_the_sum_is_the_softmaxs() -> None:
    """By summing over all possible pairs of draws, with their probabilities."""
    hidden, table, targets = (part.detach() for part in tensors())
    probability = torch.softmax(torch.linspace(0, 2, ITEMS, dtype=torch.float64), 0)
    average = torch.zeros(TARGETS, dtype=torch.float64)
    own = (hidden * table[targets]).sum(-1)
    for first in range(ITEMS):
        for second in range(ITEMS):
            drawn = torch.tensor([first, second])
            log_weight = -(2 * probability[drawn]).log()
            loss = sampled_cross_entropy(hidden, targets, table, drawn, log_weight)
            average += probability[first] * probability[second] * (loss + own).exp()
    torch.testing.assert_close(average, (hidden @ table.T).exp().sum(-1), rtol=1e-12, atol=0.0)


def test_a_target_that_every_draw_hits_costs_nothing_and_moves_nothing() -> None:
    hidden, table, targets = tensors()
    drawn = targets[:1].repeat(4)
    loss = sampled_cross_entropy(hidden[:1], targets[:1], table, drawn, torch.zeros(4).double())
    assert float(loss.detach()) == 0.0
    for gradient in torch.autograd.grad(loss.sum(), (hidden, table)):
        assert torch.all(gradient == 0)


@pytest.fixture
def split() -> Split:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 12, 40)
    return Split(
        histories=rng.integers(0, 30, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        times=np.arange(lengths.sum()),
        item_ids=[str(item) for item in range(30)],
        user_ids=[str(user) for user in range(40)],
    )


def test_draws_come_as_often_as_they_are_taken_to(split: Split) -> None:
    counts = np.zeros(30)
    for user in range(split.n_users):
        np.add.at(counts, split.training(user), 1)
    assert training_counts(split).tolist() == counts.tolist()
    expected = (counts + 1) ** 0.75 / ((counts + 1) ** 0.75).sum()
    randomness = NegativeSampler(split, 40_000)
    items, log_weight = randomness.draw(np.random.default_rng(1))
    found = np.bincount(items.numpy(), minlength=30) / 40_000
    assert np.abs(found - expected).max() < 5 * np.sqrt(expected.max() / 40_000)
    np.testing.assert_allclose(
        np.exp(-log_weight.numpy()), 40_000 * expected[items.numpy()], rtol=1e-5
    )


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_a_step_with_all_items_is_a_whole_step(
    split: Split, name: BackboneName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BERT4Rec has a bias for each item as well."""
    backbone = build_backbone(BackboneConfig(name=name, hidden=8, dropout=0.0), 12)
    model = Recommender(backbone, 30, 8)
    config = TeacherConfig(batch=8, beta2=0.9)
    theta = model.initial(torch.Generator().manual_seed(0))
    full = FullSteps(model, config, theta.clone())
    sampled = SampledSteps(split, model, config, theta.clone())
    assert sampled.schedule.beta2 == 0.9  # and full steps do as these
    monkeypatch.setattr(sampled.negatives, "draw", lambda _rng: (torch.arange(30), torch.zeros(30)))
    rng, draw = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for _ in range(3):
        items = torch.from_numpy(rng.integers(0, 30, (4, 6)))
        lengths = torch.tensor([6, 3, 2, 5])
        randomness = model.sample_randomness(lengths, draw)
        full.step(items, lengths, randomness, rng)
        sampled.step(items, lengths, randomness, rng)
    torch.testing.assert_close(sampled.theta, full.theta.detach(), rtol=1e-4, atol=1e-6)


def test_a_step_leaves_items_alone_that_it_has_not_drawn(split: Split) -> None:
    backbone = build_backbone(BackboneConfig(hidden=8), 12)
    model = Recommender(backbone, 1000, 8)
    many = replace(split, item_ids=[str(item) for item in range(1000)])
    steps = SampledSteps(
        many, model, TeacherConfig(negatives=5), model.initial(torch.Generator().manual_seed(0))
    )
    before = steps.theta.clone()
    lengths = torch.tensor([3])
    randomness = model.sample_randomness(lengths, torch.Generator().manual_seed(0))
    items = torch.tensor([[1, 2, 3]])
    steps.step(items, lengths, randomness, np.random.default_rng(0))
    moved = (model.parts(steps.theta)[1] != model.parts(before)[1]).any(-1)
    assert 3 <= int(moved.sum()) <= 8
    assert moved[items].all()


def test_the_softmax_goes_by_the_catalogue_and_by_what_is_asked() -> None:
    assert softmax_over(49_999, "auto") == "full"
    assert softmax_over(50_000, "auto") == "sampled"
    assert softmax_over(10**6, "full") == "full"
    assert softmax_over(10, "sampled") == "sampled"
    assert softmax_over(9_999, "auto", OUTER_SAMPLED_FROM) == "full"
    assert softmax_over(10_000, "auto", OUTER_SAMPLED_FROM) == "sampled"


def test_sampled_training_goes_on_where_it_stopped(split: Split) -> None:
    config = TeacherConfig(batch=8, max_epochs=4, softmax="sampled", negatives=10)

    def training() -> LogTraining:
        backbone = build_backbone(BackboneConfig(hidden=8), 12)
        return LogTraining(
            split,
            Recommender(backbone, 30, 8),
            config,
            lambda rng: training_windows(split, 12, rng),
            holdout_set(split, "validation", 12),
            seed=0,
            device=CPU,
        )

    whole, first, second = training(), training(), training()
    assert isinstance(whole.steps, SampledSteps)
    for _ in whole.epochs():
        pass
    epochs = first.epochs()
    next(epochs)
    next(epochs)
    second.restore(first.state())
    for _ in second.epochs():
        pass
    assert torch.equal(second.theta, whole.theta)
