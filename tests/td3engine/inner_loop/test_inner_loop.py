"""`learn`, the training that a summary's user does, against the textbook in both modes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from td3engine.config import BackboneConfig, LearnerConfig, Mode
from td3engine.inner_loop import plan
from td3engine.inner_loop.learner import learn, recommender, training_on
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.models.backbone import TargetPositions
from td3engine.models.backbones.sasrec import SASRec
from td3engine.models.recommender import StepRandomness
from td3engine.models.trained_model import TrainedModel
from td3engine.summary.soft_sequences import DenseProbs
from td3engine.summary.tucker import TuckerSummary
from tests.td3engine.biased import BiasedSASRec
from tests.td3engine.oracles import (
    Textbook,
    default_double,
    dense_summary,
    distance,
    leaves,
    normal,
    seeded,
)

Schedule = Literal["constant", "linear"]

MU, ZETA, WIDTH, ITEMS = 7, 8, 4, 9  # 20 steps of 2 do not come round to user 0
SUMMARY = TuckerSummary(
    U=normal(0, MU, 2), T=normal(1, ZETA, 3), G=normal(2, 2, 3, WIDTH), V=normal(3, ITEMS, WIDTH)
)
OWN_TARGETS = replace(SUMMARY, Y=normal(5, ZETA, 3))
S = dense_summary(SUMMARY.U, SUMMARY.T, SUMMARY.G, SUMMARY.V)
SHAPE = BackboneConfig(hidden=WIDTH, inner=5, dropout=0.3)
BACKBONE, BIASED = SASRec(SHAPE, ZETA - 1), BiasedSASRec(SHAPE, ZETA - 1)
MODES: tuple[Mode, ...] = ("shared-items", "from-scratch")


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_double():
        yield


def make_config(steps: int, schedule: Schedule = "linear") -> LearnerConfig:
    return LearnerConfig(
        loss="cross-entropy",
        steps=steps,
        scratch_steps=steps,
        batch=2,
        lr=0.01,
        schedule=schedule,
        weight_decay=0.02,
        beta2=0.97,
        objective="all-positions",
    )


def definition(backbone: SASRec, mode: Mode) -> Textbook:
    own_table = mode == "from-scratch"
    return Textbook(backbone.encode, backbone.n_parameters, SUMMARY.V, own_table, backbone.biased)


def targets_of(summary: TuckerSummary) -> Tensor:
    return S if summary.Y is None else dense_summary(summary.U, summary.Y, summary.G, summary.V)


def textbook(
    summary: TuckerSummary, backbone: SASRec, mode: Mode, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Encoder, E and b after torch.optim's Adam on dense soft targets."""
    draw, book = seeded(9), definition(backbone, mode)
    start = [backbone.initial(draw)]
    if book.own_table:
        start.append((torch.randn(ITEMS, WIDTH, generator=draw) * 0.02).flatten())
    if book.biased:
        start.append(torch.zeros(ITEMS))
    trained = torch.cat(start).requires_grad_()
    optimizer = torch.optim.Adam([trained], lr=0.01, betas=(0.9, 0.97), weight_decay=0.02)
    model, soft_embedding = recommender(backbone, SUMMARY.V, mode), DenseProbs(SUMMARY.V)
    own = plan.plan_training(backbone, mode, ITEMS, positions=0)
    trainer = InnerLoopTrainer(model, make_config(steps), steps, soft_embedding, ZETA, own)
    targets = targets_of(summary)
    for number, step in enumerate(trainer.steps(0, steps, MU, draw)):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - number / steps)
        rows = [(2 * number) % MU, (2 * number + 1) % MU]
        optimizer.zero_grad()
        # The KL; the engine's loss is less its entropy, of no gradient here.
        book.summary_loss(trained, S[rows], step.randomness.dropout, None, targets[rows]).backward()
        optimizer.step()
    return book.parts(trained.detach())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backbone", [BACKBONE, BIASED])
