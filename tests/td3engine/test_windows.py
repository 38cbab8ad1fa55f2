"""Learners unrolled together: against the textbook, one learner at a time, and against one by one.

What can go wrong is that learners mix, that each other's age, draws or rows are used, or that a
result is still needed when its memory is used again: so ages, draws and rows all differ, and
windows follow one another.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from td3engine.config import Mode
from td3engine.inner_loop import traced
from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.gradients import InnerStep
from td3engine.inner_loop.learner import recommender
from td3engine.inner_loop.traced import TracedTake
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.inner_loop.windows import SequentialUnroll, Together, Window
from td3engine.models.recommender import StepRandomness
from td3engine.outer_loop.distillation import Distillation
from td3engine.summary.soft_sequences import soft_embedding_for
from tests.td3engine.devices import CPU, DEVICES
from tests.td3engine.oracles import default_double, distance, leaves, normal
from tests.td3engine.test_distill import config_of, make
from tests.td3engine.test_traced import compiler_is_here
from tests.td3engine.test_unroll import (
    EXACT,
    Objective,
    World,
    make_world,
    textbook_gradients,
    warm,
)

AGES = (0, 3, 7)
MODES: tuple[Mode, ...] = ("shared-items", "from-scratch")


def learners_of(
    world: World, ages: Sequence[int] = AGES
) -> tuple[list[LearnerState], list[Window]]:
    """Learners of different ages and parameters, and windows of four steps from there."""
    states = []
    for nth, age in enumerate(ages):
        state = warm(world, age) if age else LearnerState.fresh(world.start)
        moved = state.parameters + normal(100 + nth, len(world.start), std=0.1)
        states.append(LearnerState(moved, state.first, state.second, age))
    return states, [world.steps(age, 4) for age in ages]


def together_of(
    world: World,
    device: torch.device = CPU,
    *,
    compiled: bool = False,
    recompute: bool = False,
) -> Together:
    """Learners together on this device; the world itself is on the CPU."""
    own = world.training
    V = world.V.to(device)
    mode: Mode = "from-scratch" if own.model.frozen is None else "shared-items"
    model, soft_embedding = (
        recommender(world.backbone, V, mode),
        soft_embedding_for(V, 1, fixed=mode == MODES[0]),
    )
    trainer = InnerLoopTrainer(model, own.config, own.count, soft_embedding, own.length)
    return Together(trainer, device, compiled=compiled, recompute=recompute)


def moved(step: InnerStep[StepRandomness], device: torch.device) -> InnerStep[StepRandomness]:
    asked, dropout = step.randomness.targets, step.randomness.dropout
    asked = replace(asked, rows=asked.rows.to(device), at=asked.at.to(device))
    randomness = StepRandomness(asked, None if dropout is None else dropout.to(device))
    return InnerStep(step.rows.to(device), randomness)


@pytest.mark.parametrize(
    ("mode", "objective", "dropout", "recompute", "own_targets"),
    [
        ("shared-items", "last-and-augmented", 0.3, False, True),
        ("shared-items", "all-positions", 0.0, True, False),
        ("from-scratch", "last-and-augmented", 0.3, True, False),
        ("from-scratch", "all-positions", 0.3, False, True),
    ],
)
def test_meta_gradient_of_learners_together_is_the_textbooks(
    mode: Mode, objective: Objective, dropout: float, recompute: bool, own_targets: bool
) -> None:
    """The sum over learners of what the tape gives for each, in float64."""
    world = make_world(
        mode=mode,
        objective=objective,
        dropout=dropout,
        weight_decay=0.02,
        own_targets=own_targets,
    )
    states, windows = learners_of(world)
    factors = leaves(*world.factors)
    synthetic = world.synthetic(factors)
    ends, back = together_of(world, recompute=recompute)(synthetic.detach(), states, windows)
    outer: list[Tensor] = []
    for end in ends:
        (theta,) = leaves(end.parameters)
        outer += torch.autograd.grad(world.real_loss(theta), theta)
    found = torch.autograd.grad(synthetic, factors, back(outer))
    each = [textbook_gradients(world, *learner) for learner in zip(states, windows, strict=True)]
    for nth, got in enumerate(found):
        assert distance(got, torch.stack([wanted[nth] for wanted in each]).sum(0)) < EXACT
        assert distance(each[0][nth], each[1][nth]) > 1e-2  # learners are unlike


def test_deeper_learners_with_several_heads() -> None:
    world = make_world(layers=2, heads=2, dropout=0.2, objective="last-and-augmented")
    assert_as_alone(world, together_of(world), AGES)


def assert_as_alone(
    world: World, together: Together, ages: Sequence[int], device: torch.device = CPU
) -> list[LearnerState]:
    """Ends and gradient, the latter for drawn outer gradients; one by one it is on the CPU."""
    states, windows = learners_of(world, ages)
    synthetic = world.synthetic(world.factors)
    outer = [normal(50 + nth, len(world.start)) for nth in range(len(ages))]
    ends, back = together(
        synthetic.to(device),
        [
            LearnerState(
                each.parameters.to(device), each.first.to(device), each.second.to(device), each.age
            )
            for each in states
        ],
        [[moved(step, device) for step in window] for window in windows],
    )
    wanted = torch.zeros_like(synthetic)
    for nth, (state, window) in enumerate(zip(states, windows, strict=True)):
        (end,), alone = SequentialUnroll(world.training, recompute=False)(
            synthetic, [state], [window]
        )
        wanted += alone(outer[nth : nth + 1])
        assert ends[nth].age == end.age == ages[nth] + 4
        for name in ("parameters", "first", "second"):
            assert distance(getattr(ends[nth], name).cpu(), getattr(end, name)) < 1e-11
    assert distance(back([each.to(device) for each in outer]).cpu(), wanted) < 1e-10
    return ends


@pytest.mark.parametrize(("mode", "recompute"), [("shared-items", False), ("from-scratch", True)])
@pytest.mark.parametrize("device", DEVICES)
def test_windows_follow_one_another(mode: Mode, recompute: bool, device: torch.device) -> None:
    """Other learners, ages and draws in the same buffers, some past the end of the schedule, where
    the rate is zero; what came before stays as it was."""
    world = make_world(mode=mode, dropout=0.3, objective="last-and-augmented", weight_decay=0.01)
    together = together_of(world, device, recompute=recompute)
    ends = assert_as_alone(world, together, AGES, device)
    # None keeps the memory of others, in a pool or in a checkpoint.
    sizes = {end.parameters.untyped_storage().nbytes() for end in ends}
    assert sizes == {world.start.untyped_storage().nbytes()}
    before = [end.parameters.clone() for end in ends]
    assert_as_alone(world, together, (5, 0, 2), device)
    assert_as_alone(world, together, (38, 45, 1), device)
    for end, parameters in zip(ends, before, strict=True):
        assert torch.equal(end.parameters, parameters)


def test_compiled_windows_are_those_of_plain_ones() -> None:
    """With the compiler itself."""
    if not compiler_is_here():
        pytest.skip("there is no C++ compiler, or no Python headers")
    world = make_world(dropout=0.3, objective="last-and-augmented")
    assert_as_alone(world, together_of(world, compiled=True), (0, 5))


class Counted(TorchDispatchMode):
    """Counts operations that are no views."""

    count = 0

    def __torch_dispatch__(
        self, function: OpOverload, _types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def test_more_learners_take_no_more_kernels() -> None:
    """Windows and the way back are as many operations for five learners as for two, but for the
    copies of each one's end, in three parts."""
    world = make_world(mode="from-scratch", dropout=0.3, objective="last-and-augmented")
    counts = []
    for ages in ((0, 1), (0, 1, 2, 3, 4)):
        together = together_of(world)
        states, windows = learners_of(world, ages)
        outer = [normal(0, len(world.start))] * len(ages)
        together(world.synthetic(world.factors), states, windows)[1](outer)  # traces
        synthetic = world.synthetic(world.factors)
        with Counted() as counted:  # type: ignore[no-untyped-call]
            together(synthetic, states, windows)[1](outer)
        counts.append(counted.count)
    assert counts[1] - counts[0] == 3 * (5 - 2)
    assert counts[0] > 4 * 300


