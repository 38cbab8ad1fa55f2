"""Whole outer steps against the textbook: dense S, all inner steps on the tape, torch's Adam.

Only the random draws are taken from the engine: which learner starts where, which sequences and
masks its window meets, which real windows judge it.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from td3engine.config import Mode
from td3engine.data.split import Split
from td3engine.errors import DivergedError
from td3engine.inner_loop import unroll
from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.gradients import InnerStep
from td3engine.inner_loop.learner import recommender
from td3engine.inner_loop.unroll import train
from td3engine.models.backbones.sasrec import SASRec
from td3engine.models.recommender import StepRandomness
from td3engine.models.sequences import padded_sequences
from td3engine.outer_loop import distillation as distill
from td3engine.outer_loop.distillation import Distillation
from td3engine.summary.labelled import LabelledSummary
from td3engine.summary.packing import rounded
from td3engine.teacher.training import TrainedOnLog
from tests.td3engine.distill_kit import RATES, WIDTH, ZETA, config_of, make
from tests.td3engine.oracles import (
    TapeAdam,
    Textbook,
    default_double,
    dense_summary,
    distance,
    leaves,
    masks_at_all,
)

EXACT = 1e-8
KINDS: list[tuple[Mode, bool]] = [
    ("shared-items", False),
    ("from-scratch", False),
    ("shared-items", True),
    ("from-scratch", True),
]
kinds = pytest.mark.parametrize(("mode", "biased"), KINDS)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_double():
        yield


@dataclass
class Watched:
    """What each outer step drew."""

    starts: list[LearnerState] = field(default_factory=list)
    windows: list[list[InnerStep[StepRandomness]]] = field(default_factory=list)
    real: list[list[Tensor]] = field(default_factory=list)


def watch(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()

    def watched_train(state: LearnerState, synthetic: Tensor, steps: Any, *rest: Any) -> Any:
        watched.starts.append(state)
        watched.windows.append(steps)
        return train(state, synthetic, steps, *rest)

    def watched_sequences(split: Split, start: Any, end: Any) -> tuple[Tensor, Tensor]:
        items, lengths = padded_sequences(split, start, end)
        rows = zip(items, lengths.tolist(), strict=True)
        watched.real.append([row[:length] for row, length in rows])
        return items, lengths

    monkeypatch.setattr(unroll, "train", watched_train)
    monkeypatch.setattr(distill, "padded_sequences", watched_sequences)
    return watched


def textbook_of(distillation: Distillation, mode: Mode, biased: bool) -> Textbook:
    backbone, V = distillation.backbone, distillation.teacher.model.table[:, :WIDTH]
    assert isinstance(backbone, SASRec)
    return Textbook(backbone.encode, backbone.n_parameters, V, mode == "from-scratch", biased)


def feature_distance(
    textbook: Textbook, teacher: TrainedOnLog, theta: Tensor, rows: list[Tensor]
) -> Tensor:
    """Mean squared difference from the teacher's hidden states, over events and dimensions."""
    theirs = Textbook(textbook.encode, textbook.size, textbook.V, False, False)
    return torch.cat(
        [
            (
                textbook.real_states(theta, events)
                - theirs.real_states(teacher.model.parameters, events)
            ).flatten()
            for events in rows
        ]
    ).square().mean()  # fmt: skip


def teacher_loss(
    textbook: Textbook, teacher: TrainedOnLog, theta: Tensor, rows: list[Tensor]
) -> Tensor:
    """Mean cross-entropy of the teacher's whole distribution at each event, which it has with its
    own table, and bias if it has one."""
    table = teacher.model.table
    whole = torch.cat(
        [teacher.model.parameters, table[:, :WIDTH].flatten(), table[:, WIDTH:].flatten()]
    )
    own = Textbook(textbook.encode, textbook.size, textbook.V, True, textbook.biased)
    _, E, b = textbook.parts(theta)
    _, theirs, their_b = own.parts(whole)
    found = []
    for events in rows:
        wanted = (own.real_states(whole, events) @ theirs.T + their_b).softmax(-1)
        logits = textbook.real_states(theta, events) @ E.T + b
        found.append(-(wanted * logits.log_softmax(-1)).sum(-1))
    return torch.cat(found).mean()


