"""Layers with first and second derivatives written out, for the inner loop.

Autograd differentiates the gradient of one SASRec layer by some nine hundred small kernels; the
formulas here need about a hundred and fifty. A layer makes up to four passes, in this order:

    forward        its value
    backward       the gradient of a loss: to its input, and to its parameters
    jvp            the change of its value along a direction of input and parameters
    backward_jvp   the change of its gradients along that direction: a Hessian product

Each pass keeps what later ones need. Tokens lie in rows, (N, width). `_tangent` marks a change;
None is a change of zero, or one that nobody needs. Two facts save work: the Jacobians of softmax
and of the normalisation are symmetric, so the kernel of a gradient serves a tangent as well.
"""

import math
from typing import Protocol, TypeVar

import torch
from torch import Tensor

_norm_backward = torch.ops.aten.native_layer_norm_backward.default
_softmax_backward = torch.ops.aten._softmax_backward_data.default
NORM_EPSILON = 1e-5
INPUT_ONLY = [True, False, False]

Gradients_co = TypeVar("Gradients_co", covariant=True)


class Differentiable(Protocol[Gradients_co]):
    """A layer or an encoder on its way back. Both passes give gradients of the same shapes."""

    def backward(self, to_y: Tensor, /) -> Gradients_co:
        """Gradients of a loss, from that of the value."""

    def backward_jvp(self, to_y: Tensor, /) -> Gradients_co:
        """Their change along the direction of `jvp`, from that of the value's gradient."""


def gradients(layer: Differentiable[Gradients_co], to_y: Tensor, tangent: bool) -> Gradients_co:
    """The layer's gradients, or their change: a path through layers is the same for both."""
    return layer.backward_jvp(to_y) if tangent else layer.backward(to_y)


