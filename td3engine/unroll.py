"""RaT-BPTT: differentiate a real loss through a window of a learner's training (section 5).

The window runs forward and keeps each state. The reverse pass goes through the steps from last to
first: it takes a step's gradient with what its derivatives need (kept from the forward pass; or
taken again, and then memory holds one step whatever the window) and carries the adjoint of
(parameters, moments) back through Adam by hand, a dozen kernels on flat vectors instead of a tape.
Derived for Adam from the chain rule below; tests compare it with a plain autograd unroll.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

BETA1, EPSILON = 0.9, 1e-8

Noise = TypeVar("Noise")


class Rates(NamedTuple):
    """What an Adam step multiplies with at some age: numbers; of K learners (K, 1) each.

    Attributes:
        step: the learning rate over the first moment's bias correction.
        unbias: the second moment's bias correction.
    """

    step: float | Tensor
    unbias: float | Tensor


class Rule(Protocol):
    """A learner's Adam.

    Attributes:
        weight_decay: L2 penalty.
        beta2: decay of the second moment.
    """

    @property
    def weight_decay(self) -> float: ...

    @property
    def beta2(self) -> float: ...

    def at(self, age: int) -> Rates:
        """Of the step that follows a state of this age."""


@dataclass(frozen=True)
class AdamRule:
    """A learner's Adam: rate, L2 penalty, schedule, beta2 (the rest is at Adam's defaults).

    Attributes:
        lr: learning rate of the first step.
        weight_decay: L2 penalty.
        decay_steps: the rate falls linearly and would reach zero after so many steps; None keeps
            it constant.
        beta2: decay of the second moment.
    """

    lr: float
    weight_decay: float
    decay_steps: int | None = None
    beta2: float = 0.999

    def lr_at(self, age: int) -> float:
        """Learning rate of the step that follows `age` steps."""
        if self.decay_steps is None:
            return self.lr
        return self.lr * max(0.0, 1 - age / self.decay_steps)

    def at(self, age: int) -> Rates:
        """See `Rule`."""
        return Rates(self.lr_at(age) / (1 - BETA1 ** (age + 1)), 1 - self.beta2 ** (age + 1))


@dataclass(frozen=True)
class GivenRates:
    """A `Rule` whose numbers have been computed: the learners' ages are not in its own count.

    Attributes:
        weight_decay: L2 penalty.
        beta2: decay of the second moment.
        rates: `Rates` of the first steps, (W, 2); of K learners side by side, each of its own age,
            (W, 2, K, 1).
    """

    weight_decay: float
    beta2: float
    rates: Tensor

    def at(self, age: int) -> Rates:
        """See `Rule`."""
        return Rates(*self.rates[age])


@dataclass(frozen=True)
class LearnerState:
    """A learner in training: flat parameters, Adam's two moments (all (P)), steps taken.

    Or K learners side by side: tensors (K, P), and steps taken together.
    """

    parameters: Tensor
    first: Tensor
    second: Tensor
    age: int

    @classmethod
    def fresh(cls, parameters_P: Tensor) -> "LearnerState":
        zeros = torch.zeros_like(parameters_P)
        return cls(parameters_P, zeros, zeros, 0)


@dataclass(frozen=True)
class InnerStep(Generic[Noise]):
    """What one step trains on: rows (B) of the synthetic sequences, and its random draws; of K
    learners side by side rows (K, B), and the draws have one more dimension in front as well."""

    rows: Tensor
    noise: Noise


LearnerLoss = Callable[[Tensor, Tensor, Noise], Tensor]
"""(parameters (P), a batch of the leaf (B, zeta, .), noise) -> scalar loss."""


class Taken(Protocol):
    """One step's loss gradient, and what its own derivatives need.

    Attributes:
        gradient: of the loss with respect to the parameters, (P), detached.
    """

    gradient: Tensor

    def along(self, direction_P: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative of (gradient . direction): to the parameters (P), and to the batch. Once."""


Take = Callable[[Tensor, Tensor, Noise, bool], Taken]
"""(parameters (P), a batch of the leaf, noise, whether `along` will be asked) -> the gradient."""


@torch.no_grad()
def adam(state: LearnerState, gradient_P: Tensor, rule: Rule) -> LearnerState:
    """One Adam step with L2 penalty, as `torch.optim.Adam` does it."""
    rates = rule.at(state.age)
    g = gradient_P.add(state.parameters, alpha=rule.weight_decay)
    first = torch.lerp(state.first, g, 1 - BETA1)
    second = (state.second * rule.beta2).addcmul_(g, g, value=1 - rule.beta2)
    denominator = (second / rates.unbias).sqrt_().add_(EPSILON)
    parameters = torch.addcdiv(state.parameters, first * rates.step, denominator, value=-1)
    return LearnerState(parameters, first, second, state.age + 1)