def synthetic_data(
    distillation: Distillation, textbook: Textbook, factors: list[Tensor]
) -> tuple[Tensor, Tensor, Callable[..., Tensor]]:
    """What is read (mu, zeta, n) and what is asked at each position, and the loss of that."""
    start = distillation.summary
    if isinstance(start, LabelledSummary):
        (labels,) = factors
        S = torch.nn.functional.one_hot(start.items, len(textbook.V)).double()
        # Nothing is asked at the first position.
        return S, torch.cat([labels.new_full((5, 1, WIDTH), 9.0), labels], 1), textbook.scored_loss
    U, T, G, *Y = factors
    assert bool(Y) == (distillation.config.summary.targets == "own")
    S = dense_summary(U, T, G, textbook.V)
    targets = dense_summary(U, Y[0], G, textbook.V) if Y else S
    return S, targets, textbook.summary_loss


def textbook_step(
    distillation: Distillation,
    textbook: Textbook,
    factors: list[Tensor],
    start: LearnerState,
    window: list[InnerStep[StepRandomness]],
    real: list[Tensor],
) -> tuple[tuple[Tensor, ...], TapeAdam]:
    """dL/d(each factor) of an outer step, and its learner at the window's end."""
    config = distillation.config
    learner_steps = 9 if textbook.own_table else 8
    S, targets, summary_loss = synthetic_data(distillation, textbook, factors)
    theta = start.parameters.clone().requires_grad_()
    learner = TapeAdam(theta, start.first, start.second, start.age)
    for step in window:
        places, masks = None, step.randomness.dropout
        if config.learner.objective == "last-and-augmented":
            drawn = step.randomness.targets.at.view(2, 2)[
                :, 1:
            ]  # 2 sequences: the last, and a drawn one
            places = [[ZETA - 1, *row] for row in drawn.tolist()]
            masks = masks_at_all(config.learner_backbone, step.randomness.dropout, places, ZETA - 1)
        rows = S[step.rows], masks, places, targets[step.rows]
        loss = summary_loss(learner.theta, *rows)
        lr = config.learner.lr * (1 - learner.age / learner_steps)
        learner = learner.step(loss, lr, config.learner.weight_decay, config.learner.beta2)
    judged = textbook.real_loss(learner.theta, real, config.outer.among == "unseen")
    teacher, share = distillation.teacher, config.outer.teacher_share
    if not textbook.own_table:  # from scratch there is no common space to align in
        distant = feature_distance(textbook, teacher, learner.theta, real)
        judged = judged + config.outer.feature_weight * distant
    elif config.outer.among == "all":
        theirs = teacher_loss(textbook, teacher, learner.theta, real)
        judged = (1 - share) * judged + share * theirs
    return torch.autograd.grad(judged, factors), learner


def assert_kept(distillation: Distillation, learner: TapeAdam) -> None:
    """A learner of the pool is this one, owing nothing. But for the attention's key bias, whose
    gradient is pure rounding noise that Adam scales up (and which has no effect)."""
    named = distillation.backbone.named(torch.arange(distillation.backbone.n_parameters))
    key_bias = named["0_qkv_bias"][WIDTH : 2 * WIDTH]

    def compared(values: Tensor) -> Tensor:
        return values.detach().index_fill(0, key_bias, 0.0)

    theta = compared(learner.theta)
    everybody = [pooled for pool in distillation.pools.by_learner.values() for pooled in pool]
    kept = [p for p in everybody if distance(compared(p.state.parameters), theta) < EXACT]
    assert len(kept) == 1
    state = kept[0].state
    assert (state.age, kept[0].warmup_steps) == (learner.age, 0)
    assert distance(compared(state.first), compared(learner.m)) < EXACT
    assert distance(compared(state.second), compared(learner.v)) < EXACT


