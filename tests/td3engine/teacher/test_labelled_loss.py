"""Steps whose targets are partly what counting models expect, against dense labels."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from td3engine.config import BackboneConfig, BackboneName, TeacherConfig, share_of_counting
from td3engine.counting import labels as labels_module
from td3engine.counting.fitting import fit_counting_models
from td3engine.counting.kernels import Kernel
from td3engine.counting.labels import CountingLabels, KernelLabels
from td3engine.counting.models import WHOLE_HISTORY, KernelModel, Reading
from td3engine.data.split import Split
from td3engine.data.windows import training_windows
from td3engine.models.recommender import Recommender, StepRandomness
from td3engine.models.registry import build_backbone
from td3engine.ranking.holdout import holdout_set
from td3engine.teacher.labelled_loss import labelled_loss
from td3engine.teacher.sampled_steps import SampledSteps
from td3engine.teacher.training import FullSteps, LogTraining
from tests.td3engine.counting import kit
from tests.td3engine.oracles import make_split

CPU = torch.device("cpu")
ITEMS, WIDTH, LENGTH = 12, 8, 7
LENGTHS = torch.tensor([7, 3, 2, 5])
READINGS = (Reading(3, 0.5), Reading(WHOLE_HISTORY, 0.9))


@pytest.fixture(autouse=True)
def few_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are cut to less than their rows have."""
    monkeypatch.setattr(labels_module, "LARGEST_ENTRIES", 4)


def kernels() -> tuple[Kernel, Kernel]:
    """A sparse and a dense one; item 0 leads nowhere in both, item 1 nowhere in the sparse one."""
    draw = np.random.default_rng(1)
    dense = draw.normal(size=(2, ITEMS, ITEMS)).astype(np.float32)
    dense[:, 0] = -1.0
    sparse = np.where(dense[0] > 0.8, dense[0], 0)
    sparse[1] = 0
    return sp.csr_array(sparse), dense[1]


def models() -> list[KernelModel]:
    return [KernelModel(*each) for each in zip(kernels(), READINGS, strict=True)]


def labels_of(share: float) -> CountingLabels:
    """In float64."""
    parts = [KernelLabels.of(model, CPU) for model in models()]
    weights = [part.weights.double() for part in parts]
    exact = [
        replace(part, weights=w, totals=w.sum(1)) for part, w in zip(parts, weights, strict=True)
    ]
    return CountingLabels(exact, share)


def rows() -> Tensor:
    items = torch.from_numpy(np.random.default_rng(2).integers(0, ITEMS, (len(LENGTHS), LENGTH)))
    items[1, :2] = 0  # nothing is known after these
    items[2, :2] = 1  # one of the models knows nothing after this
    return items


def slow_label(items: list[int]) -> np.ndarray[Any, Any] | None:
    """The models' mean distribution after these events, (n), by loops; None: they know nothing."""
    distributions = []
    for kernel, reading in zip(kernels(), READINGS, strict=True):
        dense = kit.dense(kernel)
        total = np.zeros(ITEMS)
        for age, item in enumerate(reversed(items)):
            if age < reading.last:
                for other in np.argsort(-dense[item], kind="stable")[:4]:
                    total[other] += reading.decay**age * max(float(dense[item, other]), 0.0)
        if total.sum():
            distributions.append(total / total.sum())
    return np.mean(distributions, axis=0) if distributions else None


def dense_targets(items: Tensor, randomness: StepRandomness, share: float) -> Tensor:
    """(K, n)."""
    targets = torch.zeros(len(randomness.targets.at), ITEMS, dtype=torch.float64)
    pairs = zip(randomness.targets.rows.tolist(), randomness.targets.at.tolist(), strict=True)
    for target, (row, at) in enumerate(pairs):
        label = slow_label(items[row, :at].tolist())
        part = 0.0 if label is None else share
        targets[target, items[row, at]] += 1 - part
        if label is not None:
            targets[target] += part * torch.from_numpy(label)
    return targets


def recommender(name: BackboneName) -> Recommender:
    config = BackboneConfig(name=name, hidden=WIDTH, inner=8, dropout=0.0)
    return Recommender(build_backbone(config, LENGTH), ITEMS, WIDTH)


