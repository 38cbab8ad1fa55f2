"""The log-sum-exp over the catalogue, the one place where n items enter a loss (I-2).

Autograd's own double backward of `logsumexp(h E^T)` keeps and re-reads half a dozen (K, n) arrays.
With P = softmax(h E^T) everything needed has a closed form over one of them. For upstream u:

    gradient of h:  u P E                 gradient of E:  (u P)^T h
    and along directions v of the first and w of the second, with Z = v E^T + h w^T and
    Q = u P * (Z - rowsum(P * Z)):
    of u:  rowsum(P * Z)      of h:  Q E + (u P) w      of E:  Q^T h + (u P)^T v

Rows are taken in chunks, so that no more than `SCORES_AT_ONCE` scores exist at a time. P is kept
for the way back while it is small, and computed again otherwise.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SCORES_AT_ONCE = 8_000_000  # 32 MiB in float32
KEPT_SCORES = 8_000_000  # largest P that is kept between the passes


def log_sum_exp(hidden_KD: Tensor, table_ND: Tensor) -> Tensor:
    """logsumexp over items of h E^T, per row (K); twice differentiable in both arguments.

    Twice only: the second derivative itself has no graph.
    """
    value: Tensor = _LogSumExp.apply(hidden_KD, table_ND)  # type: ignore[no-untyped-call]
    return value


def _chunks(rows: int, items: int) -> Iterator[slice]:
    at_once = max(1, SCORES_AT_ONCE // items)
    for first in range(0, rows, at_once):
        yield slice(first, first + at_once)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_KD: Tensor, table_ND: Tensor) -> Tensor:
        value_K = hidden_KD.new_empty(len(hidden_KD))
        keep = any(ctx.needs_input_grad) and len(hidden_KD) * len(table_ND) <= KEPT_SCORES
        kept_KN: Tensor | None = None
        for rows in _chunks(*_size(hidden_KD, table_ND)):
            scores = hidden_KD[rows] @ table_ND.T
            peak = scores.amax(-1, keepdim=True)
            scores.sub_(peak).exp_()
            total = scores.sum(-1, keepdim=True)
            value_K[rows] = (total.log() + peak).squeeze(-1)
            if keep:  # then there is one chunk only
                kept_KN = scores.div_(total)
        ctx.save_for_backward(hidden_KD, table_ND, value_K, kept_KN)
        return value_K

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden_KD, table_ND, value_K, kept_KN = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad)
        arguments = (upstream[0], hidden_KD, table_ND, value_K.detach(), kept_KN, wanted)
        to_hidden, to_table = _Gradient.apply(*arguments)  # type: ignore[no-untyped-call]
        return (to_hidden if wanted[0] else None), (to_table if wanted[1] else None)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        upstream_K: Tensor,
        hidden_KD: Tensor,
        table_ND: Tensor,
        value_K: Tensor,
        kept_KN: Tensor | None,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        to_hidden = torch.empty_like(hidden_KD)
        to_table = torch.zeros_like(table_ND) if wanted[1] else table_ND.new_empty(0)
        for rows, P in _probabilities(hidden_KD, table_ND, value_K, kept_KN):
            u = upstream_K[rows, None]
            torch.mul(P @ table_ND, u, out=to_hidden[rows])
            if wanted[1]:
                to_table.addmm_(P.T, hidden_KD[rows] * u)
        ctx.save_for_backward(upstream_K, hidden_KD, table_ND, value_K, kept_KN)
        ctx.set_materialize_grads(False)
        return to_hidden, to_table

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        upstream_K, hidden_KD, table_ND, value_K, kept_KN = ctx.saved_tensors
        v_KD, w_ND = directions
        if v_KD is None and w_ND is None:
            return None, None, None, None, None, None
        to_upstream = torch.empty_like(upstream_K)
        to_hidden = torch.empty_like(hidden_KD)
        to_table = torch.zeros_like(table_ND) if ctx.needs_input_grad[2] else None
        for rows, P in _probabilities(hidden_KD, table_ND, value_K, kept_KN):
            u = upstream_K[rows, None]
            Z = _along(v_KD, w_ND, hidden_KD, table_ND, rows)
            mean = (P * Z).sum(-1, keepdim=True)
            to_upstream[rows] = mean.squeeze(-1)
            Q = Z.sub_(mean).mul_(P).mul_(u)
            torch.mm(Q, table_ND, out=to_hidden[rows])
            if w_ND is not None:
                to_hidden[rows] += u * (P @ w_ND)
            if to_table is not None:
                to_table.addmm_(Q.T, hidden_KD[rows])
                if v_KD is not None:
                    to_table.addmm_(P.T, v_KD[rows] * u)
        return to_upstream, to_hidden, to_table, None, None, None


def _along(
    v_KD: Tensor | None, w_ND: Tensor | None, hidden_KD: Tensor, table_ND: Tensor, rows: slice
) -> Tensor:
    """Change of these rows' scores along the directions, in memory of its own."""
    if v_KD is None:
        assert w_ND is not None  # one of them is given
        return hidden_KD[rows] @ w_ND.T
    Z = v_KD[rows] @ table_ND.T
    return Z if w_ND is None else Z.addmm_(hidden_KD[rows], w_ND.T)


def _probabilities(
    hidden_KD: Tensor, table_ND: Tensor, value_K: Tensor, kept_KN: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their P, kept or computed again from h, E and the log-sum-exp."""
    for rows in _chunks(*_size(hidden_KD, table_ND)):
        if kept_KN is not None:
            yield rows, kept_KN[rows]
        else:
            yield rows, (hidden_KD[rows] @ table_ND.T).sub_(value_K[rows, None]).exp_()


def _size(hidden_KD: Tensor, table_ND: Tensor) -> tuple[int, int]:
    return len(hidden_KD), len(table_ND)
