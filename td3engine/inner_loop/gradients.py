"""One inner step's gradient and its Hessian product: by autograd, for any loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

Randomness = TypeVar("Randomness")


@dataclass(frozen=True)
class InnerStep(Generic[Randomness]):
    """What one step trains on: rows (B) of the synthetic sequences, and its random draws; of K
    learners side by side rows (K, B), and the draws have one more dimension in front as well."""

    rows: Tensor
    randomness: Randomness


LearnerLoss = Callable[[Tensor, Tensor, Randomness], Tensor]
"""(parameters (P), a batch of the leaf (B, zeta, .), noise) -> scalar loss."""


class InnerGradient(Protocol):
    """One step's loss gradient, and what its own derivatives need.

    Attributes:
        gradient: of the loss with respect to the parameters, (P), detached.
    """

    gradient: Tensor

    def hvp(self, direction_P: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative of (gradient . direction): to the parameters (P), and to the batch. Once."""


GradFn = Callable[[Tensor, Tensor, Randomness, bool], InnerGradient]
"""(parameters (P), a batch of the leaf, noise, whether `hvp` will be asked) -> the gradient."""


class AutogradGradient(Generic[Randomness]):
    """`InnerGradient` of any twice differentiable loss, by autograd's tape.

    Args:
        parameters_P: flat parameters.
        batch: what the loss reads besides them.
        noise: the step's random draws.
        loss: the learner's loss.
        second: whether `hvp` will be asked for.
    """

    def __init__(
        self,
        parameters_P: Tensor,
        batch: Tensor,
        randomness: Randomness,
        second: bool,
        *,
        loss: LearnerLoss[Randomness],
    ) -> None:
        self._parameters = parameters_P.detach().requires_grad_()
        self._batch = batch.detach().requires_grad_(second)
        value = loss(self._parameters, self._batch, randomness)
        (self._graph,) = torch.autograd.grad(value, self._parameters, create_graph=second)
        self.gradient = self._graph.detach()

    def hvp(self, direction_P: Tensor) -> tuple[Tensor, Tensor]:
        to_parameters, to_batch = torch.autograd.grad(
            self._graph, (self._parameters, self._batch), direction_P
        )
        return to_parameters, to_batch