@pytest.mark.parametrize(("name", "share"), [("sasrec", 0.3), ("sasrec", 1.0), ("bert4rec", 0.6)])
def test_the_loss_and_its_gradient_are_those_of_dense_labels(
    name: BackboneName, share: float
) -> None:
    model, items, draw = recommender(name), rows(), torch.Generator().manual_seed(0)
    theta = model.initial(draw).double()
    theta += 0.3 * torch.randn(theta.shape, generator=draw, dtype=torch.float64)
    theta.requires_grad_()
    randomness = model.sample_randomness(LENGTHS, draw)
    found = labelled_loss(model, theta, items, LENGTHS, randomness, labels_of(share))

    encoder, table = model.parts(theta)
    hidden = model.states(encoder, table[items], LENGTHS, randomness)
    scores = (hidden @ table.T).log_softmax(1)
    wanted = -(dense_targets(items, randomness, share) * scores).sum(1).mean()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    slopes = [torch.autograd.grad(each, theta, retain_graph=True)[0] for each in (found, wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)


def test_labels_are_what_the_model_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all entries of a kernel that has no negative ones."""
    monkeypatch.setattr(labels_module, "LARGEST_ENTRIES", ITEMS + 1)
    history = [3, 5, 2, 5, 7, 9, 11]
    cases = holdout_set(make_split([history], ITEMS), "test", LENGTH)
    kernel = np.abs(kit.dense(kernels()[1])).astype(np.float32)
    for reading in READINGS:
        model = KernelModel(kernel, reading)
        scores = model.scorer(cases)(slice(0, 1))[0]
        found, known = KernelLabels.of(model, CPU).expected(torch.tensor([history]), torch.eye(12))
        torch.testing.assert_close(found[0, -1], scores / scores.sum(), rtol=1e-5, atol=1e-7)
        assert known.tolist() == [[False] + [True] * 6]


def log() -> Split:
    draw = np.random.default_rng(4)
    starts = draw.integers(0, 30, 40)
    steps = draw.integers(1, 4, (40, 10))
    walks = np.cumsum(np.column_stack([starts, steps]), 1) % 30
    return make_split(walks.tolist(), 30)


def training(split: Split, share: float | None, **settings: Any) -> LogTraining:
    """With labels of this share, or without an argument for them."""
    validation = holdout_set(split, "validation", 12)
    labels = {}
    if share is not None:
        counting = fit_counting_models(split, validation, 10_000)
        labels["labels"] = CountingLabels.of(counting, share, CPU) if share else None
    return LogTraining(
        split,
        Recommender(build_backbone(BackboneConfig(hidden=8), 12), 30, 8),
        TeacherConfig(batch=8, max_epochs=4, **settings),
        lambda rng: training_windows(split, 12, rng),
        validation,
        seed=0,
        device=CPU,
        **labels,
    )


def trained(each: LogTraining) -> LogTraining:
    for _ in each.epochs():
        pass
    return each


def test_labelled_training_goes_on_where_it_stopped() -> None:
    split = log()
    whole, first, second = (training(split, 0.7) for _ in range(3))
    assert isinstance(whole.steps, FullSteps)
    trained(whole)
    for _ in itertools.islice(first.epochs(), 2):
        pass
    second.restore(first.state())
    trained(second)
    assert torch.equal(second.theta, whole.theta)
    assert not torch.equal(whole.theta, trained(training(split, None)).theta)


def test_a_share_of_nothing_is_a_training_without_labels() -> None:
    split = log()
    assert torch.equal(trained(training(split, 0.0)).theta, trained(training(split, None)).theta)


def test_sampled_steps_have_no_labels() -> None:
    split = log()
    sampled = training(split, 0.7, softmax="sampled", negatives=10)
    assert isinstance(sampled.steps, SampledSteps)
    without = training(split, None, softmax="sampled", negatives=10)
    assert torch.equal(trained(sampled).theta, trained(without).theta)


def test_where_there_is_no_ease_item_knn_labels() -> None:
    split = log()
    validation = holdout_set(split, "validation", 12)
    for ease_items, name in ((10_000, "EASE"), (0, "item-kNN")):
        counting = fit_counting_models(split, validation, ease_items)
        named = {each.name: each.model for each in counting}
        wanted = [named["windowed Markov"], named[name]]
        parts = CountingLabels.of(counting, 0.5, CPU).parts
        for part, model in zip(parts, wanted, strict=True):
            assert isinstance(model, KernelModel)
            assert torch.equal(part.weights, KernelLabels.of(model, CPU).weights)
            assert part.reading == model.reading


@pytest.mark.parametrize(
    ("setting", "softmax", "events", "repeats", "share"),
    [
        ("auto", "full", 99, 0.0, 0.7),
        ("auto", "full", 100, 0.0, 0.0),
        ("auto", "full", 50, 0.1, 0.0),
        ("auto", "sampled", 50, 0.0, 0.0),
        (0.4, "full", 500, 0.5, 0.4),
        (0.4, "sampled", 50, 0.0, 0.0),
        (0.0, "full", 50, 0.0, 0.0),
    ],
)
def test_the_share_goes_by_the_log_and_by_what_is_asked(
    setting: Any, softmax: Any, events: int, repeats: float, share: float
) -> None:
    found = share_of_counting(
        setting, softmax, training_events=10 * events, n_items=10, repeat_share=repeats
    )
    assert found == share