# --- outer steps --------------------------------------------------------------------------------


def distilled(mode: Mode, vectorised: bool, steps: int = 5, **outer: Any) -> Distillation:
    config = config_of(mode, learners=3, feature_weight=0.7, vectorised=vectorised, **outer)
    distillation = make(config, False)
    for _ in islice(distillation.steps(), steps):
        pass
    return distillation


@pytest.mark.parametrize(
    ("mode", "outer"),
    [
        ("shared-items", {"normalise": True}),
        ("from-scratch", {"shared_steps": 2, "validate_every": 2, "recompute": True}),
    ],
)
def test_outer_steps_together_are_those_one_by_one(mode: Mode, outer: dict[str, Any]) -> None:
    """Factors, and every learner of every pool; also over a change of the mode."""
    with default_double():
        one_by_one, together = (distilled(mode, each, **outer) for each in (False, True))
    assert together.together is not None
    for mine, theirs in zip(together.factors, one_by_one.factors, strict=True):
        assert distance(mine, theirs) < EXACT
    assert together.best["validation"] == pytest.approx(one_by_one.best["validation"], abs=1e-12)
    for learner, pool in one_by_one.pools.items():
        for wanted, found in zip(pool, together.pools[learner], strict=True):
            assert (found.state.age, found.warmup_steps) == (wanted.state.age, wanted.warmup_steps)
            # The gradient of the attention's key bias is rounding, which Adam scales up: no more
            # than a step's rate at a time.
            apart = (found.state.parameters - wanted.state.parameters).abs()
            assert int((apart > EXACT).sum()) <= 4
            assert float(apart.max()) < 1


