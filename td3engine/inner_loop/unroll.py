"""RaT-BPTT: differentiate a real loss through a window of a learner's training (section 5).

The window runs forward and keeps each state. The reverse pass goes through the steps from last to
first: it takes a step's gradient with what its derivatives need (kept from the forward pass; or
taken again, and then memory holds one step whatever the window) and carries the adjoint of
(parameters, moments) back through Adam by hand, a dozen kernels on flat vectors instead of a tape.
Derived for Adam from the chain rule below; tests compare it with a plain autograd unroll.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from td3engine.inner_loop.adam import AdamSchedule, LearnerState, _adam_reverse, _Adjoint, adam
from td3engine.inner_loop.gradients import GradFn, InnerGradient, InnerStep, Randomness


def train(
    state: LearnerState,
    synthetic: Tensor,
    steps: Sequence[InnerStep[Randomness]],
    take: GradFn[Randomness],
    schedule: AdamSchedule,
    kept: list[InnerGradient] | None = None,
) -> list[LearnerState]:
    """Train through `steps`; all states, `state` first.

    Given a list for `kept`, each step's gradient is kept there for `meta_gradient`, with all that
    its own derivatives need; without one, nothing of it outlives its step.
    """
    states = [state]
    for step in steps:
        taken = take(states[-1].parameters, synthetic[step.rows], step.randomness, kept is not None)
        if kept is not None:
            kept.append(taken)
        states.append(adam(states[-1], taken.gradient, schedule))
    return states


def meta_gradient(
    states: Sequence[LearnerState],
    synthetic: Tensor,
    steps: Sequence[InnerStep[Randomness]],
    take: GradFn[Randomness],
    schedule: AdamSchedule,
    outer_gradient_P: Tensor,
    kept: list[InnerGradient] | None = None,
) -> Tensor:
    """dL/d(leaf) of a real loss L, through all `steps`; of K learners the sum over them.

    Args:
        states: what `train` returned for these steps.
        leaf: what batches were cut from: soft sequences X (mu, zeta, d), or probabilities S
            (mu, zeta, n).
        steps: the steps, with the same noise as in `train`.
        take: how a step's gradient is taken.
        rule: the learner's Adam.
        outer_gradient_P: dL/d(parameters) at the last state; each learner's own, (K, P).
        kept: what `train` kept, and is used up here; None takes each step's gradient again.
    """
    zeros = torch.zeros_like(outer_gradient_P)
    adjoint = _Adjoint(outer_gradient_P, zeros, zeros)
    to_synthetic = torch.zeros_like(synthetic)
    for before, after, step in zip(
        reversed(states[:-1]), reversed(states[1:]), reversed(steps), strict=True
    ):
        if kept is None:
            taken = take(before.parameters, synthetic[step.rows], step.randomness, True)
        else:
            taken = kept.pop()
        to_gradient, adjoint = _adam_reverse(before, after, taken.gradient, schedule, adjoint)
        to_parameters, to_batch = taken.hvp(to_gradient)
        adjoint = _Adjoint(adjoint.parameters + to_parameters, adjoint.first, adjoint.second)
        to_synthetic.index_add_(0, step.rows.flatten(), to_batch.flatten(0, step.rows.dim() - 1))
    return to_synthetic
