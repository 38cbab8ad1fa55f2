"""One inner step's gradient and its Hessian product: by autograd, for any loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

Noise = TypeVar("Noise")


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