class Linear:
    """y = x W^T + b, for W (out, in)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return torch.addmm(self.bias, x, self.weight.t())

    def backward(self, to_y: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.to_y = to_y
        return to_y @ self.weight, [to_y.t() @ self.x, to_y.sum(0)]

    def jvp(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        self.x_tangent, self.weight_tangent = x, weight
        return torch.addmm(bias, self.x, weight.t()).addmm_(x, self.weight.t())

    def backward_jvp(self, to_y: Tensor) -> tuple[Tensor, list[Tensor]]:
        to_weight = (to_y.t() @ self.x).addmm_(self.to_y.t(), self.x_tangent)
        to_x = (to_y @ self.weight).addmm_(self.to_y, self.weight_tangent)
        return to_x, [to_weight, to_y.sum(0)]


class Norm:
    """Layer norm over the last dimension, y = w x' + b with x' = (x - mean) / deviation."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias
        self.shape = list(weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        y, self.mean, self.scale = torch.native_layer_norm(
            x, self.shape, self.weight, self.bias, NORM_EPSILON
        )
        return y

    def backward(self, to_y: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.to_y = to_y
        self.to_x, to_weight, to_bias = _norm_backward(
            to_y, self.x, self.shape, self.mean, self.scale, self.weight, self.bias, [True] * 3
        )
        return self.to_x, [to_weight, to_bias]

    def jvp(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        self.weight_tangent = weight
        self.unit = (self.x - self.mean).mul_(self.scale)
        self.unit_tangent = self._through(x)
        self.shrinking = self._mean_of(self.unit, x)  # relative change of the scale
        return torch.addcmul(bias, self.unit_tangent, self.weight).addcmul_(self.unit, weight)

    def backward_jvp(self, to_y: Tensor) -> tuple[Tensor, list[Tensor]]:
        to_weight = (to_y * self.unit).addcmul_(self.to_y, self.unit_tangent).sum(0)
        to_unit = self.to_y * self.weight
        to_unit_tangent = (to_y * self.weight).addcmul_(self.to_y, self.weight_tangent)
        to_x = self._through(to_unit_tangent)
        to_x.addcmul_(self.shrinking, self.to_x, value=-1)
        to_x.addcmul_(self._mean_of(to_unit, self.unit), self.unit_tangent, value=-1)
        to_x.addcmul_(self._mean_of(to_unit, self.unit_tangent), self.unit, value=-1)
        return to_x, [to_weight, to_y.sum(0)]

    def _through(self, change: Tensor) -> Tensor:
        """The symmetric Jacobian of x' by x, times a change of x or a gradient of x'."""
        arguments = (self.x, self.shape, self.mean, self.scale, None, None, INPUT_ONLY)
        product: Tensor = _norm_backward(change, *arguments)[0]
        return product

    def _mean_of(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).mean(-1, keepdim=True).mul_(self.scale)


class Gelu:
    """y = x Phi(x), elementwise; Phi and phi are the normal distribution's.

    It is made of elementary operations: on the few thousand numbers of an inner step torch's own
    kernel spends a tenth of a millisecond on setting itself up.
    """

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        self.Phi = (x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)
        self.phi = (x * x).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
        self.slope = torch.addcmul(self.Phi, x, self.phi)
        return x * self.Phi

    def backward(self, to_y: Tensor) -> Tensor:
        self.to_y = to_y
        return to_y * self.slope

    def jvp(self, x: Tensor) -> Tensor:
        self.x_tangent = x
        return x * self.slope

    def backward_jvp(self, to_y: Tensor) -> Tensor:
        curvature = (2 - self.x * self.x).mul_(self.phi)
        return (to_y * self.slope).addcmul_(curvature.mul_(self.to_y), self.x_tangent)


class PerHead:
    """y_h = x_h M_h, a matrix a head: (H, N, in) by (H, in, out)."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return x @ self.matrix

    def backward(self, to_y: Tensor) -> tuple[Tensor, Tensor]:
        self.to_y = to_y
        return to_y @ self.matrix.mT, self.x.mT @ to_y

    def jvp(self, x: Tensor, matrix: Tensor) -> Tensor:
        self.x_tangent, self.matrix_tangent = x, matrix
        return (x @ self.matrix).baddbmm_(self.x, matrix)

    def backward_jvp(self, to_y: Tensor) -> tuple[Tensor, Tensor]:
        to_x = (to_y @ self.matrix.mT).baddbmm_(self.to_y, self.matrix_tangent.mT)
        return to_x, (self.x.mT @ to_y).baddbmm_(self.x_tangent.mT, self.to_y)


class Attention:
    """softmax(scale q k^T + hidden) with dropout, times v: (B, A, .) queries on (B, L, .) events.

    Args:
        hidden: added to scores; minus infinity where a query must not look, broadcast to (B, A, L).
        mask: dropout of the weights, (B, A, L), or None.
        scale: of the scores.
    """

    def __init__(self, hidden: Tensor, mask: Tensor | None, scale: float) -> None:
        self.hidden, self.mask, self.scale = hidden, mask, scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.q, self.k, self.v = q, k, v
        scores = torch.baddbmm(self.hidden, q, k.transpose(1, 2), alpha=self.scale)
        self.P = scores.softmax(-1)
        self.weights = self._dropped(self.P)
        return self.weights @ v

    def backward(self, to_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.to_y = to_y
        self.to_P = self._dropped(to_y @ self.v.transpose(1, 2))
        self.to_scores = self._softmax(self.to_P)
        to_q, to_k = self.to_scores @ self.k, self.to_scores.transpose(1, 2) @ self.q
        return to_q, to_k, self.weights.transpose(1, 2) @ to_y

    def jvp(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.q_tangent, self.k_tangent, self.v_tangent = q, k, v
        scores = torch.bmm(q, self.k.transpose(1, 2)).baddbmm_(self.q, k.transpose(1, 2))
        self.P_tangent = self._softmax(scores)
        self.weights_tangent = self._dropped(self.P_tangent)
        return (self.weights_tangent @ self.v).baddbmm_(self.weights, v)

    def backward_jvp(self, to_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        to_v = (self.weights_tangent.transpose(1, 2) @ self.to_y).baddbmm_(
            self.weights.transpose(1, 2), to_y
        )
        to_weights = (to_y @ self.v.transpose(1, 2)).baddbmm_(
            self.to_y, self.v_tangent.transpose(1, 2)
        )
        to_scores = self._softmax(self._dropped(to_weights))
        mean = (self.P * self.to_P).sum(-1, keepdim=True)
        via_P = (self.to_P - mean).mul_(self.P_tangent).mul_(self.scale)
        to_scores.add_(via_P).addcmul_(self.P, via_P.sum(-1, keepdim=True), value=-1)
        to_q = (to_scores @ self.k).baddbmm_(self.to_scores, self.k_tangent)
        to_k = (to_scores.transpose(1, 2) @ self.q).baddbmm_(
            self.to_scores.transpose(1, 2), self.q_tangent
        )
        return to_q, to_k, to_v

    def _dropped(self, weights: Tensor) -> Tensor:
        return weights if self.mask is None else weights * self.mask

    def _softmax(self, change: Tensor) -> Tensor:
        """The symmetric Jacobian of P by unscaled scores, times a change or a gradient."""
        product: Tensor = _softmax_backward(change, self.P, -1, self.P.dtype)
        return product.mul_(self.scale)