@pytest.mark.parametrize("largest_dense", [0, 10**6])
@pytest.mark.parametrize("summary", [SUMMARY, OWN_TARGETS])
def test_learn_is_the_textbooks(
    mode: Mode,
    backbone: SASRec,
    largest_dense: int,
    summary: TuckerSummary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading stored probabilities, and queries where those are too many.

    Compared by what the encoders do, not by their numbers: the attention's key bias has no effect
    and a gradient of pure rounding noise, which Adam scales up to steps of full size.
    """
    monkeypatch.setattr(plan, "LARGEST_DENSE", largest_dense)
    learner = learn(summary, backbone, make_config(23), mode, seeded(9))
    found = learner.model
    encoder, E, b = textbook(summary, backbone, mode, 23)
    x = normal(10, 6, ZETA - 1, WIDTH)
    ours, theirs = (backbone.encode(each, x, None) for each in (found.parameters, encoder))
    assert distance(ours, theirs) < 1e-8
    assert distance(found.table[:, :WIDTH], E) < 1e-8
    assert found.table.shape == (ITEMS, WIDTH + backbone.biased)
    if backbone.biased:
        assert b.norm() > 0.01
        assert distance(found.table[:, WIDTH], b) < 1e-8
    assert torch.equal(found.table[:, :WIDTH], SUMMARY.V) == (mode == "shared-items")
    assert learner.seconds > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backbone", [BACKBONE, BIASED])
@pytest.mark.parametrize("summary", [SUMMARY, OWN_TARGETS])
def test_the_loss_by_attention_and_by_probabilities_is_the_definition(
    mode: Mode, backbone: SASRec, summary: TuckerSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch as X or queries C (a summary's user) and as S (distilling): value and gradient."""
    book = definition(backbone, mode)
    monkeypatch.setattr(plan, "LARGEST_DENSE", 0)
    by_attention, synthetic = training_on(summary, backbone, make_config(20), mode)
    own, soft_embedding = summary.Y is not None, DenseProbs(SUMMARY.V)
    model, config = by_attention.model, make_config(20)
    dense = InnerLoopTrainer(model, config, 20, soft_embedding, ZETA, by_attention.plan)
    targets = targets_of(summary)
    probabilities = torch.cat([S, targets], 1) if own else S
    initial = by_attention.model.initial(seeded(1))
    (theta,) = leaves(initial + normal(2, len(initial), std=0.3))
    rows, places = torch.tensor([2, 5, 3]), [[7, 5], [7, 6], [7, 1]]
    asked = TargetPositions(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor(places).flatten())
    randomness = StepRandomness(asked, backbone.dropout(3, ZETA, seeded(3)))
    entropy = -(targets * targets.log()).sum(-1)[rows.repeat_interleave(2), asked.at].mean()
    wanted = book.summary_loss(theta, S[rows], randomness.dropout, places, targets[rows]) + entropy
    (gradient,) = torch.autograd.grad(wanted, theta)
    for training, batch in ((by_attention, synthetic[rows]), (dense, probabilities[rows])):
        found = training.loss(theta, batch, randomness)
        assert distance(found, wanted) < 1e-10
        assert distance(torch.autograd.grad(found, theta)[0], gradient) < 1e-10


def test_each_mode_takes_its_own_number_of_steps() -> None:
    config = make_config(20).model_copy(update={"steps": 4, "scratch_steps": 6})
    both: list[tuple[Mode, int]] = [("shared-items", 4), ("from-scratch", 6)]
    for mode, steps in both:
        seen: list[TrainedModel] = []

        def validate(model: TrainedModel, seen: list[TrainedModel] = seen) -> float:
            seen.append(model)
            return 0.0

        found = learn(SUMMARY, BACKBONE, config, mode, seeded(9), validate)
        wanted = learn(SUMMARY, BACKBONE, make_config(steps), mode, seeded(9))
        assert len(seen) == 1
        assert torch.equal(found.model.parameters, wanted.model.parameters)


@pytest.mark.parametrize("mode", MODES)
def test_learn_returns_the_best_state_that_validation_saw(mode: Mode) -> None:
    """45 steps are looked at after 20, 40 and 45; the second look is the best."""
    values = iter([0.1, 0.5, 0.3])
    seen: list[Tensor] = []

    def validate(model: TrainedModel) -> float:
        seen.append(model.parameters.clone())
        return next(values)

    config = make_config(45, "constant")
    found = learn(SUMMARY, BACKBONE, config, mode, seeded(9), validate).model
    forty = learn(SUMMARY, BACKBONE, make_config(40, "constant"), mode, seeded(9)).model
    assert len(seen) == 3
    assert torch.equal(found.parameters, seen[1])
    assert torch.equal(found.parameters, forty.parameters)
    assert torch.equal(found.table, forty.table)
    assert not torch.equal(found.parameters, seen[2])
