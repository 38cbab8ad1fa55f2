"""What a GPU replays outside windows: single steps of a learner, and the gradient of a real batch.

Each against the same without a recording, which has its own oracles. On the CPU nothing is
recorded, but what a recording depends on is the same: fixed buffers and fixed shapes.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from td3engine.config import Mode
from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.gradients import InnerStep
from td3engine.inner_loop.learner import learn_from, recommender
from td3engine.inner_loop.recorded import RecordedSteps
from td3engine.inner_loop.trainer import InnerLoopTrainer, advance
from td3engine.inner_loop.unroll import train
from td3engine.models.recommender import StepRandomness
from td3engine.outer_loop.distillation import Distillation
from td3engine.outer_loop.objective import RealBatch, RecordedObjective, SurrogateObjective
from td3engine.summary.soft_sequences import soft_embedding_for
from tests.td3engine.devices import CPU, DEVICES
from tests.td3engine.oracles import default_double, distance, normal, seeded
from tests.td3engine.test_distill import config_of, make
from tests.td3engine.test_unroll import MU, Objective, World, make_world, warm

EXACT = 1e-11


def moved(step: InnerStep[StepRandomness], device: torch.device) -> InnerStep[StepRandomness]:
    targets, dropout = step.randomness.targets, step.randomness.dropout
    targets = replace(targets, rows=targets.rows.to(device), at=targets.at.to(device))
    randomness = StepRandomness(targets, None if dropout is None else dropout.to(device))
    return InnerStep(step.rows.to(device), randomness)


def training_on(world: World, device: torch.device, recorded: bool = True) -> InnerLoopTrainer:
    own, V = world.training, world.V.to(device)
    mode: Mode = "from-scratch" if own.model.frozen is None else "shared-items"
    soft_embedding = soft_embedding_for(V, 1, fixed=mode == "shared-items")
    model = recommender(world.backbone, V, mode)
    sizes = own.count, soft_embedding, own.length
    return InnerLoopTrainer(model, own.config, *sizes, recorded=recorded)


def on(device: torch.device, state: LearnerState) -> LearnerState:
    names = ("parameters", "first", "second")
    p, m, v = (getattr(state, name).to(device) for name in names)
    return LearnerState(p, m, v, state.age)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("mode", "objective", "dropout"),
    [
        ("shared-items", "all-positions", 0.3),
        ("shared-items", "last-and-augmented", 0.0),
        ("from-scratch", "last-and-augmented", 0.3),
        ("from-scratch", "all-positions", 0.0),
    ],
)
def test_recorded_steps_are_those_of_training(
    mode: Mode, objective: Objective, dropout: float, device: torch.device
) -> None:
    """Of two learners in turn, of other ages; one goes on past the end of its schedule."""
    world = make_world(mode=mode, objective=objective, dropout=dropout, weight_decay=0.02)
    training, synthetic = training_on(world, device), world.synthetic(world.factors)
    assert training.recorded is not None
    kept = []
    for start in (warm(world, 3), warm(world, 39), warm(world, 5)):
        steps = world.steps(start.age, 3)
        wanted = train(start, synthetic, steps, world.training.take, world.training.schedule)[-1]
        there = [moved(step, device) for step in steps]
        given = on(device, start)
        found = training.recorded(synthetic.to(device), given, there, training.schedule)
        assert found.age == wanted.age
        kept.append((found, wanted))
    for found, wanted in kept:  # after all of them: none's memory was used again
        for name in ("parameters", "first", "second"):
            assert distance(getattr(found, name).cpu(), getattr(wanted, name)) < EXACT


def test_a_learner_is_recorded_where_that_is_asked_for_and_its_step_stays_the_same() -> None:
    world = make_world()
    assert world.training.recorded is None
    training = training_on(world, CPU)
    assert isinstance(training.recorded, RecordedSteps)
    part = replace(training.model, log_weight=torch.zeros(1))
    assert training.over(part).recorded is None
    assert training_on(make_world(biased=True), CPU).recorded is None  # goes by autograd


@pytest.mark.parametrize("recorded", [False, True])
def test_advancing_in_pieces_is_training(recorded: bool) -> None:
    """More steps than are drawn at once."""
    world = make_world(dropout=0.2)
    synthetic, draw = world.synthetic(world.factors), seeded(5)
    state = start = LearnerState.fresh(world.start)
    for count in (20, 5):
        steps = world.training.steps(state.age, count, MU, draw)
        state = train(state, synthetic, steps, world.training.take, world.training.schedule)[-1]
    training = training_on(world, CPU, recorded)
    found = advance(training, synthetic, start, seeded(5), 25)
    assert found.age == 25
    assert (training.recorded is not None) == recorded
    assert distance(found.parameters, state.parameters) < EXACT


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_a_learner_on_a_gpu_is_that_of_plain_steps(mode: Mode) -> None:
    """Trained to the end with the GPU's own draws, recorded and not."""
    device = torch.device("cuda")
    world = make_world(mode=mode, dropout=0.2)
    synthetic = world.synthetic(world.factors).to(device)
    found = []
    with default_double():
        for recorded in (True, False):
            training = training_on(world, device, recorded)
            learned = learn_from(training, synthetic, torch.Generator(device).manual_seed(1))
            found.append(learned.model.parameters)
    assert distance(*found) < 1e-6


# --- the real batch -----------------------------------------------------------------------------


def surrogate_of(mode: Mode, **outer: Any) -> tuple[Distillation, SurrogateObjective]:
    with default_double():
        distillation = make(config_of(mode, feature_weight=0.7, **outer), False)
    return distillation, distillation.surrogate


def on_device(surrogate: SurrogateObjective, device: torch.device) -> SurrogateObjective:
    own = surrogate.teacher
    teacher = replace(own, model=own.model.to(device))
    frozen = surrogate.model.frozen
    model = replace(surrogate.model, frozen=None if frozen is None else frozen.to(device))
    return replace(surrogate, model=model, teacher=teacher)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("mode", "share"), [("shared-items", 0.3), ("from-scratch", 0.3), ("from-scratch", 1.0)]
)
def test_padding_weighs_nothing(mode: Mode, share: float, device: torch.device) -> None:
    """Batches of other lengths and numbers of rows, one after the other in the same buffers."""
    distillation, surrogate = surrogate_of(mode, teacher_share=share)
    length = distillation.history + 1
    there = on_device(surrogate, device)
    recorded = RecordedObjective(there, device, 5, length)
    found, wanted = [], []
    for nth, lengths in enumerate(([2, length, 3], [4, 2, 2, 3, length - 1], [length])):
        rng = np.random.default_rng(nth)
        lengths_B = torch.tensor(lengths)
        longest = max(lengths)
        items = torch.from_numpy(
            rng.integers(distillation.split.n_items, size=(len(lengths), longest))
        )
        items[torch.arange(longest) >= lengths_B[:, None]] = 0
        theta = normal(nth, surrogate.model.n_parameters, std=0.3)
        asked = distillation.backbone.draw_targets(lengths_B, seeded(0))
        batch = RealBatch(items, lengths_B, StepRandomness(asked, None))
        wanted.append(surrogate.gradient(theta, batch))
        given = (theta, items, lengths_B)
        found.append(recorded.gradient(*(each.to(device) for each in given)))
    for ours, theirs in zip(found, wanted, strict=True):
        assert theirs.norm() > 1e-3
        assert distance(ours.cpu(), theirs) < EXACT
