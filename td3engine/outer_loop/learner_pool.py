"""The learners of different ages that outer steps take turns with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.windows import Window


@dataclass(frozen=True)
class PooledLearner:
    """A learner of the pool.

    Attributes:
        state: its training state.
        owed: steps to take without a graph before its next window, so that windows start at
            random ages and not at multiples of the window.
    """

    state: LearnerState
    warmup_steps: int


@dataclass(frozen=True)
class LearnerWindow:
    """A learner's part in an outer step.

    Attributes:
        learner, nth: which one of which pool.
        start: where its window begins.
        window: the window's steps.
        rng, draw: what its real batch is drawn with.
    """

    learner: int
    nth: int
    start: LearnerState
    window: Window
    rng: np.random.Generator
    draw: torch.Generator


def _kept(pooled: PooledLearner) -> dict[str, Any]:
    """A learner of the pool as a checkpoint holds it."""
    return {**vars(pooled.state), "owed": pooled.warmup_steps}


def _pooled(kept: dict[str, Any]) -> PooledLearner:
    state = {name: value for name, value in kept.items() if name != "owed"}
    return PooledLearner(LearnerState(**state), kept["owed"])