@kinds
@pytest.mark.parametrize(
    ("recompute", "among", "nearness"),
    [
        (False, "unseen", {"targets": "next"}),
        (True, "all", {"objective": "all-positions"}),
        (False, "all", {"feature_weight": 0.0, "teacher_share": 0.0}),
        (False, "all", {"teacher_share": 1.0}),
        (False, "all", {"inputs": "items"}),
        (True, "unseen", {"inputs": "items", "objective": "all-positions"}),
    ],
)
def test_outer_steps_are_the_textbooks(
    monkeypatch: pytest.MonkeyPatch,
    mode: Mode,
    biased: bool,
    recompute: bool,
    among: str,
    nearness: dict[str, Any],
) -> None:
    """Five of six: gradients, updated factors, learners; window for window of the pool."""
    watched = watch(monkeypatch)
    config = config_of(mode, recompute=recompute, among=among, **nearness)
    distillation = make(config, biased)
    textbook = textbook_of(distillation, mode, biased)
    theirs = leaves(*distillation.factors)
    optimizer = torch.optim.Adam(theirs, weight_decay=config.outer.weight_decay)
    assert len(distillation.pools.by_learner[0]) == config.outer.pool
    ages = []
    for done, _ in enumerate(islice(distillation.steps(), 5)):
        start, window, real = watched.starts[done], watched.windows[done], watched.real[done]
        wanted, learner = textbook_step(distillation, textbook, theirs, start, window, real)
        for factor, gradient in zip(distillation.factors, wanted, strict=True):
            assert factor.grad is not None
            assert gradient.norm() > 1e-6
            assert distance(factor.grad, gradient) < EXACT
        for factor, gradient in zip(theirs, wanted, strict=True):
            factor.grad = gradient
        optimizer.param_groups[0]["lr"] = RATES[mode] * (1 + math.cos(math.pi * done / 6)) / 2
        optimizer.step()
        for ours, factor in zip(distillation.factors, theirs, strict=True):
            assert distance(ours, factor) < EXACT
        assert len(window) == config.outer.window
        assert start.age + len(window) <= distillation.inner_steps
        ages.append(start.age)
        assert_kept(distillation, learner)
    assert len(set(ages)) > 1
    assert distillation.inner_steps == {"shared-items": 8, "from-scratch": 9}[mode]


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_several_learners_a_step_count_by_their_mean(
    monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    """Three of them, each from its own pool, on its own window and its own real batch."""
    watched = watch(monkeypatch)
    distillation = make(config_of(mode, learners=3), False)
    textbook = textbook_of(distillation, mode, False)
    before = leaves(*distillation.factors)
    for done, _ in enumerate(islice(distillation.steps(), 3)):
        drawn = slice(3 * done, None)
        found = [
            textbook_step(distillation, textbook, before, *each)
            for each in zip(
                watched.starts[drawn], watched.windows[drawn], watched.real[drawn], strict=True
            )
        ]
        assert len(found) == 3
        for nth, factor in enumerate(distillation.factors):
            assert factor.grad is not None
            mean = torch.stack([gradients[nth] for gradients, _ in found]).mean(0)
            assert distance(factor.grad, mean) < EXACT
            assert distance(found[0][0][nth], found[1][0][nth]) > 1e-3
        for _, learner in found:
            assert_kept(distillation, learner)
        before = leaves(*distillation.factors)
    assert [len(pool) for pool in distillation.pools.by_learner.values()] == [
        distillation.config.outer.pool
    ] * 3


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_a_learner_of_a_step_draws_the_same_whoever_else_there_is(
    monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    watched = watch(monkeypatch)
    for learners in (1, 2):
        make(config_of(mode, learners=learners), False).step()
    alone, first, second = zip(watched.starts, watched.windows, watched.real, strict=True)
    assert_same_draws(alone, first)
    assert not torch.equal(alone[0].parameters, second[0].parameters)


def assert_same_draws(one: Any, other: Any) -> None:
    assert torch.equal(one[0].parameters, other[0].parameters)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert torch.equal(mine.rows, theirs.rows)
        assert torch.equal(mine.randomness.dropout, theirs.randomness.dropout)
        assert torch.equal(mine.randomness.targets.at, theirs.randomness.targets.at)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one[2], other[2], strict=True))


