"""Learners that are held to scores, against the dense definition of the distance in float64."""

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from td3engine.config import BackboneConfig, LearnerConfig, Mode
from td3engine.errors import ConfigError
from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.gradients import AnalyticScoredGradient, scored_loss
from td3engine.inner_loop.learner import recommender
from td3engine.inner_loop.plan import InnerLoopPlan
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.losses.score_distance import centred, mean_distance
from td3engine.models.backbones.sasrec import SASRec
from td3engine.models.recommender import StepRandomness
from td3engine.summary.labelled import LabelledSummary
from td3engine.summary.scored_sequences import LARGEST_INDEX, InputsWithTargets, ItemInputs
from td3engine.summary.tucker import TuckerSummary
from tests.td3engine.biased import BiasedSASRec
from tests.td3engine.oracles import normal, seeded

MU, ZETA, WIDTH, ITEMS = 5, 6, 4, 9
Form = Literal["items", "precomputed", "dense", "chunked"]
CASES: list[tuple[Form, Mode]] = [
    ("items", "shared-items"),
    ("items", "from-scratch"),
    ("precomputed", "shared-items"),
    ("dense", "from-scratch"),
    ("chunked", "from-scratch"),
]


def a_trainer(
    form: Form, mode: Mode, *, biased: bool = False, dropout: float = 0.0
) -> tuple[InnerLoopTrainer, Tensor, Tensor]:
    """A trainer, its synthetic tensor, and a learner's parameters."""
    shape = BackboneConfig(hidden=WIDTH, layers=1, heads=1, inner=5, dropout=dropout)
    backbone = (BiasedSASRec if biased else SASRec)(shape, ZETA - 1)
    V = normal(3, ITEMS, WIDTH)
    summary: LabelledSummary | TuckerSummary
    if form == "items":
        items = torch.randint(ITEMS, (MU, ZETA), generator=seeded(6))
        summary = LabelledSummary(items, normal(1, MU, ZETA - 1, WIDTH), V, 1.5)
    else:
        core = normal(2, 2, 3, WIDTH, std=0.5)
        time = normal(1, ZETA, 3), normal(13, ZETA, 3)
        summary = TuckerSummary(normal(0, MU, 2), time[0], core, V, time[1])
    plan = InnerLoopPlan("autograd" if biased else "analytic", form, "scores")
    model = recommender(backbone, V, mode)
    config = LearnerConfig(steps=40, batch=2, lr=0.01)
    sequences = plan.sequences(summary)
    trainer = InnerLoopTrainer(model, config, 40, sequences, ZETA, plan)
    theta = normal(4, model.n_parameters, std=0.5)
    return trainer, sequences.synthetic(summary.queries()), theta


def dense_loss(
    trainer: InnerLoopTrainer, theta: Tensor, batch: Tensor, randomness: StepRandomness
) -> Tensor:
    """The definition, with a score of every item at every position."""
    model, sequences = trainer.model, trainer.soft_embedding
    assert isinstance(sequences, InputsWithTargets)
    encoder, table = model.parts(theta)
    inputs = batch[..., :-WIDTH]
    if inputs.shape[-1] == 1:
        X = functional.one_hot(inputs[..., 0].long(), ITEMS).double() @ table
    elif inputs.shape[-1] == ITEMS:
        X = inputs @ table
    elif model.frozen is None:
        X = (inputs @ sequences.V.T).softmax(-1) @ table
    else:
        X = inputs
    lengths = torch.full((len(batch),), ZETA)
    hidden = model.states(encoder, X, lengths, randomness)
    queries = batch[..., -WIDTH:][randomness.targets.rows, randomness.targets.at]
    theirs, ours = queries @ sequences.V.T, hidden @ table.T
    apart = (ours - ours.mean(1, keepdim=True)) - (theirs - theirs.mean(1, keepdim=True))
    return apart.square().mean()


