"""Learners of different ages that outer steps take turns with.

The pool replaces the warm-up steps of the published code: each learner keeps the end of its window
as its new state, so windows of all ages occur and no step is thrown away.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from td3engine.config import DistillConfig
from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.unroll import Window
from td3engine.models.recommender import Recommender
from td3engine.runtime.seeding import Purpose, generator, numpy_generator


@dataclass(frozen=True)
class PooledLearner:
    """A learner of a pool.

    Attributes:
        state: its training state.
        warmup_steps: to take without differentiation before its next window, so that windows start
            at random ages and not at multiples of the window.
    """

    state: LearnerState
    warmup_steps: int


@dataclass(frozen=True)
class LearnerWindow:
    """A learner's part in an outer step.

    Attributes:
        learner, place: which pool, and where in it.
        start: the learner at the window's start.
        steps: of the window.
        rng, draw: random generators of its real batch.
    """

    learner: int
    place: int
    start: LearnerState
    steps: Window
    rng: np.random.Generator
    draw: torch.Generator


class LearnerPools:
    """A pool for each of an outer step's learners, as far as this process trains them.

    Args:
        config: all settings.
        model: the learners.
        inner_steps: how many steps a learner takes in all.
        early_EP: encoders after the teacher's first epochs, (epochs, P).
        device: where to compute.
    """

    def __init__(
        self,
        config: DistillConfig,
        model: Recommender,
        inner_steps: int,
        early_EP: torch.Tensor,
        device: torch.device,
    ) -> None:
        self.config, self.model, self.inner_steps = config, model, inner_steps
        self.early_EP, self.device = early_EP, device
        self.by_learner: dict[int, list[PooledLearner]] = {}

    def fill(self, learners: Iterable[int], first: int) -> None:
        """New pools for these learners; the members' random draws are numbered from `first`."""
        indices = range(first, first + self.config.outer.pool)
        self.by_learner = {
            learner: [self.fresh(learner, index, staggered=True) for index in indices]
            for learner in learners
        }

    def pick(self, learner: int, place: int, done: int) -> PooledLearner:
        """The learner at this place, or a new one if that has no window left.

        Args:
            learner: which pool.
            place: where in it.
            done: outer steps so far.
        """
        outer, pooled = self.config.outer, self.by_learner[learner][place]
        if pooled.state.age + pooled.warmup_steps + outer.window <= self.inner_steps:
            return pooled
        return self.fresh(learner, outer.pool + done, staggered=False)

    def put(self, window: LearnerWindow, end: LearnerState) -> None:
        """The learner goes back to its place, a window older."""
        self.by_learner[window.learner][window.place] = PooledLearner(end, warmup_steps=0)

    def fresh(self, learner: int, index: int, *, staggered: bool) -> PooledLearner:
        """A new learner; those of a new pool are spread over all ages, later ones are young."""
        outer, seed = self.config.outer, self.config.seed
        draw = generator(seed, Purpose.POOL, index, self.device.type, learner=learner)
        rng = numpy_generator(seed, Purpose.POOL, index, learner=learner)
        latest = self.inner_steps - outer.window
        oldest = latest if staggered else min(outer.window, latest)
        warmup_steps = int(rng.integers(0, oldest + 1))
        if outer.start == "teacher":
            encoder_P = self.early_EP[int(rng.integers(len(self.early_EP)))]
            theta = self.model.with_table(encoder_P, draw)
        else:
            theta = self.model.initial(draw)
        return PooledLearner(LearnerState.fresh(theta), warmup_steps)

    def state(self) -> dict[int, list[dict[str, Any]]]:
        """The pools for a checkpoint."""
        return {
            learner: [{**vars(each.state), "owed": each.warmup_steps} for each in pool]
            for learner, pool in self.by_learner.items()
        }

    def restore(self, state: dict[int, list[dict[str, Any]]]) -> None:
        """Continue from `state()`, which may hold the pools of other processes too."""
        self.by_learner = {
            learner: [_pooled(stored) for stored in state[learner]] for learner in self.by_learner
        }


def _pooled(stored: dict[str, Any]) -> PooledLearner:
    state = {name: value for name, value in stored.items() if name != "owed"}
    return PooledLearner(LearnerState(**state), stored["owed"])
