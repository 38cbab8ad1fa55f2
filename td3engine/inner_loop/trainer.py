"""The inner loop's trainer: which rows, which random draws, which loss, which Adam (section 4)."""

from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from td3engine.config import LearnerConfig
from td3engine.inner_loop.adam import LearnerAdam, LearnerState
from td3engine.inner_loop.analytic import AnalyticGradient
from td3engine.inner_loop.gradients import (
    AutogradGradient,
    GradFn,
    InnerGradient,
    InnerStep,
    LearnerLoss,
)
from td3engine.inner_loop.recorded import RecordedSteps
from td3engine.inner_loop.unroll import train
from td3engine.losses.cross_entropy import cross_entropy
from td3engine.models.backbone import TargetPositions
from td3engine.models.recommender import Recommender, StepRandomness
from td3engine.summary.soft_sequences import SoftEmbedding

FIRST_AUGMENTED = 5  # the augmentation predicts no earlier position than this (section 4)
VALIDATE_EVERY = 20  # inner steps between two looks at validation, where a caller wants them


def summary_loss(
    model: Recommender,
    soft_embedding: SoftEmbedding,
    length: int,
    theta: Tensor,
    batch: Tensor,
    randomness: StepRandomness,
) -> Tensor:
    """The inner loss on a batch of synthetic sequences: mean over the events that are asked for.

    What is read are the first zeta (`length`) positions of the batch, what is to be predicted the
    last ones; without targets of their own these are the same.
    """
    encoder_P, table_NF = model.parts(theta)
    X_BTF = soft_embedding.read(batch, table_NF)
    lengths = torch.full((len(X_BTF),), length, device=X_BTF.device)
    hidden_KF = model.states(encoder_P, X_BTF[:, :length], lengths, randomness)
    expected_KF = X_BTF[:, -length:][randomness.targets.rows, randomness.targets.at]
    return cross_entropy(hidden_KF, expected_KF, table_NF, model.log_weight).mean()


def learner_adam(config: LearnerConfig, steps: int) -> LearnerAdam:
    """The configured Adam of a learner that takes so many steps."""
    decay_steps = steps if config.schedule == "linear" else None
    return LearnerAdam(config.lr, config.weight_decay, decay_steps, config.beta2)


class InnerLoopTrainer:
    """The inner loop's recipe: which rows, which draws, which loss, which Adam.

    Args:
        model: the learner.
        config: batch, objective, Adam.
        steps: how many steps a learner takes in all.
        reader: how a batch of the summary is read.
        length: zeta.
        recorded: replay steps outside windows, if their derivatives are written out
            (`inner_loop.recorded`).
    """

    def __init__(
        self,
        model: Recommender,
        config: LearnerConfig,
        steps: int,
        soft_embedding: SoftEmbedding,
        length: int,
        *,
        recorded: bool = False,
    ) -> None:
        self.model, self.config, self.count = model, config, steps
        self.soft_embedding, self.length = soft_embedding, length
        self.schedule = learner_adam(config, steps)
        self.loss: LearnerLoss[StepRandomness] = partial(
            summary_loss, model, soft_embedding, length
        )
        self.take: GradFn[StepRandomness] = self.grad_fn
        self.recorded: RecordedSteps | None = None
        if recorded and model.has_analytic_grad:
            self.recorded = RecordedSteps(self.grad_fn)

    def over(self, part: Recommender) -> "InnerLoopTrainer":
        """The same with learners that score other items; X is read as before."""
        return InnerLoopTrainer(part, self.config, self.count, self.soft_embedding, self.length)

    def grad_fn(
        self, theta: Tensor, batch: Tensor, randomness: StepRandomness, second: bool
    ) -> InnerGradient:
        """One step's gradient: by hand where the backbone has that, else by autograd."""
        if not self.model.has_analytic_grad:
            return AutogradGradient(theta, batch, randomness, second, loss=self.loss)
        encoder_P, _ = self.model.parts(theta)
        encoder = self.model.backbone.analytic(
            encoder_P, randomness.targets, randomness.dropout, len(batch)
        )
        return AnalyticGradient(
            self.model, encoder, self.soft_embedding, theta, batch, self.length, randomness
        )

    def steps(
        self, age: int, count: int, users: int, generator: Generator
    ) -> list[InnerStep[StepRandomness]]:
        """The next `count` steps, one at least, of a learner of this age: rows in cyclic order."""
        batch = min(self.config.batch, users)
        taken = torch.arange(age * batch, (age + count) * batch, device=generator.device) % users
        rows_WB = taken.view(count, batch)
        targets = self._target_positions(count, batch, generator)
        size = batch, self.length
        flat = self.model.backbone.dropout(
            *size, generator, targets[0].selected_per_row, passes=count
        )
        masks = [None] * count if flat is None else flat.view(count, -1)
        return [
            InnerStep(rows, StepRandomness(*drawn))
            for rows, *drawn in zip(rows_WB, targets, masks, strict=True)
        ]

    def _target_positions(
        self, count: int, batch: int, generator: Generator
    ) -> list[TargetPositions]:
        """What so many steps ask for: drawn for each step, or the same for all."""
        backbone = self.model.backbone
        if backbone.causal and self.config.objective == "last-and-augmented":
            return [self._last_and_augmented(batch, generator) for _ in range(count)]
        lengths = torch.full((batch,), self.length, device=generator.device)
        if backbone.causal:
            return [replace(backbone.draw_targets(lengths, generator), all_positions=True)] * count
        return [backbone.draw_targets(lengths, generator) for _ in range(count)]

    def _last_and_augmented(self, batch: int, generator: Generator) -> TargetPositions:
        """The last event of each row and some drawn ones (section 4)."""
        last_at, count = self.length - 1, self.config.augmented
        first = min(FIRST_AUGMENTED, last_at - 1)
        shape, device = (batch, count), generator.device
        drawn = torch.randint(first, last_at, shape, generator=generator, device=device)
        last = drawn.new_full((batch, 1), last_at)
        at = torch.cat([last, drawn], 1)
        rows = torch.arange(batch, device=device).repeat_interleave(count + 1)
        return TargetPositions(rows, at.reshape(-1), per_row=count + 1)


def advance(
    training: InnerLoopTrainer, synthetic: Tensor, start: LearnerState, draw: Generator, count: int
) -> LearnerState:
    """`count` more steps of a learner; `synthetic` is what its batches are cut from."""
    state, until = start, start.age + count
    while state.age < until:
        at_once = min(VALIDATE_EVERY, until - state.age)  # draws take memory
        steps = training.steps(state.age, at_once, len(synthetic), draw)
        if training.recorded is not None:
            state = training.recorded(synthetic, state, steps, training.schedule)
        else:
            state = train(state, synthetic, steps, training.take, training.schedule)[-1]
    return state
