"""A learner's Adam on flat vectors, and the reverse of one of its steps."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

BETA1, EPSILON = 0.9, 1e-8


class AdamRates(NamedTuple):
    """The numbers of an Adam step at some age.

    Attributes:
        step: the learning rate over the first moment's bias correction.
        unbias: the second moment's bias correction.
    """

    step: float | Tensor
    unbias: float | Tensor


class AdamSchedule(Protocol):
    """A learner's Adam.

    Attributes:
        weight_decay: L2 penalty.
        beta2: decay of the second moment.
    """

    @property
    def weight_decay(self) -> float: ...

    @property
    def beta2(self) -> float: ...

    def at(self, age: int) -> AdamRates:
        """Of the step that follows a state of this age."""


@dataclass(frozen=True)
class LearnerAdam:
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

    def at(self, age: int) -> AdamRates:
        """See `AdamSchedule`."""
        return AdamRates(self.lr_at(age) / (1 - BETA1 ** (age + 1)), 1 - self.beta2 ** (age + 1))


@dataclass(frozen=True)
class PrecomputedSchedule:
    """An `AdamSchedule` whose numbers are tensors, so that a recording reads them as data.

    Attributes:
        weight_decay: L2 penalty.
        beta2: decay of the second moment.
        rates: `AdamRates` of consecutive steps, (W, 2); ages count from the first of them.
    """

    weight_decay: float
    beta2: float
    rates: Tensor

    @classmethod
    def of(cls, schedule: AdamSchedule, rates: Tensor) -> "PrecomputedSchedule":
        """With another schedule's penalty and beta2."""
        return cls(schedule.weight_decay, schedule.beta2, rates)

    def at(self, age: int) -> AdamRates:
        """See `AdamSchedule`."""
        return AdamRates(*self.rates[age])


@dataclass(frozen=True)
class LearnerState:
    """A learner in training: flat parameters, Adam's two moments (each (P)), number of steps."""

    parameters: Tensor
    first: Tensor
    second: Tensor
    age: int

    @classmethod
    def fresh(cls, parameters_P: Tensor) -> "LearnerState":
        zeros = torch.zeros_like(parameters_P)
        return cls(parameters_P, zeros, zeros, 0)


@torch.no_grad()
def adam(state: LearnerState, gradient_P: Tensor, schedule: AdamSchedule) -> LearnerState:
    """One Adam step with L2 penalty, as `torch.optim.Adam` takes it."""
    rates = schedule.at(state.age)
    g = gradient_P.add(state.parameters, alpha=schedule.weight_decay)
    first = torch.lerp(state.first, g, 1 - BETA1)
    second = (state.second * schedule.beta2).addcmul_(g, g, value=1 - schedule.beta2)
    denominator = (second / rates.unbias).sqrt_().add_(EPSILON)
    parameters = torch.addcdiv(state.parameters, first * rates.step, denominator, value=-1)
    return LearnerState(parameters, first, second, state.age + 1)


@dataclass(frozen=True)
class Adjoint:
    """Gradient of the real loss with respect to a learner's state, each (P)."""

    parameters: Tensor
    first: Tensor
    second: Tensor


@torch.no_grad()
def adam_reverse(
    before: LearnerState,
    after: LearnerState,
    gradient_P: Tensor,
    schedule: AdamSchedule,
    adjoint: Adjoint,
) -> tuple[Tensor, Adjoint]:
    """Carry `adjoint` of the state after a step back to its gradient and to the state before.

    Returns:
        Adjoint of the loss gradient (P), and of the state before. The latter leaves out how the
        gradient depends on the parameters: the caller adds that Hessian product.
    """
    rates = schedule.at(before.age)
    g = gradient_P.add(before.parameters, alpha=schedule.weight_decay)
    root = (after.second / rates.unbias).sqrt_()
    denominator = root + EPSILON
    scaled = adjoint.parameters * rates.step / denominator
    to_first = adjoint.first - scaled
    # d(1/denominator)/d(second). Where the second moment is zero so was every gradient, and the
    # parameter does not move for a small change either way: the one-sided limit is zero.
    slope = (0.5 / (rates.unbias * root * denominator)).masked_fill_(root == 0, 0.0)
    to_second = adjoint.second + scaled * after.first * slope
    to_gradient = to_first * (1 - BETA1) + to_second * g * (2 * (1 - schedule.beta2))
    return to_gradient, Adjoint(
        parameters=adjoint.parameters.add(to_gradient, alpha=schedule.weight_decay),
        first=to_first * BETA1,
        second=to_second * schedule.beta2,
    )
