"""The inner loop's trainer: rows, random draws, loss and Adam of each step (section 4)."""

from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from td3engine.config import LearnerConfig
from td3engine.inner_loop.adam import LearnerAdam, LearnerState
from td3engine.inner_loop.cuda_graphs import RecordedSteps, RecordedUnroll
from td3engine.inner_loop.gradients import (
    AnalyticGradient,
    AnalyticScoredGradient,
    AutogradGradient,
    InnerGradient,
    InnerStep,
    LearnerLoss,
    scored_loss,
    summary_loss,
)
from td3engine.inner_loop.plan import InnerLoopPlan
from td3engine.inner_loop.unroll import SequentialUnroll, Unroll, train
from td3engine.models.backbone import TargetPositions
from td3engine.models.recommender import Recommender, StepRandomness
from td3engine.summary.scored_sequences import InputsWithTargets
from td3engine.summary.soft_sequences import SoftEmbedding

FIRST_AUGMENTED = 5  # the augmentation predicts no earlier position than this (section 4)
DRAWN_AT_ONCE = 20  # steps: their draws take memory


def learner_adam(config: LearnerConfig, steps: int) -> LearnerAdam:
    """The configured Adam of a learner that trains for so many steps."""
    decay_steps = steps if config.schedule == "linear" else None
    return LearnerAdam(config.lr, config.weight_decay, decay_steps, config.beta2)


class InnerLoopTrainer:
    """Trains learners of one kind on a summary.

    Args:
        model: the learner.
        config: batch, objective, Adam.
        steps: how many steps a learner takes in all.
        soft_embedding: how a batch of the summary is read.
        length: zeta.
        plan: how a step is computed.

    Attributes:
        unroll: takes a learner through a window that is differentiated.
    """

    def __init__(
        self,
        model: Recommender,
        config: LearnerConfig,
        steps: int,
        soft_embedding: SoftEmbedding,
        length: int,
        plan: InnerLoopPlan,
    ) -> None:
        self.model, self.config, self.count, self.plan = model, config, steps, plan
        self.soft_embedding, self.length = soft_embedding, length
        self.schedule = learner_adam(config, steps)
        self.loss: LearnerLoss[StepRandomness] = (
            partial(scored_loss, model, soft_embedding)
            if isinstance(soft_embedding, InputsWithTargets)
            else partial(summary_loss, model, soft_embedding, length)
        )
        self.unroll: Unroll
        self._recorded_steps: RecordedSteps | None = None
        if plan.unroll == "cuda-graphs":
            self.unroll = RecordedUnroll(self.grad_fn, self.schedule, recompute=plan.recompute)
            self._recorded_steps = RecordedSteps(self.grad_fn, self.schedule)
        else:
            self.unroll = SequentialUnroll(self.grad_fn, self.schedule, recompute=plan.recompute)

    def over(self, part: Recommender) -> "InnerLoopTrainer":
        """The same with learners that score other items; X is read as before."""
        sizes = self.count, self.soft_embedding, self.length
        return InnerLoopTrainer(part, self.config, *sizes, self.plan)

    def grad_fn(
        self, theta: Tensor, batch: Tensor, randomness: StepRandomness, second: bool
    ) -> InnerGradient:
        """One step's gradient, see `gradients.GradFn`."""
        if self.plan.gradient == "autograd":
            return AutogradGradient(theta, batch, randomness, second, loss=self.loss)
        encoder_P, _ = self.model.parts(theta)
        encoder = self.model.backbone.analytic(
            encoder_P, randomness.targets, randomness.dropout, len(batch)
        )
        if isinstance(self.soft_embedding, InputsWithTargets):
            read = self.soft_embedding
            return AnalyticScoredGradient(self.model, encoder, read, theta, batch, randomness)
        return AnalyticGradient(
            self.model, encoder, self.soft_embedding, theta, batch, self.length, randomness
        )

    def advance(
        self, synthetic: Tensor, start: LearnerState, draw: Generator, count: int
    ) -> LearnerState:
        """`count` more steps of a learner, whose batches are cut from `synthetic`."""
        state, until = start, start.age + count
        while state.age < until:
            at_once = min(DRAWN_AT_ONCE, until - state.age)
            steps = self.steps(state.age, at_once, len(synthetic), draw)
            if self._recorded_steps is not None:
                state = self._recorded_steps(synthetic, state, steps)
            else:
                state = train(state, synthetic, steps, self.grad_fn, self.schedule)[-1]
        return state

    def steps(
        self, age: int, count: int, users: int, generator: Generator
    ) -> list[InnerStep[StepRandomness]]:
        """The next `count` steps, one at least, of a learner of this age."""
        batch = min(self.config.batch, users)
        rows_WB = self._rows(age * batch, count * batch, users, generator).view(count, batch)
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

    def _rows(self, first: int, count: int, users: int, generator: Generator) -> Tensor:
        """Sequences in turn, int64 (count): cyclic as in the paper where the loss is, too; else
        each pass over them in an order of its own."""
        device = generator.device
        if self.config.loss == "cross-entropy":
            return torch.arange(first, first + count, device=device) % users
        passes = -(-count // users)
        orders = torch.rand(passes, users, generator=generator, device=device).argsort(1)
        return orders.flatten()[:count]

    def _target_positions(
        self, count: int, batch: int, generator: Generator
    ) -> list[TargetPositions]:
        """The targets of `count` steps: drawn for each step, or the same for all."""
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
