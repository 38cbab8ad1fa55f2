"""Recorded functions, steps, windows and real batches, each against the same without a recording.

On the CPU nothing is recorded, but what a recording depends on is the same: fixed buffers, fixed
shapes, and results that the next call overwrites. So ages, draws and rows differ here, and windows
follow one another.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from td3engine.config import Mode
from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.cuda_graphs import CudaGraph
from td3engine.inner_loop.gradients import InnerStep
from td3engine.inner_loop.learner import learn_from, recommender
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.inner_loop.unroll import Window, train
from td3engine.models.recommender import StepRandomness
from td3engine.outer_loop.distillation import Distillation
from td3engine.outer_loop.objective import RealBatch, RecordedObjective, SurrogateObjective
from tests.td3engine.devices import CPU, DEVICES
from tests.td3engine.distill_kit import config_of, make
from tests.td3engine.oracles import default_double, distance, normal, seeded
from tests.td3engine.unroll_kit import LEARNER_STEPS, MU, Objective, World, make_world, warm

EXACT = 1e-12  # float64: rates are computed as numbers in one case, and are data in the other
GPU = 1e-10  # another device's products
AGES = (0, 3, 7)
MODES: tuple[Mode, ...] = ("shared-items", "from-scratch")


# --- functions ----------------------------------------------------------------------------------


def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x + y, x * y


@pytest.mark.parametrize("device", DEVICES)
def test_each_call_is_of_its_own_inputs(device: torch.device) -> None:
    graph = CudaGraph(both, device)
    for nth in range(3):
        inputs = [normal(10 * nth + which, 4).to(device) for which in range(2)]
        for result, expected in zip(graph(*inputs), both(*inputs), strict=True):
            assert torch.equal(result, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_are_copied_and_outputs_overwritten(device: torch.device) -> None:
    seen = list[int]()

    def double(x: Tensor) -> tuple[Tensor]:
        seen.append(x.data_ptr())
        return (2 * x,)

    graph = CudaGraph(double, device)
    ones = torch.ones(3, device=device)
    (first,) = graph(ones)
    (second,) = graph(ones + 1)
    assert first is second
    assert second.tolist() == [4, 4, 4]
    assert ones.tolist() == [1, 1, 1]
    assert len(set(seen)) == 1
    assert seen[0] != ones.data_ptr()


def test_other_shapes_and_types_are_refused() -> None:
    graph = CudaGraph(both, CPU)
    graph(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"recorded with .*3.*called with .*1"):
        graph(torch.ones(3), torch.ones(1))
    with pytest.raises(ValueError, match=r"recorded with .*float.*called with .*int64"):
        graph(torch.ones(3), torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="zip"):
        graph(torch.ones(3))


@pytest.mark.parametrize("device", DEVICES)
def test_one_function_goes_on_from_what_another_has_left(device: torch.device) -> None:
    """As the way back does from the window: what it reads is no output, and is made anew."""
    left = list[Tensor]()

    def forward(x: Tensor) -> tuple[Tensor]:
        left[:] = [x.exp(), x.square()]
        return (x.sum(),)

    def back(y: Tensor) -> tuple[Tensor]:
        return (left[0] * y + left[1],)

    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    one, two = CudaGraph(forward, device, pool), CudaGraph(back, device, pool)
    for nth in range(3):
        x, y = normal(nth, 4).to(device), normal(10 + nth, 4).to(device)
        assert torch.equal(one(x)[0], x.sum())
        assert torch.equal(two(y)[0], x.exp() * y + x.square())


# --- steps and windows --------------------------------------------------------------------------


def trainer_of(
    world: World, device: torch.device = CPU, *, recorded: bool = True, recompute: bool = False
) -> InnerLoopTrainer:
    """The world's trainer on this device; the world itself is on the CPU."""
    own, V = world.training, world.V.to(device)
    mode: Mode = "from-scratch" if own.model.frozen is None else "shared-items"
    embedding = type(own.soft_embedding)(V)  # type: ignore[call-arg]
    unroll: Any = "cuda-graphs" if recorded else "sequential"
    plan = replace(own.plan, unroll=unroll, recompute=recompute)
    model = recommender(world.backbone, V, mode)
    return InnerLoopTrainer(model, own.config, own.count, embedding, own.length, plan)


