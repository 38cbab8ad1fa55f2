"""How learners go through their windows: one by itself, or several of different ages together.

Either way `unroll` does the work, forward to the windows' ends and back from there. Together, a
kernel serves all learners: what they train from has one more dimension, and Adam's numbers are
each learner's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from td3engine.inner_loop.adam import AdamSchedule, LearnerState, PrecomputedSchedule
from td3engine.inner_loop.gradients import InnerGradient, InnerStep
from td3engine.inner_loop.graphed import CudaGraph
from td3engine.inner_loop.traced import TracedTake
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.inner_loop.unroll import meta_gradient, train
from td3engine.models.recommender import StepRandomness

Window = Sequence[InnerStep[StepRandomness]]


Back = Callable[[Sequence[Tensor]], Tensor]
"""From each learner's dL/d(parameters) (P) at its window's end: dL/d(leaf), summed over learners.
To be called once, before the next windows; its result may be overwritten by them."""


class Unroll(Protocol):
    """Takes some learners through their windows."""

    def __call__(
        self, synthetic: Tensor, starts: Sequence[LearnerState], windows: Sequence[Window]
    ) -> tuple[list[LearnerState], Back]:
        """Each learner's state at its window's end, and the way back.

        Args:
            leaf: what batches are cut from, (mu, zeta, .).
            starts: a state of each learner.
            windows: its steps from there, of all learners as many.
        """


class SequentialUnroll:
    """`Unroll` of one learner.

    Args:
        recipe: of its training.
        recompute: take each step's gradient again on the way back.
    """

    def __init__(self, trainer: InnerLoopTrainer, *, recompute: bool) -> None:
        self.trainer, self.recompute = trainer, recompute

    def __call__(
        self, synthetic: Tensor, starts: Sequence[LearnerState], windows: Sequence[Window]
    ) -> tuple[list[LearnerState], Back]:
        """See `Unroll`."""
        (start,), (steps,) = starts, windows
        kept: list[InnerGradient] | None = None if self.recompute else []
        take, schedule = self.trainer.take, self.trainer.schedule
        states = train(start, synthetic, steps, take, schedule, kept)

        def back(outer_gradients: Sequence[Tensor]) -> Tensor:
            (outer,) = outer_gradients
            return meta_gradient(states, synthetic, steps, take, schedule, outer, kept)

        return states[-1:], back


class Together:
    """`Unroll` of always as many learners, side by side; on a GPU in two recorded pieces.

    Args:
        recipe: of their training, whose derivatives are written out.
        device: where to compute.
        compiled: whether to compile a step.
        recompute: take each step's gradients again on the way back.
    """

    def __init__(
        self, trainer: InnerLoopTrainer, device: torch.device, *, compiled: bool, recompute: bool
    ) -> None:
        self.trainer, self.recompute = trainer, recompute
        self.take = TracedTake(trainer.grad_fn, compiled=compiled, stacked=True)
        pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.forward = CudaGraph(self._train, device, pool)
        self.reverse = CudaGraph(self._meta_gradient, device, pool)

    def __call__(
        self, synthetic: Tensor, starts: Sequence[LearnerState], windows: Sequence[Window]
    ) -> tuple[list[LearnerState], Back]:
        """See `Unroll`."""
        self._target_positions = windows[0][0].randomness.targets
        count, ages = len(windows[0]), [start.age for start in starts]
        names = ("parameters", "first", "second")
        parts = [torch.stack([getattr(start, name) for start in starts]) for name in names]
        rates = self._rates(ages, count).to(parts[0])
        p, m, v = self.forward(synthetic, *parts, rates, *_stacked_steps(windows))
        # Each in memory of its own, for it is kept, and may be for longer than others.
        states = [
            LearnerState(p[nth].clone(), m[nth].clone(), v[nth].clone(), age + count)
            for nth, age in enumerate(ages)
        ]
        return states, self._from_ends

    def _from_ends(self, outer_gradients: Sequence[Tensor]) -> Tensor:
        (to_synthetic,) = self.reverse(torch.stack([*outer_gradients]))
        return to_synthetic

    def _rates(self, ages: Sequence[int], count: int) -> Tensor:
        """(W, 2, K, 1), float64."""
        rates = [[self.trainer.schedule.at(age + step) for age in ages] for step in range(count)]
        return torch.tensor(rates, dtype=torch.float64).mT[..., None]

    def _train(
        self, synthetic: Tensor, parameters: Tensor, first: Tensor, second: Tensor, rates: Tensor,
        rows: Tensor, at_rows: Tensor, at: Tensor, *dropout: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """The states at the windows' ends. What the way back needs stays where it is."""
        self._leaf, schedule = synthetic, self.trainer.schedule
        self._rule: AdamSchedule = PrecomputedSchedule(schedule.weight_decay, schedule.beta2, rates)
        self._steps = [
            InnerStep(
                rows[nth],
                StepRandomness(
                    replace(self._target_positions, rows=at_rows[nth], at=at[nth]),
                    dropout[0][nth] if dropout else None,
                ),
            )
            for nth in range(len(rows))
        ]
        self._kept: list[InnerGradient] | None = None if self.recompute else []
        start = LearnerState(parameters, first, second, 0)
        self._states = train(start, synthetic, self._steps, self.take, self._rule, self._kept)
        end = self._states[-1]
        return end.parameters, end.first, end.second

    def _meta_gradient(self, outer_gradient_KP: Tensor) -> tuple[Tensor]:
        kept = None if self._kept is None else [*self._kept]  # of use once more, in a warm-up
        window = self._states, self._leaf, self._steps, self.take, self._rule
        return (meta_gradient(*window, outer_gradient_KP, kept),)


def _stacked_steps(windows: Sequence[Window]) -> list[Tensor]:
    """Rows (W, K, B); asked rows and places (W, K, N); dropout (W, K, M), if there is any."""
    steps = [step for at_once in zip(*windows, strict=True) for step in at_once]
    dropout = [step.randomness.dropout for step in steps if step.randomness.dropout is not None]
    parts = [
        [step.rows for step in steps],
        [step.randomness.targets.rows for step in steps],
        [step.randomness.targets.at for step in steps],
        *([dropout] if dropout else []),
    ]
    shape = len(windows[0]), len(windows)
    return [torch.stack(part).view(*shape, *part[0].shape) for part in parts]