@dataclass(frozen=True)
class _Adjoint:
    """Gradient of the real loss with respect to a learner's state, each (P)."""

    parameters: Tensor
    first: Tensor
    second: Tensor


@torch.no_grad()
def _adam_reverse(
    before: LearnerState, after: LearnerState, gradient_P: Tensor, rule: Rule, adjoint: _Adjoint
) -> tuple[Tensor, _Adjoint]:
    """Carry `adjoint` of the state after a step back to its gradient and to the state before.

    Returns:
        Adjoint of the loss gradient (P), and of the state before with the gradient's own
        dependence on the parameters left out (the caller adds that Hessian product).
    """
    rates = rule.at(before.age)
    g = gradient_P.add(before.parameters, alpha=rule.weight_decay)
    root = (after.second / rates.unbias).sqrt_()
    denominator = root + EPSILON
    scaled = adjoint.parameters * rates.step / denominator
    to_first = adjoint.first - scaled
    # d(1/denominator)/d(second). Where the second moment is zero so was every gradient, and the
    # parameter does not move for a small change either way: the one-sided limit taken is zero.
    slope = (0.5 / (rates.unbias * root * denominator)).masked_fill_(root == 0, 0.0)
    to_second = adjoint.second + scaled * after.first * slope
    to_gradient = to_first * (1 - BETA1) + to_second * g * (2 * (1 - rule.beta2))
    return to_gradient, _Adjoint(
        parameters=adjoint.parameters.add(to_gradient, alpha=rule.weight_decay),
        first=to_first * BETA1,
        second=to_second * rule.beta2,
    )


class ByAutograd(Generic[Noise]):
    """`Taken` of any twice differentiable loss, by autograd's tape.

    Args:
        parameters_P: flat parameters.
        batch: what the loss reads besides them.
        noise: the step's random draws.
        loss: the learner's loss.
        second: whether `along` will be asked for.
    """

    def __init__(
        self,
        parameters_P: Tensor,
        batch: Tensor,
        noise: Noise,
        second: bool,
        *,
        loss: LearnerLoss[Noise],
    ) -> None:
        self._parameters = parameters_P.detach().requires_grad_()
        self._batch = batch.detach().requires_grad_(second)
        value = loss(self._parameters, self._batch, noise)
        (self._graph,) = torch.autograd.grad(value, self._parameters, create_graph=second)
        self.gradient = self._graph.detach()

    def along(self, direction_P: Tensor) -> tuple[Tensor, Tensor]:
        to_parameters, to_batch = torch.autograd.grad(
            self._graph, (self._parameters, self._batch), direction_P
        )
        return to_parameters, to_batch


def train(
    state: LearnerState,
    leaf: Tensor,
    steps: Sequence[InnerStep[Noise]],
    take: Take[Noise],
    rule: Rule,
    kept: list[Taken] | None = None,
) -> list[LearnerState]:
    """Train through `steps`; all states, `state` first.

    Given a list for `kept`, each step's gradient is kept there for `meta_gradient`, with all that
    its own derivatives need; without one, nothing of it outlives its step.
    """
    states = [state]
    for step in steps:
        taken = take(states[-1].parameters, leaf[step.rows], step.noise, kept is not None)
        if kept is not None:
            kept.append(taken)
        states.append(adam(states[-1], taken.gradient, rule))
    return states


def meta_gradient(
    states: Sequence[LearnerState],
    leaf: Tensor,
    steps: Sequence[InnerStep[Noise]],
    take: Take[Noise],
    rule: Rule,
    outer_gradient_P: Tensor,
    kept: list[Taken] | None = None,
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
    to_leaf = torch.zeros_like(leaf)
    for before, after, step in zip(
        reversed(states[:-1]), reversed(states[1:]), reversed(steps), strict=True
    ):
        if kept is None:
            taken = take(before.parameters, leaf[step.rows], step.noise, True)
        else:
            taken = kept.pop()
        to_gradient, adjoint = _adam_reverse(before, after, taken.gradient, rule, adjoint)
        to_parameters, to_batch = taken.along(to_gradient)
        adjoint = _Adjoint(adjoint.parameters + to_parameters, adjoint.first, adjoint.second)
        to_leaf.index_add_(0, step.rows.flatten(), to_batch.flatten(0, step.rows.dim() - 1))
    return to_leaf