def step_on(step: InnerStep[StepRandomness], device: torch.device) -> InnerStep[StepRandomness]:
    targets, dropout = step.randomness.targets, step.randomness.dropout
    targets = replace(targets, rows=targets.rows.to(device), at=targets.at.to(device))
    randomness = StepRandomness(targets, None if dropout is None else dropout.to(device))
    return InnerStep(step.rows.to(device), randomness)


def state_on(state: LearnerState, device: torch.device) -> LearnerState:
    first, second = state.first.to(device), state.second.to(device)
    return LearnerState(state.parameters.to(device), first, second, state.age)


def learners_of(world: World, ages: Sequence[int]) -> tuple[list[LearnerState], list[Window]]:
    """Learners of different ages and parameters, and windows of four steps from there."""
    states = []
    for nth, age in enumerate(ages):
        state = warm(world, age) if age else LearnerState.fresh(world.start)
        parameters = state.parameters + normal(100 + nth, len(world.start), std=0.1)
        states.append(LearnerState(parameters, state.first, state.second, age))
    return states, [world.steps(age, 4) for age in ages]


def assert_same_state(result: LearnerState, expected: LearnerState, exact: float) -> None:
    assert result.age == expected.age
    for name in ("parameters", "first", "second"):
        assert distance(getattr(result, name).cpu(), getattr(expected, name)) < exact