@pytest.mark.parametrize("biased", [False, True])
def test_the_first_steps_from_scratch_may_be_those_of_shared_items(
    monkeypatch: pytest.MonkeyPatch, biased: bool
) -> None:
    """Two of six, then fresh learners, a fresh Adam and a schedule of its own; the same again from
    a checkpoint between any two."""
    watched = watch(monkeypatch)
    config = config_of("from-scratch", shared_steps=2)
    distillation = make(config, biased)
    theirs = leaves(*distillation.factors)
    resumed: list[Distillation] = []
    for done, _ in enumerate(islice(distillation.steps(), 5)):
        mode: Mode = "shared-items" if done < 2 else "from-scratch"
        if done in (0, 2):
            optimizer = torch.optim.Adam(theirs, weight_decay=config.outer.weight_decay)
        start, window, real = watched.starts[-1], watched.windows[-1], watched.real[-1]
        textbook = textbook_of(distillation, mode, biased)
        wanted, _ = textbook_step(distillation, textbook, theirs, start, window, real)
        for factor, ours, gradient in zip(theirs, distillation.factors, wanted, strict=True):
            assert ours.grad is not None
            assert distance(ours.grad, gradient) < EXACT
            factor.grad = gradient
        of = (done, 2) if done < 2 else (done - 2, 4)
        optimizer.param_groups[0]["lr"] = RATES[mode] * (1 + math.cos(math.pi * of[0] / of[1])) / 2
        optimizer.step()
        for again in resumed:
            next(again.steps())
        for other in (theirs, *(again.factors for again in resumed)):
            for ours, factor in zip(distillation.factors, other, strict=True):
                assert distance(ours, factor) < EXACT
        resumed.append(make(config, biased))
        resumed[-1].restore(copy.deepcopy(distillation.state()))


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_a_window_goes_on_where_the_pool_left_off(
    monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    """With a pool of one: on from the last window's end until the learner is too old for another,
    then a fresh one, perhaps after some steps of its own."""
    watched = watch(monkeypatch)
    distillation = make(config_of(mode, pool=1, steps=12), False)
    end = distillation.pools.by_learner[0][0].state
    assert end.age == 0
    warmup_steps = distillation.pools.by_learner[0][0].warmup_steps
    fresh = 0
    for done, _ in enumerate(islice(distillation.steps(), 11)):
        start = watched.starts[done]
        if end.age + warmup_steps + 3 <= distillation.inner_steps:
            assert start.age == end.age + warmup_steps
            assert warmup_steps > 0 or torch.equal(start.parameters, end.parameters)
        else:
            fresh += 1
            assert start.age <= 3
        end, warmup_steps = (
            distillation.pools.by_learner[0][0].state,
            distillation.pools.by_learner[0][0].warmup_steps,
        )
        assert warmup_steps == 0
    assert fresh > 1


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
@pytest.mark.parametrize(("outer", "norm"), [({"normalise": True}, 1.0), ({"clip": 1e-4}, 1e-4)])
def test_the_gradient_is_normalised_or_clipped_and_keeps_its_direction(
    mode: Mode, outer: dict[str, Any], norm: float
) -> None:
    """Over all factors together. (The norm is divided by with a little added to it.)"""
    gradients = []
    for distillation in (make(config_of(mode), False), make(config_of(mode, **outer), False)):
        distillation.step()
        parts = [factor.grad for factor in distillation.factors if factor.grad is not None]
        gradients.append(torch.cat([part.flatten() for part in parts]))
    free = float(gradients[0].norm())
    assert free > 1e-3
    assert abs(free - 1) > 1e-3
    assert distance(gradients[1], gradients[0] * (norm / free)) < 1e-4


def test_a_shared_items_learner_may_start_as_the_early_teacher() -> None:
    distillation = make(config_of("shared-items", start="teacher", pool=6), True)
    early = distillation.teacher.early
    size = early.shape[1]
    for pooled in distillation.pools.by_learner[0]:
        theta = pooled.state.parameters
        assert any(torch.equal(theta[:size], each) for each in early)
        assert not theta[size:].any()  # the bias


@kinds
def test_learners_of_the_pool_are_whole_and_their_own(mode: Mode, biased: bool) -> None:
    distillation = make(config_of(mode, pool=3), biased)
    model = recommender(distillation.backbone, distillation.V_ND, mode)
    thetas = [pooled.state.parameters for pooled in distillation.pools.by_learner[0]]
    assert all(len(theta) == model.n_parameters for theta in thetas)
    assert not torch.equal(thetas[0], thetas[1])
    assert torch.equal(distillation.V_ND, distillation.teacher.model.table[:, :WIDTH])


def judged_as(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[tuple[int, Mode]]:
    """Let validations have these values; returns the list of (outer step, learners' mode)."""
    seen: list[tuple[int, Mode]] = []

    def judged(distillation: Distillation, _summary: Any, _nth: int) -> float:
        seen.append((distillation.done, distillation.mode))
        return values[len(seen) - 1]

    monkeypatch.setattr(Distillation, "_validation_of", judged)
    return seen


@pytest.mark.parametrize("inputs", ["soft", "items"])
@pytest.mark.parametrize(
    ("values", "chosen"),
    [([0.5, 0.3, 0.5, 0.4], 0), ([0.5, 0.3, 0.6, 0.4], 4), ([0.0, 0.0, 0.0, 0.1], 6)],
)
def test_the_start_is_handed_over_unless_something_does_better(
    monkeypatch: pytest.MonkeyPatch, inputs: Any, values: list[float], chosen: int
) -> None:
    """No summary is handed over that does worse than its start, or as well after more work."""
    seen = judged_as(monkeypatch, values)
    config = config_of("shared-items", inputs=inputs, validate_every=2, validation_learners=1)
    distillation = make(config, False)
    at = {0: [factor.detach().clone() for factor in distillation.factors]}
    best = []
    for value in distillation.steps():
        at[distillation.done] = [factor.detach().clone() for factor in distillation.factors]
        best.append(value)
    assert seen == [(step, "shared-items") for step in (0, 2, 4, 6)]
    assert best == [max(values[: 1 + step // 2]) for step in range(1, 7)]
    summary, choice = distillation.result()
    assert choice == {"ndcg@10": max(values), "step": float(chosen)}
    for kept, factor, other in zip(summary.learned, at[chosen], at[1], strict=True):
        assert torch.equal(kept, factor)
        assert not torch.equal(kept, other)


def test_labels_are_validated_and_kept_as_they_will_be_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged_as(monkeypatch, [0.1, 0.2])
    config = config_of("shared-items", inputs="items", validation_learners=1)
    config = config.model_copy(
        update={"summary": config.summary.model_copy(update={"label_step": 0.5})}
    )
    distillation = make(config, False)
    for _ in distillation.steps():
        pass
    summary, choice = distillation.result()
    assert choice["step"] == 6
    assert isinstance(summary, LabelledSummary)
    (labels,) = distillation.factors
    assert torch.equal(summary.labels, rounded(labels.detach(), 0.5))
    assert not torch.equal(summary.labels, labels)  # distilling goes on from what is not rounded
    assert isinstance(distillation.summary, LabelledSummary)
    assert torch.equal(summary.items, distillation.summary.items)
    assert torch.equal(summary.V, distillation.summary.V)


def test_the_start_is_judged_by_learners_of_the_mode_that_is_distilled_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first steps are for learners of another mode, whose figures do not compare. A look at
    the start changes nothing of what follows."""
    config = config_of("from-scratch", shared_steps=2, validate_every=2, validation_learners=1)
    unlooked = make(config, False)
    unlooked.step()
    seen = judged_as(monkeypatch, [0.3, 0.2, 0.1])
    distillation = make(config, False)
    for done, _ in enumerate(distillation.steps()):
        assert distillation.mode == ("shared-items" if done < 2 else "from-scratch")
        if done == 0:
            for mine, other in zip(distillation.factors, unlooked.factors, strict=True):
                assert torch.equal(mine, other)
    assert seen == [(step, "from-scratch") for step in (0, 4, 6)]
    assert distillation.result()[1]["step"] == 0


@pytest.mark.parametrize("inputs", ["soft", "items"])
def test_without_outer_steps_the_start_is_validated_and_handed_over(inputs: Any) -> None:
    distillation = make(config_of("shared-items", inputs=inputs, steps=0), False)
    assert list(distillation.steps()) == []
    summary, choice = distillation.result()
    assert choice["step"] == 0
    assert choice["ndcg@10"] > 0
    for kept, start in zip(summary.learned, distillation.summary.learned, strict=True):
        assert torch.equal(kept, start)


def test_a_start_on_which_learners_diverge_is_no_candidate_but_distilled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []

    def learner(distillation: Distillation, *_: Any) -> Any:
        looks.append(distillation.done)
        if not distillation.done:
            raise DivergedError("a learner diverged")
        return distillation.teacher.model

    monkeypatch.setattr(Distillation, "_learner_of", learner)
    config = config_of("shared-items", validate_every=2, validation_learners=1)
    distillation = make(config, False)
    steps = distillation.steps()
    next(steps)
    with pytest.raises(RuntimeError, match="not been validated"):
        distillation.result()
    # Going on from here is not starting again.
    again = make(config, False)
    again.restore(copy.deepcopy(distillation.state()))
    for each in (steps, again.steps()):
        next(each)
    assert looks == [0, 2, 2]
    assert distillation.result()[1] == again.result()[1]
    assert distillation.result()[1]["step"] == 2
    with pytest.raises(DivergedError):  # nothing else could be handed over
        list(make(config_of("shared-items", steps=0), False).steps())
