"""How a learner goes through its window: forward to the window's end, and back from there."""

from collections.abc import Callable, Sequence

from torch import Tensor

from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.gradients import InnerGradient, InnerStep
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.inner_loop.unroll import meta_gradient, train
from td3engine.models.recommender import StepRandomness

Window = Sequence[InnerStep[StepRandomness]]

Back = Callable[[Tensor], Tensor]
"""From dL/d(parameters) (P) at the window's end to dL/d(leaf). To be called once."""


class SequentialUnroll:
    """Takes a learner through its window, step by step.

    Args:
        trainer: of the learner.
        recompute: take each step's gradient again on the way back.
    """

    def __init__(self, trainer: InnerLoopTrainer, *, recompute: bool) -> None:
        self.trainer, self.recompute = trainer, recompute

    def __call__(
        self, synthetic: Tensor, start: LearnerState, steps: Window
    ) -> tuple[LearnerState, Back]:
        """The state at the window's end, and the way back."""
        kept: list[InnerGradient] | None = None if self.recompute else []
        take, schedule = self.trainer.take, self.trainer.schedule
        states = train(start, synthetic, steps, take, schedule, kept)

        def back(outer_gradient_P: Tensor) -> Tensor:
            window = states, synthetic, steps, take, schedule
            return meta_gradient(*window, outer_gradient_P, kept)

        return states[-1], back
