"""The unroll's meta-gradient against a plain autograd unroll, and against finite differences.

The plain one is the textbook: dense targets S and dense KL, every step with `create_graph=True`,
Adam written out on the tape, one backward from the real loss to U, T, G. In float64 both must agree
to 1e-8 relative (method, section 6).
"""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from td3engine.config import Mode
from td3engine.inner_loop.adam import LearnerAdam, LearnerState, adam
from td3engine.inner_loop.gradients import AutogradGradient, InnerGradient, InnerStep
from td3engine.inner_loop.unroll import meta_gradient, train
from td3engine.losses import softmax
from td3engine.models.backbone import TargetPositions
from td3engine.models.recommender import StepRandomness
from tests.td3engine.oracles import (
    TapeAdam,
    dense_summary,
    distance,
    leaves,
    masks_at_all,
    normal,
    seeded,
)
from tests.td3engine.unroll_kit import (
    BATCH,
    ITEMS,
    LEARNER_STEPS,
    MU,
    WIDTH,
    ZETA,
    Objective,
    Steps,
    World,
    make_world,
    warm,
)

EXACT = 1e-8
MODES: tuple[Mode, ...] = ("shared-items", "from-scratch")
KINDS = [("shared-items", False), ("from-scratch", False), ("shared-items", True)]


def engine_gradients(
    world: World, state: LearnerState, steps: Steps, kept: list[InnerGradient] | None = None
) -> tuple[Tensor, ...]:
    """dL/dU, dL/dT, dL/dG (and dL/dY) as an outer step takes them."""
    factors = leaves(*world.factors)
    synthetic = world.synthetic(factors)
    grad_fn, schedule = world.training.grad_fn, world.training.schedule
    states = train(state, synthetic.detach(), steps, grad_fn, schedule, kept)
    (end,) = leaves(states[-1].parameters)
    (outer,) = torch.autograd.grad(world.real_loss(end), end)
    to_synthetic = meta_gradient(states, synthetic.detach(), steps, grad_fn, schedule, outer, kept)
    return torch.autograd.grad(synthetic, factors, to_synthetic)


def places_of(randomness: StepRandomness, augmented: int) -> list[list[int]]:
    """The last position, and of each row the drawn ones, which stand after it."""
    return [[ZETA - 1, *row[1:]] for row in randomness.targets.at.view(-1, 1 + augmented).tolist()]


def textbook_gradients(world: World, state: LearnerState, steps: Steps) -> tuple[Tensor, ...]:
    factors = leaves(*world.factors)
    U, T, G, *Y = factors
    S = dense_summary(U, T, G, world.V)
    targets = dense_summary(U, Y[0], G, world.V) if Y else S
    config = world.training.config
    learner = TapeAdam(
        state.parameters.clone().requires_grad_(), state.first, state.second, state.age
    )
    for step in steps:
        drawn = config.objective == "last-and-augmented"
        places = places_of(step.randomness, config.augmented) if drawn else None
        dropout = step.randomness.dropout
        if places is not None:
            dropout = masks_at_all(world.backbone.config, dropout, places, ZETA - 1)
        rows = S[step.rows], dropout, places, targets[step.rows]
        loss = world.textbook.summary_loss(learner.theta, *rows)
        left = 1 - learner.age / LEARNER_STEPS if config.schedule == "linear" else 1
        learner = learner.step(loss, config.lr * left, config.weight_decay, config.beta2)
    return torch.autograd.grad(world.real_loss(learner.theta), factors)


def assert_same_meta_gradient(world: World, state: LearnerState, steps: Steps) -> None:
    found, wanted = engine_gradients(world, state, steps), textbook_gradients(world, state, steps)
    for got, want in zip(found, wanted, strict=True):
        assert want.norm() > 1e-9  # the comparison says something
        assert distance(got, want) < EXACT


