"""The log-sum-exp over the catalogue, the one place where n items enter the inner loop (I-2).

Autograd's own double backward of `logsumexp(h E^T)` keeps and re-reads half a dozen (K, n) arrays.
With M = softmax(h E^T) E everything needed has a closed form over one of them, P = softmax(h E^T):

    lse'(h)[u]  = u M                              first derivative
    lse''(h)[u] = (P * (u E^T)) E - (u.M) M        second derivative, applied to a direction u

The table must be frozen: these functions give no gradient with respect to E.
"""

from typing import Any

import torch
from torch import Tensor


def log_sum_exp(hidden_KD: Tensor, table_ND: Tensor) -> Tensor:
    """logsumexp over items of h E^T, per row (K); twice differentiable with respect to h only.

    Raises:
        ValueError: the table requires a gradient, which this function would not give.
    """
    if table_ND.requires_grad:
        raise ValueError("log_sum_exp needs a frozen item table")
    value: Tensor = _LogSumExp.apply(hidden_KD, table_ND)  # type: ignore[no-untyped-call]
    return value


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_KD: Tensor, table_ND: Tensor) -> Tensor:
        scores_KN = hidden_KD @ table_ND.T
        peak_K = scores_KN.amax(-1)
        probability_KN = scores_KN.softmax(-1)
        ctx.save_for_backward(hidden_KD, table_ND, probability_KN)
        # The largest probability is exp(0) / sum, so its logarithm is minus the log of the sum.
        return peak_K - probability_KN.amax(-1).log_()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        hidden_KD, table_ND, probability_KN = ctx.saved_tensors
        (upstream_K,) = upstream
        arguments = (upstream_K, hidden_KD, table_ND, probability_KN)
        gradient: Tensor = _Gradient.apply(*arguments)  # type: ignore[no-untyped-call]
        return gradient, None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, upstream_K: Tensor, _hidden_KD: Tensor, table_ND: Tensor, probability_KN: Tensor
    ) -> Tensor:
        # h is taken although unused, so that autograd asks for the derivative along it.
        mean_KD = probability_KN @ table_ND
        ctx.save_for_backward(upstream_K, mean_KD, table_ND, probability_KN)
        return upstream_K[:, None] * mean_KD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *direction: Tensor) -> tuple[Tensor, Tensor, None, None]:
        upstream_K, mean_KD, table_ND, probability_KN = ctx.saved_tensors
        (v_KD,) = direction
        along_K = (v_KD * mean_KD).sum(-1)
        curvature_KD = ((v_KD @ table_ND.T).mul_(probability_KN)) @ table_ND
        to_hidden = upstream_K[:, None] * (curvature_KD - along_K[:, None] * mean_KD)
        return along_K, to_hidden, None, None
