"""RaT-BPTT: differentiate a real loss through a window of a learner's training (section 5).

The window runs forward and keeps each state. The reverse pass goes through the steps from last to
first. It needs each step's gradient with what its derivatives need: kept from the forward pass, or
computed again, and then memory holds one step whatever the window. It carries the adjoint of
(parameters, moments) back through Adam by closed formulas, a dozen kernels on flat vectors instead
of a tape. They are derived from the chain rule; tests compare with a plain autograd unroll.
"""

from collections.abc import Callable, Sequence
from typing import Generic, Protocol

import torch
from torch import Tensor

from td3engine.inner_loop.adam import AdamSchedule, Adjoint, LearnerState, adam, adam_reverse
from td3engine.inner_loop.gradients import GradFn, InnerGradient, InnerStep, Randomness
from td3engine.models.recommender import StepRandomness

Window = Sequence[InnerStep[StepRandomness]]

Reverse = Callable[[Tensor], Tensor]
"""From dL/d(parameters) (P) at a window's end to dL/d(synthetic data). To be called once, and
before the next window."""


class Unroll(Protocol):
    """Takes a learner through a window."""

    def __call__(
        self, synthetic: Tensor, start: LearnerState, steps: Window
    ) -> tuple[LearnerState, Reverse]:
        """The state at the window's end, and the way back from there.

        Args:
            synthetic: what batches are cut from, `SoftSequences.stacked` (mu, positions, .).
            start: the learner at the window's start.
            steps: the window's steps.
        """


def train(
    state: LearnerState,
    synthetic: Tensor,
    steps: Sequence[InnerStep[Randomness]],
    grad_fn: GradFn[Randomness],
    schedule: AdamSchedule,
    gradients: list[InnerGradient] | None = None,
) -> list[LearnerState]:
    """Train through `steps`.

    Args:
        state: the learner before them.
        synthetic: what batches are cut from.
        steps: rows and random draws of each step.
        grad_fn: computes a step's gradient.
        schedule: the learner's Adam.
        gradients: a list that receives each step's gradient for `meta_gradient`, with all that its
            derivatives need. None: nothing of a gradient outlives its step.

    Returns:
        All states, `state` first.
    """
    states = [state]
    for step in steps:
        batch, second = synthetic[step.rows], gradients is not None
        inner = grad_fn(states[-1].parameters, batch, step.randomness, second)
        if gradients is not None:
            gradients.append(inner)
        states.append(adam(states[-1], inner.gradient, schedule))
    return states


def meta_gradient(
    states: Sequence[LearnerState],
    synthetic: Tensor,
    steps: Sequence[InnerStep[Randomness]],
    grad_fn: GradFn[Randomness],
    schedule: AdamSchedule,
    outer_gradient_P: Tensor,
    gradients: list[InnerGradient] | None = None,
) -> Tensor:
    """dL/d(synthetic data) of a real loss L, through all `steps`.

    Args:
        states: what `train` returned for these steps.
        synthetic: what batches were cut from: soft sequences X (mu, zeta, d), probabilities S
            (mu, zeta, n) or queries C (mu, zeta, d).
        steps: the steps, with the same randomness as in `train`.
        grad_fn: computes a step's gradient.
        schedule: the learner's Adam.
        outer_gradient_P: dL/d(parameters) at the last state.
        gradients: the list that `train` filled; it is emptied here. None: each step's gradient is
            computed again.
    """
    zeros = torch.zeros_like(outer_gradient_P)
    adjoint = Adjoint(outer_gradient_P, zeros, zeros)
    to_synthetic = torch.zeros_like(synthetic)
    for before, after, step in zip(
        reversed(states[:-1]), reversed(states[1:]), reversed(steps), strict=True
    ):
        if gradients is None:
            inner = grad_fn(before.parameters, synthetic[step.rows], step.randomness, True)
        else:
            inner = gradients.pop()
        to_gradient, adjoint = adam_reverse(before, after, inner.gradient, schedule, adjoint)
        to_parameters, to_batch = inner.hvp(to_gradient)
        adjoint = Adjoint(adjoint.parameters + to_parameters, adjoint.first, adjoint.second)
        to_synthetic.index_add_(0, step.rows, to_batch)
    return to_synthetic


class SequentialUnroll(Generic[Randomness]):
    """`Unroll` that starts each step's kernels from Python.

    Args:
        grad_fn: computes a step's gradient.
        schedule: the learner's Adam.
        recompute: compute each step's gradient again on the way back instead of keeping it.
    """

    def __init__(
        self, grad_fn: GradFn[Randomness], schedule: AdamSchedule, *, recompute: bool
    ) -> None:
        self.grad_fn, self.schedule, self.recompute = grad_fn, schedule, recompute

    def __call__(
        self, synthetic: Tensor, start: LearnerState, steps: Sequence[InnerStep[Randomness]]
    ) -> tuple[LearnerState, Reverse]:
        """See `Unroll`."""
        gradients: list[InnerGradient] | None = None if self.recompute else []
        states = train(start, synthetic, steps, self.grad_fn, self.schedule, gradients)

        def reverse(outer_gradient_P: Tensor) -> Tensor:
            window = states, synthetic, steps, self.grad_fn, self.schedule
            return meta_gradient(*window, outer_gradient_P, gradients)

        return states[-1], reverse