@pytest.mark.parametrize("objective", ["all-positions", "last-and-augmented"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("age", [0, 3])
@pytest.mark.parametrize(
    ("weight_decay", "beta2", "own_targets"),
    [(0.0, 0.999, False), (0.05, 0.95, False), (0.05, 0.95, True)],
)
def test_meta_gradient_is_the_textbooks(
    objective: Objective,
    dropout: float,
    window: int,
    age: int,
    weight_decay: float,
    beta2: float,
    own_targets: bool,
) -> None:
    world = make_world(
        objective=objective,
        dropout=dropout,
        weight_decay=weight_decay,
        beta2=beta2,
        own_targets=own_targets,
    )
    state = warm(world, age) if age else LearnerState.fresh(world.start)
    assert_same_meta_gradient(world, state, world.steps(age, window))


@pytest.mark.parametrize("objective", ["all-positions", "last-and-augmented"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("window", "age"), [(1, 0), (3, 3), (8, 0), (8, 3)])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("own_targets", [False, True])
def test_meta_gradient_from_scratch_is_the_textbooks(
    objective: Objective,
    dropout: float,
    window: int,
    age: int,
    chunked: bool,
    own_targets: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The learner trains an item table E, so the leaf is S: through inputs, targets and scores.
    Or the leaf is C, and S is made again and again in chunks of positions."""
    monkeypatch.setattr(softmax, "SCORES_AT_ONCE", 3 * ITEMS)
    world = make_world(
        mode="from-scratch",
        objective=objective,
        augmented=1 if dropout else 2,  # an event drawn twice has two masks: not the textbook's
        dropout=dropout,
        weight_decay=0.02,
        chunked=chunked,
        own_targets=own_targets,
    )
    state = warm(world, age) if age else LearnerState.fresh(world.start)
    assert_same_meta_gradient(world, state, world.steps(age, window))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("objective", ["all-positions", "last-and-augmented"])
@pytest.mark.parametrize("own_targets", [False, True])
def test_meta_gradient_with_an_item_bias_is_the_textbooks(
    mode: Mode, objective: Objective, own_targets: bool
) -> None:
    """The bias is trained even where the item table is shared."""
    world = make_world(
        mode=mode,
        biased=True,
        objective=objective,
        dropout=0.2,
        weight_decay=0.01,
        own_targets=own_targets,
    )
    assert_same_meta_gradient(world, warm(world), world.steps(3, 5))


@pytest.mark.parametrize(("mode", "biased"), KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_kept_graphs_give_what_recomputed_ones_do(mode: Mode, biased: bool, dropout: float) -> None:
    world = make_world(mode=mode, biased=biased, dropout=dropout, weight_decay=0.01)
    X, steps = world.synthetic(world.factors), world.steps(3, 6)
    grad_fn, schedule = world.training.grad_fn, world.training.schedule
    state, outer = warm(world), normal(8, len(world.start))
    kept: list[InnerGradient] = []
    last = train(state, X, steps, grad_fn, schedule, kept)
    states = train(state, X, steps, grad_fn, schedule)
    assert torch.equal(last[-1].parameters, states[-1].parameters)
    found = meta_gradient(last, X, steps, grad_fn, schedule, outer, kept)
    assert torch.equal(found, meta_gradient(states, X, steps, grad_fn, schedule, outer))
    assert kept == []


def test_meta_gradient_at_a_constant_rate() -> None:
    world = make_world(schedule="constant", weight_decay=0.01)
    assert_same_meta_gradient(world, warm(world), world.steps(3, 6))


def test_the_rate_falls_linearly_to_zero_or_stays() -> None:
    assert [LearnerAdam(0.4, 0, 4).lr_at(age) for age in range(6)] == pytest.approx(
        [0.4, 0.3, 0.2, 0.1, 0, 0]
    )
    assert LearnerAdam(0.4, 0).lr_at(1000) == 0.4


def test_meta_gradient_of_a_deeper_learner_with_several_heads() -> None:
    world = make_world(layers=2, heads=2, dropout=0.2, objective="last-and-augmented")
    assert_same_meta_gradient(world, warm(world), world.steps(3, 4))


def test_meta_gradient_from_moments_that_no_training_made() -> None:
    """Any state will do: here one of age 17 with random moments."""
    world = make_world(weight_decay=0.01)
    size = len(world.start)
    state = LearnerState(
        world.start, normal(8, size, std=0.1), normal(9, size, std=0.1).square(), 17
    )
    assert_same_meta_gradient(world, state, world.steps(17, 5))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_meta_gradient_is_the_slope_of_the_window(mode: Mode, dropout: float) -> None:
    """Central differences of "train, then judge" in single numbers of U, T, G, Y; no second
    order."""
    world = make_world(
        mode=mode,
        objective="last-and-augmented",
        dropout=dropout,
        weight_decay=0.01,
        own_targets=True,
    )
    state, steps = warm(world, 5), world.steps(5, 4)
    gradients = engine_gradients(world, state, steps)

    def judged(which: int, at: tuple[int, ...], change: float) -> float:
        factors = [factor.clone() for factor in world.factors]
        factors[which][at] += change
        soft = world.synthetic(factors)
        end = train(state, soft, steps, world.training.grad_fn, world.training.schedule)[-1]
        return float(world.real_loss(end.parameters))

    h = 1e-5
    for which, at in [(0, (0, 1)), (0, (4, 0)), (1, (2, 2)), (1, (7, 0)), (2, (1, 2, 3))]:
        slope = (judged(which, at, h) - judged(which, at, -h)) / (2 * h)
        assert float(gradients[which][at]) == pytest.approx(slope, rel=1e-5, abs=1e-10)


def test_sequences_outside_the_window_get_no_gradient() -> None:
    """Two steps of two sequences from age 1: users 2, 3 and 4, 0; user 1 is not met."""
    world = make_world()
    X = world.synthetic(world.factors)
    grad_fn, schedule = world.training.grad_fn, world.training.schedule
    steps = world.steps(1, 2)
    states = train(warm(world, 1), X, steps, grad_fn, schedule)
    outer = normal(10, len(world.start))
    found = meta_gradient(states, X, steps, grad_fn, schedule, outer)
    assert found.shape == X.shape
    assert [bool(row.any()) for row in found] == [True, False, True, True, True]


def test_a_user_met_twice_in_the_window_adds_up() -> None:
    """Three sequences a batch of one: the whole window is one user's, gradients are summed."""
    X = normal(0, 1, 1, 3)
    steps = [InnerStep(torch.tensor([0]), None)] * 3
    found = toy_meta_gradient(X, steps)
    spread = toy_meta_gradient(
        X.repeat(3, 1, 1), [InnerStep(torch.tensor([n]), None) for n in (0, 1, 2)]
    )
    assert distance(found[0], spread.sum(0)) < EXACT


def toy_loss(parameters: Tensor, X: Tensor, randomness: None) -> Tensor:
    """Gradient p - x, Hessian one."""
    return 0.5 * (parameters - X[:, 0]).square().sum(-1).mean()


toy_grad_fn = partial(AutogradGradient, loss=toy_loss)


def toy_meta_gradient(X: Tensor, steps: Sequence[InnerStep[None]]) -> Tensor:
    size = X.shape[-1]
    state = LearnerState(normal(1, size), normal(2, size), normal(3, size).square(), 2)
    schedule = LearnerAdam(0.1, 0.02)
    states = train(state, X, steps, toy_grad_fn, schedule)
    return meta_gradient(states, X, steps, toy_grad_fn, schedule, normal(4, size))


def test_one_step_of_a_parabola_by_hand() -> None:
    """A single parameter: p=1, x=3, m=0.5, v=4, the step from age 1 to 2, no weight decay.

    g = p - x = -2;  m' = .9*.5 + .1*(-2) = .25;  v' = .999*4 + .001*4 = 4
    p' = p - lr/(1-.81) m' / (r + eps),  r = sqrt(v'/(1-.999^2))
    dp'/dg = -lr/.19 [.1/(r+eps) - m'/(r+eps)^2 * dr/dg],  dr/dg = .002 g/(2 r (1-.999^2))
    dL/dx = dL/dp' * dp'/dg * dg/dx, and dg/dx = -1.
    """
    one = torch.ones(1, dtype=torch.float64)
    state, schedule = LearnerState(one, 0.5 * one, 4 * one, 1), LearnerAdam(0.1, 0.0)
    X = torch.full((1, 1, 1), 3.0, dtype=torch.float64)
    steps = [InnerStep(torch.tensor([0]), None)]
    states = train(state, X, steps, toy_grad_fn, schedule)
    found = meta_gradient(states, X, steps, toy_grad_fn, schedule, 7 * one)
    unbias2 = 1 - 0.999**2
    r = (4 / unbias2) ** 0.5
    d = r + 1e-8
    slope = 0.002 * -2 / (2 * r * unbias2)
    assert float(states[-1].parameters) == pytest.approx(1 - 0.1 / 0.19 * 0.25 / d, rel=1e-12)
    wanted = 7 * (-0.1 / 0.19) * (0.1 / d - 0.25 / d**2 * slope) * -1
    assert float(found) == pytest.approx(wanted, rel=1e-10)


def test_positions_that_are_never_trained_change_nothing() -> None:
    """Rows of the position table beyond the sequences have no gradient at all: second moment zero,
    where Adam has no derivative. The result is finite and that of a learner without such rows."""
    spare = 2
    small = make_world(weight_decay=0.0)
    large = make_world(weight_decay=0.0, history=ZETA - 1 + spare)
    used = (ZETA - 1) * WIDTH  # the position table comes first in the parameters
    extra = normal(11, spare * WIDTH)
    start = torch.cat([small.start[:used], extra, small.start[used:]])
    wanted = engine_gradients(small, LearnerState.fresh(small.start), small.steps(0, 4))
    found = engine_gradients(large, LearnerState.fresh(start), small.steps(0, 4))
    for got, want in zip(found, wanted, strict=True):
        assert distance(got, want) < EXACT
    states = train(
        LearnerState.fresh(start),
        large.synthetic(large.factors),
        small.steps(0, 4),
        large.training.grad_fn,
        large.training.schedule,
    )
    assert torch.equal(states[-1].parameters[used : used + len(extra)], extra)


@pytest.mark.parametrize(("weight_decay", "beta2"), [(0.0, 0.999), (0.1, 0.999), (0.1, 0.95)])
def test_adam_is_torchs(weight_decay: float, beta2: float) -> None:
    """Seven steps, with a gradient that is now and then zero or tiny."""
    start = normal(0, 20)
    state, schedule = LearnerState.fresh(start), LearnerAdam(0.01, weight_decay, beta2=beta2)
    theirs = torch.nn.Parameter(start.clone())
    betas = (0.9, beta2)
    optimizer = torch.optim.Adam([theirs], lr=0.01, betas=betas, weight_decay=weight_decay)
    for step in range(7):
        gradient = normal(step + 1, 20)
        gradient[:3] *= torch.tensor([0.0, 1e-9, float(step % 2)])
        state = adam(state, gradient, schedule)
        theirs.grad = gradient
        optimizer.step()
        assert state.age == step + 1
        assert distance(state.parameters, theirs.detach()) < 1e-12
        theirs_kept = optimizer.state[theirs]
        assert distance(state.first, theirs_kept["exp_avg"]) < 1e-12
        assert distance(state.second, theirs_kept["exp_avg_sq"]) < 1e-12


def test_training_can_be_cut_anywhere_and_leaves_its_inputs_alone() -> None:
    world = make_world(dropout=0.3, objective="last-and-augmented")
    X, steps = world.synthetic(world.factors), world.steps(0, 5)
    run = partial(train, grad_fn=world.training.grad_fn, schedule=world.training.schedule)
    fresh = LearnerState.fresh(world.start)
    whole = run(fresh, X, steps)
    assert whole[0] is fresh
    assert [state.age for state in whole] == [0, 1, 2, 3, 4, 5]
    end = run(run(fresh, X, steps[:2])[-1], X, steps[2:])[-1]
    for name in ("parameters", "first", "second"):
        assert torch.equal(getattr(end, name), getattr(whole[-1], name))
        assert not getattr(end, name).requires_grad
    assert torch.equal(fresh.parameters, world.start)
    assert not fresh.first.any()
    assert not fresh.second.any()


@pytest.mark.parametrize(("mode", "biased"), KINDS)
@pytest.mark.parametrize("drawn", [None, [[5], [6], [3]], [[5, 6], [6, 6], [3, 1]]])
def test_inner_loss_by_prefixes(mode: Mode, biased: bool, drawn: list[list[int]] | None) -> None:
    """Each target predicted by a pass of its own over its own prefix; one causal pass does all."""
    world = make_world(mode=mode, biased=biased)
    U, T, G = world.factors
    S = dense_summary(U, T, G, world.V)[:3]
    encoder, E, b = world.textbook.parts(world.start)

    def predict(row: int, position: int) -> Tensor:
        hidden = world.backbone.encode(encoder, (S @ E)[row : row + 1, :position], None)[0, -1]
        # Cross-entropy, so KL and entropy together: what I-2 leaves of it.
        return -(S[row, position] * functional.log_softmax(hidden @ E.T + b, -1)).sum()

    targets = [[*row, ZETA - 1] for row in drawn] if drawn else [[*range(1, ZETA)]] * 3
    wanted = [predict(row, position) for row in range(3) for position in targets[row]]
    asked = TargetPositions(
        torch.tensor([row for row in range(3) for _ in targets[row]]),
        torch.tensor([position for row in targets for position in row]),
    )
    batch = S @ world.V if (mode, biased) == ("shared-items", False) else S
    found = world.training.loss(world.start, batch, StepRandomness(asked, None))
    assert distance(found, torch.stack(wanted).mean()) < 1e-12


def test_batches_run_around_the_users_in_fixed_order() -> None:
    training = make_world().training
    rows = [step.rows.tolist() for step in training.steps(0, 5, MU, seeded(0))]
    assert rows == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4]]
    later = [step.rows.tolist() for step in training.steps(7, 2, MU, seeded(0))]
    assert later == [[4, 0], [1, 2]]
    fewer = [step.rows.tolist() for step in training.steps(0, 2, 1, seeded(0))]
    assert fewer == [[0], [0]]


@pytest.mark.parametrize(
    ("length", "positions"), [(12, range(5, 11)), (7, [5]), (6, [4]), (4, [2])]
)
@pytest.mark.parametrize("augmented", [1, 3])
def test_augmented_positions_are_uniform(
    length: int, positions: Sequence[int], augmented: int
) -> None:
    """From [5, zeta-1); the one before the last where a summary is shorter than that."""
    world = make_world(objective="last-and-augmented", augmented=augmented, history=length)
    world.training.length = length
    drawn: list[Tensor] = []
    for step in world.training.steps(0, 600, MU, seeded(1)):
        at = step.randomness.targets.at.view(BATCH, 1 + augmented)
        assert (at[:, 0] == length - 1).all()
        rows = step.randomness.targets.rows.view(BATCH, 1 + augmented)
        assert rows.tolist() == [[row] * (1 + augmented) for row in range(BATCH)]
        drawn.append(at[:, 1:])
    counts = torch.bincount(torch.cat(drawn).flatten(), minlength=length).tolist()
    share = 600 * BATCH * augmented / len(positions)
    for position, count in enumerate(counts):
        expected = share if position in positions else 0
        assert abs(count - expected) <= 5 * expected**0.5 * (len(positions) > 1)


def test_all_positions_are_all_but_the_first() -> None:
    (step,) = make_world().steps(0, 1)
    assert step.randomness.dropout is None
    asked = list(
        zip(step.randomness.targets.rows.tolist(), step.randomness.targets.at.tolist(), strict=True)
    )
    assert sorted(asked) == [(row, at) for row in range(BATCH) for at in range(1, ZETA)]


def test_noise_is_the_generators() -> None:
    world = make_world(objective="last-and-augmented", augmented=4, dropout=0.5)

    def draw(seed: int) -> list[tuple[Tensor, Tensor]]:
        steps = world.training.steps(0, 4, MU, seeded(seed))
        return [(step.randomness.targets.at, masks(step.randomness)) for step in steps]

    one, same, other = draw(1), draw(1), draw(2)
    for which in (0, 1):
        for nth in range(4):
            assert torch.equal(one[nth][which], same[nth][which])
            assert nth == 0 or not torch.equal(one[nth][which], one[0][which])  # drawn anew
        assert any(not torch.equal(one[nth][which], other[nth][which]) for nth in range(4))


def masks(randomness: StepRandomness) -> Tensor:
    assert randomness.dropout is not None
    return randomness.dropout
