"""The inner loop: train a learner on a summary (section 4)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from td3engine.config import LearnerConfig, Mode
from td3engine.errors import DivergedError
from td3engine.inner_loop.adam import AdamRule, LearnerState
from td3engine.inner_loop.analytic import ByHand
from td3engine.inner_loop.gradients import ByAutograd, InnerStep, LearnerLoss, Take, Taken
from td3engine.inner_loop.recorded import RecordedSteps
from td3engine.inner_loop.traced import TracedTake
from td3engine.inner_loop.unroll import train
from td3engine.losses.cross_entropy import cross_entropy
from td3engine.models.backbone import Asked, Backbone
from td3engine.models.recommender import Draws, Recommender
from td3engine.ranking.metrics import Scorer
from td3engine.summary.soft_sequences import Reader, reader_for
from td3engine.summary.tucker import Summary, query

FIRST_AUGMENTED = 5  # the augmentation predicts no earlier position than this (section 4)
ENCODED_AT_ONCE = 1024
ATTENDED_AT_ONCE = 2**24  # pairs of positions; with histories up to 128 nothing is cut
VALIDATE_EVERY = 20  # inner steps between two looks at validation, where a caller wants them


def summary_loss(
    model: Recommender, reader: Reader, length: int, theta: Tensor, batch: Tensor, draws: Draws
) -> Tensor:
    """The inner loss on a batch of synthetic sequences: mean over the events that are asked for.

    What is read are the first zeta (`length`) positions of the batch, what is to be predicted the
    last ones; without targets of their own these are the same.
    """
    encoder_P, table_NF = model.parts(theta)
    X_BTF = reader.read(batch, table_NF)
    lengths = torch.full((len(X_BTF),), length, device=X_BTF.device)
    hidden_KF = model.states(encoder_P, X_BTF[:, :length], lengths, draws)
    expected_KF = X_BTF[:, -length:][draws.asked.rows, draws.asked.at]
    return cross_entropy(hidden_KF, expected_KF, table_NF, model.log_weight).mean()


def adam_rule(config: LearnerConfig, steps: int) -> AdamRule:
    """The configured Adam of a learner that takes so many steps."""
    decay_steps = steps if config.schedule == "linear" else None
    return AdamRule(config.lr, config.weight_decay, decay_steps, config.beta2)


class SummaryTraining:
    """The inner loop's recipe: which rows, which draws, which loss, which Adam.

    Args:
        model: the learner.
        config: batch, objective, Adam.
        steps: how many steps a learner takes in all.
        reader: how a batch of the summary is read.
        length: zeta.
        compiled: compile a step, if its derivatives are written out (`inner_loop.traced`).
        recorded: replay steps outside windows, likewise (`inner_loop.recorded`).

    Raises:
        CompilerError: nothing can be compiled here.
    """

    def __init__(
        self,
        model: Recommender,
        config: LearnerConfig,
        steps: int,
        reader: Reader,
        length: int,
        *,
        compiled: bool = False,
        recorded: bool = False,
    ) -> None:
        self.model, self.config, self.count = model, config, steps
        self.reader, self.length = reader, length
        self.rule = adam_rule(config, steps)
        self.loss: LearnerLoss[Draws] = partial(summary_loss, model, reader, length)
        self.take: Take[Draws] = self.take_one
        if compiled and model.written_out:
            self.take = TracedTake(self.take_one, compiled=True, stacked=False)
        self.recorded: RecordedSteps | None = None
        if recorded and model.written_out:
            self.recorded = RecordedSteps(self.take_one)

    def over(self, part: Recommender) -> "SummaryTraining":
        """The same with learners that score other items; X is read as before."""
        return SummaryTraining(part, self.config, self.count, self.reader, self.length)

    def take_one(self, theta: Tensor, batch: Tensor, draws: Draws, second: bool) -> Taken:
        """One step's gradient: by hand where the backbone has that, else by autograd."""
        if not self.model.written_out:
            return ByAutograd(theta, batch, draws, second, loss=self.loss)
        encoder_P, _ = self.model.parts(theta)
        encoder = self.model.backbone.by_hand(encoder_P, draws.asked, draws.dropout, len(batch))
        return ByHand(self.model, encoder, self.reader, theta, batch, self.length, draws)

    def steps(
        self, age: int, count: int, users: int, generator: Generator
    ) -> list[InnerStep[Draws]]:
        """The next `count` steps, one at least, of a learner of this age: rows in cyclic order."""
        batch = min(self.config.batch, users)
        taken = torch.arange(age * batch, (age + count) * batch, device=generator.device) % users
        rows_WB = taken.view(count, batch)
        asked = self._asked(count, batch, generator)
        size = batch, self.length
        flat = self.model.backbone.dropout(*size, generator, asked[0].few, passes=count)
        masks = [None] * count if flat is None else flat.view(count, -1)
        return [
            InnerStep(rows, Draws(*drawn))
            for rows, *drawn in zip(rows_WB, asked, masks, strict=True)
        ]

    def _asked(self, count: int, batch: int, generator: Generator) -> list[Asked]:
        """What so many steps ask for: drawn for each step, or the same for all."""
        backbone = self.model.backbone
        if backbone.causal and self.config.objective == "last-and-augmented":
            return [self._last_and_augmented(batch, generator) for _ in range(count)]
        lengths = torch.full((batch,), self.length, device=generator.device)
        if backbone.causal:
            return [replace(backbone.asked(lengths, generator), whole=True)] * count
        return [backbone.asked(lengths, generator) for _ in range(count)]

    def _last_and_augmented(self, batch: int, generator: Generator) -> Asked:
        """The last event of each row and some drawn ones (section 4)."""
        last_at, count = self.length - 1, self.config.augmented
        first = min(FIRST_AUGMENTED, last_at - 1)
        shape, device = (batch, count), generator.device
        drawn = torch.randint(first, last_at, shape, generator=generator, device=device)
        last = drawn.new_full((batch, 1), last_at)
        at = torch.cat([last, drawn], 1)
        rows = torch.arange(batch, device=device).repeat_interleave(count + 1)
        return Asked(rows, at.reshape(-1), each=count + 1)