def assert_sequential(
    world: World, recorded: InnerLoopTrainer, ages: Sequence[int], device: torch.device = CPU
) -> list[LearnerState]:
    """Ends and gradients are the sequential unroll's, learner by learner."""
    exact = EXACT if device == CPU else GPU
    sequential = trainer_of(world, recorded=False)
    synthetic = world.synthetic(world.factors)
    ends, results = [], []
    learners = zip(*learners_of(world, ages), strict=True)
    for nth, (start, window) in enumerate(learners):
        outer_gradient = normal(50 + nth, len(world.start))
        end, reverse = sequential.unroll(synthetic, start, window)
        steps = [step_on(step, device) for step in window]
        found, recorded_reverse = recorded.unroll(
            synthetic.to(device), state_on(start, device), steps
        )
        assert_same_state(found, end, exact)
        gradients = recorded_reverse(outer_gradient.to(device)), reverse(outer_gradient)
        if start.age < LEARNER_STEPS:
            results.append(gradients)
        else:  # the rate is zero
            assert not any(gradient.any() for gradient in gradients)
        ends.append(found)
    for result, expected in results:  # after all of them: no memory was used again
        assert expected.norm() > 1e-6
        assert distance(result.cpu(), expected) < exact
    return ends


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("own_targets", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("objective", ["all-positions", "last-and-augmented"])
@pytest.mark.parametrize("mode", MODES)
def test_a_recorded_window_is_the_sequential_one(
    mode: Mode,
    objective: Objective,
    dropout: float,
    recompute: bool,
    own_targets: bool,
    device: torch.device,
) -> None:
    world = make_world(
        mode=mode,
        objective=objective,
        dropout=dropout,
        weight_decay=0.02,
        own_targets=own_targets,
    )
    assert_sequential(world, trainer_of(world, device, recompute=recompute), AGES, device)


@pytest.mark.parametrize("chunked", [False, True])
def test_recorded_windows_of_deeper_learners(chunked: bool) -> None:
    """Several layers and heads; also with probabilities that are computed again in chunks."""
    kind: dict[str, Any] = {"mode": "from-scratch", "chunked": True} if chunked else {}
    world = make_world(layers=2, heads=2, dropout=0.2, objective="last-and-augmented", **kind)
    assert_sequential(world, trainer_of(world), AGES)


@pytest.mark.parametrize(("mode", "recompute"), [("shared-items", False), ("from-scratch", True)])
@pytest.mark.parametrize("device", DEVICES)
def test_recorded_windows_follow_one_another(
    mode: Mode, recompute: bool, device: torch.device
) -> None:
    """Other learners, ages and draws in the same buffers, some past the end of the schedule, where
    the rate is zero; earlier results stay as they were."""
    world = make_world(mode=mode, dropout=0.3, objective="last-and-augmented", weight_decay=0.01)
    trainer = trainer_of(world, device, recompute=recompute)
    ends = assert_sequential(world, trainer, AGES, device)
    # Each has memory of its own, in a pool or in a checkpoint.
    sizes = {end.parameters.untyped_storage().nbytes() for end in ends}
    assert sizes == {world.start.untyped_storage().nbytes()}
    before = [end.parameters.clone() for end in ends]
    assert_sequential(world, trainer, (5, 0, 2), device)
    assert_sequential(world, trainer, (38, 45, 1), device)
    for end, parameters in zip(ends, before, strict=True):
        assert torch.equal(end.parameters, parameters)


def test_the_way_back_of_an_earlier_window_is_refused() -> None:
    """Its memory holds the later one."""
    world = make_world()
    trainer, synthetic = trainer_of(world), world.synthetic(world.factors)
    (first, second), windows = learners_of(world, (0, 3))
    _, reverse = trainer.unroll(synthetic, first, windows[0])
    trainer.unroll(synthetic, second, windows[1])
    with pytest.raises(RuntimeError, match="later window"):
        reverse(normal(0, len(world.start)))


def test_windows_of_another_length_are_refused() -> None:
    world = make_world()
    trainer, synthetic = trainer_of(world), world.synthetic(world.factors)
    start = LearnerState.fresh(world.start)
    trainer.unroll(synthetic, start, world.steps(0, 3))
    with pytest.raises(ValueError, match="recorded with"):
        trainer.unroll(synthetic, start, world.steps(0, 2))


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
    """Of learners in turn, of other ages; one goes on past the end of its schedule. More steps than
    are drawn at once."""
    world = make_world(mode=mode, objective=objective, dropout=dropout, weight_decay=0.02)
    recorded, synthetic = trainer_of(world, device), world.synthetic(world.factors)
    count, at_once = 25, 20
    results = []
    for start in (warm(world, 3), warm(world, 39), LearnerState.fresh(world.start)):
        draw, state = seeded(5), start
        for steps in (at_once, count - at_once):
            drawn = world.training.steps(state.age, steps, MU, draw)
            world_steps = world.training.grad_fn, world.training.schedule
            state = train(state, synthetic, drawn, *world_steps)[-1]
        if device == CPU:
            advanced = recorded.advance(synthetic, start, seeded(5), count)
        else:  # a GPU draws other numbers
            advanced = state_on(start, device)
            draw = seeded(5)
            for steps in (at_once, count - at_once):
                drawn = world.training.steps(advanced.age, steps, MU, draw)
                assert recorded._recorded_steps is not None
                there = [step_on(step, device) for step in drawn]
                advanced = recorded._recorded_steps(synthetic.to(device), advanced, there)
        results.append((advanced, state))
    for result, expected in results:  # after all of them: no memory was used again
        assert_same_state(result, expected, EXACT if device == CPU else GPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_a_learner_on_a_gpu_is_that_of_plain_steps(mode: Mode) -> None:
    """Trained to the end with the GPU's own draws, recorded and not."""
    device = torch.device("cuda")
    world = make_world(mode=mode, dropout=0.2)
    synthetic = world.synthetic(world.factors).to(device)
    results = []
    with default_double():
        for recorded in (True, False):
            trainer = trainer_of(world, device, recorded=recorded)
            learned = learn_from(trainer, synthetic, torch.Generator(device).manual_seed(1))
            results.append(learned.model.parameters)
    assert distance(*results) < 1e-6


# --- the real batch -----------------------------------------------------------------------------


def objective_on(objective: SurrogateObjective, device: torch.device) -> SurrogateObjective:
    own = objective.teacher
    teacher = replace(own, model=own.model.to(device))
    frozen = objective.model.frozen
    model = replace(objective.model, frozen=None if frozen is None else frozen.to(device))
    return replace(objective, model=model, teacher=teacher)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("mode", "share"), [("shared-items", 0.3), ("from-scratch", 0.3), ("from-scratch", 1.0)]
)
def test_padding_weighs_nothing(mode: Mode, share: float, device: torch.device) -> None:
    """Batches of other lengths and numbers of rows, one after the other in the same buffers."""
    with default_double():
        distillation = make(config_of(mode, teacher_share=share), False)
    objective, length = distillation.objective, distillation.history + 1
    recorded = RecordedObjective(objective_on(objective, device), device, 5, length)
    results = []
    for nth, lengths in enumerate(([2, length, 3], [4, 2, 2, 3, length - 1], [length])):
        rng = np.random.default_rng(nth)
        lengths_B = torch.tensor(lengths)
        longest = max(lengths)
        items = torch.from_numpy(
            rng.integers(distillation.split.n_items, size=(len(lengths), longest))
        )
        items[torch.arange(longest) >= lengths_B[:, None]] = 0
        theta = normal(nth, objective.model.n_parameters, std=0.3)
        targets = distillation.backbone.draw_targets(lengths_B, seeded(0))
        batch = RealBatch(items, lengths_B, StepRandomness(targets, None))
        there = (each.to(device) for each in (theta, items, lengths_B))
        results.append((recorded.gradient(*there), objective.gradient(theta, batch)))
    for result, expected in results:
        assert expected.norm() > 1e-3
        assert distance(result.cpu(), expected) < 1e-11


# --- outer steps --------------------------------------------------------------------------------


def distilled(mode: Mode, graphs: str, steps: int = 5, **outer: Any) -> Distillation:
    distillation = make(config_of(mode, learners=3, cuda_graphs=graphs, **outer), False)
    for _ in islice(distillation.steps(), steps):
        pass
    return distillation


@pytest.mark.parametrize(
    ("mode", "outer"),
    [
        ("shared-items", {"normalise": True}),
        ("shared-items", {"among": "unseen"}),  # its real batches are not recorded
        ("from-scratch", {"shared_steps": 2, "validate_every": 2, "recompute": True}),
    ],
)
def test_recorded_outer_steps_are_the_sequential_ones(mode: Mode, outer: dict[str, Any]) -> None:
    """Factors, and every learner of every pool, of three learners that take turns; also over a
    change of the mode. Real batches are padded, so their sums are rounded otherwise."""
    with default_double():
        sequential, recorded = (distilled(mode, graphs, **outer) for graphs in ("off", "on"))
    assert (sequential.recorded_objective, sequential.plan.notes) == (None, ())
    assert (recorded.recorded_objective is None) == (recorded.config.outer.among == "unseen")
    for mine, theirs in zip(recorded.factors, sequential.factors, strict=True):
        assert distance(mine, theirs) < 1e-8
    validation = sequential.best["validation"]
    assert recorded.best["validation"] == pytest.approx(validation, abs=1e-12)
    for learner, pool in sequential.pools.by_learner.items():
        for expected, result in zip(pool, recorded.pools.by_learner[learner], strict=True):
            assert result.state.age == expected.state.age
            assert result.warmup_steps == expected.warmup_steps
            # The gradient of the attention's key bias is rounding, which Adam scales up: no more
            # than a step's rate at a time.
            apart = (result.state.parameters - expected.state.parameters).abs()
            assert int((apart > 1e-8).sum()) <= 4
            assert float(apart.max()) < 1


def test_a_resumed_recorded_distillation_gives_the_same_bytes() -> None:
    with default_double():
        whole = distilled("shared-items", "on", 2)
        state = copy.deepcopy(whole.state())
        resumed = distilled("shared-items", "on", 0)
        resumed.restore(state)
        for each in (whole, resumed):
            for _ in islice(each.steps(), 3):
                pass
    for mine, theirs in zip(resumed.factors, whole.factors, strict=True):
        assert torch.equal(mine, theirs)