@pytest.mark.parametrize(("form", "mode"), CASES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_and_hessian_product_are_those_of_the_dense_definition(
    form: Form, mode: Mode, dropout: float
) -> None:
    trainer, synthetic, theta = a_trainer(form, mode, dropout=dropout)
    (step,) = trainer.steps(0, 1, MU, seeded(7))
    batch = synthetic[step.rows].clone().requires_grad_()
    parameters = theta.clone().requires_grad_()
    loss = dense_loss(trainer, parameters, batch, step.randomness)
    (gradient,) = torch.autograd.grad(loss, parameters, create_graph=True)
    direction = normal(8, len(theta))
    to_parameters, to_batch = torch.autograd.grad(
        gradient, (parameters, batch), direction, materialize_grads=True
    )

    analytic = trainer.grad_fn(theta, batch.detach(), step.randomness, True)

    assert isinstance(analytic, AnalyticScoredGradient)
    torch.testing.assert_close(analytic.gradient, gradient.detach(), rtol=1e-9, atol=1e-11)
    ours = analytic.hvp(direction)
    torch.testing.assert_close(ours[0], to_parameters, rtol=1e-9, atol=1e-11)
    if form == "items":  # an item's index is no number to be distilled
        to_batch = torch.cat([torch.zeros_like(to_batch[..., :1]), to_batch[..., 1:]], -1)
    torch.testing.assert_close(ours[1], to_batch, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("form", "mode"), CASES)
@pytest.mark.parametrize("biased", [False, True])
def test_loss_is_the_dense_definition(form: Form, mode: Mode, biased: bool) -> None:
    if biased and form in ("precomputed", "chunked"):
        form = "dense"  # what the plan of a backbone with an item bias has
    trainer, synthetic, theta = a_trainer(form, mode, biased=biased)
    (step,) = trainer.steps(0, 1, MU, seeded(7))
    batch = synthetic[step.rows]

    sequences = trainer.soft_embedding
    assert isinstance(sequences, InputsWithTargets)
    ours = scored_loss(trainer.model, sequences, theta, batch, step.randomness)

    torch.testing.assert_close(
        ours, dense_loss(trainer, theta, batch, step.randomness), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("biased", [False, True])
def test_window_gives_the_gradient_of_a_plain_unroll(biased: bool) -> None:
    trainer, synthetic, theta = a_trainer("items", "from-scratch", biased=biased)
    steps = trainer.steps(0, 3, MU, seeded(9))
    outer = normal(10, len(theta))
    end, reverse = trainer.unroll(synthetic, LearnerState.fresh(theta), steps)
    to_synthetic = reverse(outer)

    labels = synthetic.clone()
    epsilon = 1e-5
    for place in [(0, 1, 1), (1, 3, 2), (3, 5, WIDTH)]:
        values = []
        for sign in (1, -1):
            moved = labels.clone()
            moved[place] += sign * epsilon
            final, _ = trainer.unroll(moved, LearnerState.fresh(theta), steps)
            values.append(float(final.parameters @ outer))
        numeric = (values[0] - values[1]) / (2 * epsilon)
        assert float(to_synthetic[place]) == pytest.approx(numeric, rel=1e-4, abs=1e-8)
    assert not to_synthetic[..., 0].any()
    assert end.age == 3


def test_distance_is_none_of_equal_scores_up_to_a_number() -> None:
    V, query = normal(0, ITEMS, WIDTH), normal(1, 7, WIDTH)
    moved = V + normal(2, WIDTH)  # every row by as much: one number on all scores

    sequences = InputsWithTargets(ItemInputs(torch.zeros(1, 2, dtype=torch.long), ITEMS), 2, V)
    value = mean_distance(query, query, sequences.products(centred(moved)))

    assert float(value) == pytest.approx(0, abs=1e-12)


def test_each_pass_takes_every_sequence_once_in_an_order_of_its_own() -> None:
    trainer, _, _ = a_trainer("items", "shared-items")
    steps = trainer.steps(0, 10, MU, seeded(3))  # of two sequences each: four passes over five
    rows = torch.cat([step.rows for step in steps]).view(4, MU)
    assert rows.sort(1).values.tolist() == [list(range(MU))] * 4
    assert len({tuple(each) for each in rows.tolist()}) > 1
    again = torch.cat([step.rows for step in trainer.steps(0, 10, MU, seeded(3))])
    assert torch.equal(rows.flatten(), again)
    # No step has more sequences than there are.
    assert [step.rows.tolist() for step in trainer.steps(0, 2, 1, seeded(3))] == [[0], [0]]


def test_more_items_than_a_float_can_number_are_refused() -> None:
    items = torch.zeros(1, 2, dtype=torch.long)
    largest = torch.tensor(LARGEST_INDEX, dtype=torch.long)
    assert largest.float().long() == largest
    assert (largest + 1).float().long() != largest + 1
    ItemInputs(items, LARGEST_INDEX)
    with pytest.raises(ConfigError, match="16,777,217"):
        ItemInputs(items, LARGEST_INDEX + 1)