@dataclass(frozen=True)
class Learned:
    """A trained model: flat encoder parameters (P), scoring table F (n, f), wall seconds."""

    parameters: Tensor
    table: Tensor
    seconds: float


Validate = Callable[[Tensor, Tensor], float]
"""(encoder parameters, scoring table) -> validation NDCG@10."""


def advance(
    training: SummaryTraining, leaf: Tensor, start: LearnerState, draw: Generator, count: int
) -> LearnerState:
    """`count` more steps of a learner; `leaf` is what its batches are cut from."""
    state, until = start, start.age + count
    while state.age < until:
        at_once = min(VALIDATE_EVERY, until - state.age)  # draws take memory
        steps = training.steps(state.age, at_once, len(leaf), draw)
        if training.recorded is not None:
            state = training.recorded(leaf, state, steps, training.rule)
        else:
            state = train(state, leaf, steps, training.take, training.rule)[-1]
    return state


def learn(
    summary: Summary,
    backbone: Backbone,
    config: LearnerConfig,
    mode: Mode,
    draw: Generator,
    validate: Validate | None = None,
) -> Learned:
    """Train a fresh learner on a summary, as its user does.

    Args:
        summary: the factors.
        backbone: an untrained backbone.
        config: steps, batch, Adam.
        mode: `shared-items` reads and scores with the summary's V; `from-scratch` trains its own
            item table E and reads X = softmax(C V^T) E, re-computed at each step.
        draw: of the initial weights, dropout and augmentation.
        validate: if given, asked every `VALIDATE_EVERY` steps, and the best state is returned;
            its time is not counted. Without it, the last state.

    Raises:
        DivergedError: the learner's parameters are no longer finite.
    """
    training, leaf = training_on(summary, backbone, config, mode)
    return learn_from(training, leaf, draw, validate)


def learn_from(
    training: SummaryTraining, leaf: Tensor, draw: Generator, validate: Validate | None = None
) -> Learned:
    """`learn`, for a recipe and what its batches are cut from, (mu, zeta or 2 zeta, .)."""
    model = training.model
    state = LearnerState.fresh(model.initial(draw))
    best: Learned | None = None
    best_value, seconds = -1.0, 0.0
    while state.age < training.count:
        began = time.perf_counter()
        count = min(VALIDATE_EVERY, training.count - state.age)
        state = advance(training, leaf, state, draw, count)
        seconds += time.perf_counter() - began
        if not torch.isfinite(state.parameters).all():
            raise DivergedError(
                f"a learner diverged within {state.age} steps: a smaller learner.lr may help"
            )
        encoder_P, table_NF = model.parts(state.parameters)
        value = validate(encoder_P, table_NF) if validate else float(state.age)
        if best is None or value > best_value:
            best_value, best = value, Learned(encoder_P, table_NF, seconds)
    assert best is not None  # a learner takes at least 2 steps
    return best


def training_on(
    summary: Summary, backbone: Backbone, config: LearnerConfig, mode: Mode
) -> tuple[SummaryTraining, Tensor]:
    """The recipe of learners on this summary, and what their batches are cut from."""
    C_UTD = query(*summary.learned)
    model = recommender(backbone, summary.V, mode)
    reader = reader_for(summary.V, summary.positions, fixed=model.scores_are_fixed)
    training = SummaryTraining(model, config, config.steps_in(mode), reader, len(summary.T))
    return training, reader.leaf(C_UTD)


def recommender(backbone: Backbone, V_ND: Tensor, mode: Mode) -> Recommender:
    """A learner of this mode over the items of V."""
    if mode == "shared-items":
        return Recommender.sharing(backbone, V_ND)
    n_items, width = V_ND.shape
    return Recommender(backbone, n_items, width)


def encode_last(backbone: Backbone, parameters_P: Tensor, table_NF: Tensor) -> Scorer:
    """A scorer for `ranking.evaluate`, which ranks by its states times the scoring table F."""
    biased = int(backbone.biased)
    model = Recommender(backbone, len(table_NF), table_NF.shape[1] - biased)

    @torch.no_grad()
    def score(items_BL: Tensor, lengths_B: Tensor) -> Tensor:
        states_BF = table_NF.new_empty(len(items_BL), table_NF.shape[1])
        # Rows of like length together: a chunk is as wide as its longest.
        longest = max(1, items_BL.shape[1])
        at_once = min(ENCODED_AT_ONCE, max(1, ATTENDED_AT_ONCE // longest**2))
        for rows in lengths_B.argsort(stable=True).split(at_once):
            lengths = lengths_B[rows].to(table_NF.device)
            items = items_BL[rows, : int(lengths.max())].to(table_NF.device)
            states_BF[rows] = model.last(parameters_P, table_NF[items], lengths)
        return states_BF

    return score