def test_a_resumed_distillation_gives_the_same_bytes() -> None:
    with default_double():
        whole = distilled("shared-items", True, 2)
        state = copy.deepcopy(whole.state())
        resumed = distilled("shared-items", True, 0)
        resumed.restore(state)
        for each in (whole, resumed):
            for _ in islice(each.steps(), 3):
                pass
    for mine, theirs in zip(resumed.factors, whole.factors, strict=True):
        assert torch.equal(mine, theirs)


def test_learners_go_together_where_their_step_can_be_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with default_double():
        config = config_of("from-scratch", vectorised=True)
        assert make(config, biased=False).together is not None
        assert make(config, biased=True).together is None  # goes by autograd
        assert make(config_of("from-scratch"), biased=False).together is None
        sampled = config_of("shared-items", vectorised=True, softmax="sampled")
        assert make(sampled, biased=False).together is None
        monkeypatch.setattr("td3engine.summary.soft_sequences.LARGEST_DENSE", 1)
        assert make(config, biased=False).together is None  # S is made in chunks


def test_together_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then windows are compiled, and the few steps of a learner by itself are not."""
    monkeypatch.setattr(traced, "demand_compiler", lambda: None)
    compiled = list[object]()

    def compiled_is(part: object, _: object) -> object:
        compiled.append(part)
        return part

    monkeypatch.setattr("torch._inductor.compile", compiled_is)
    with default_double():
        distillation = distilled("shared-items", True, compiled=True)
        plain = distilled("shared-items", False)
    assert not isinstance(distillation.training.take, TracedTake)
    assert len(compiled) == 2
    for mine, theirs in zip(distillation.factors, plain.factors, strict=True):
        assert distance(mine, theirs) < EXACT
