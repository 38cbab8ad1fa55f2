"""Cross-entropy over a sample of the items.

The softmax over all n items is estimated from items drawn with replacement. For a target t, its
scores s, and M negatives i with probabilities q_i, the sum in the softmax becomes

    Z = exp(s_t) + sum over negatives i other than t of exp(s_i) / (M q_i)

which is unbiased for any q (the correction of Bengio and Senecal, 2008). A draw that hits the
target is left out. All targets of a step share its negatives.
"""

from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from td3engine.data.split import Split, training_counts
from td3engine.losses.softmax import rows_at_once

SMALLEST_TOTAL = 1e-30
POPULARITY_POWER = 0.75  # negatives are drawn by an item's count to this power


class NegativeSampler:
    """Items drawn with replacement, by a power of their training interactions.

    Args:
        split: the log.
        count: M, how many are drawn at once.
    """

    def __init__(self, split: Split, count: int) -> None:
        weight_N = (training_counts(split) + 1.0) ** POPULARITY_POWER
        self.count = count
        self.cumulative_N = np.cumsum(weight_N) / weight_N.sum()
        # log of 1 / (M q), what a draw of this item counts.
        self.log_weight_N = np.log(weight_N.sum() / (count * weight_N)).astype(np.float32)

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """M items, int64 (M), and log(1 / (M q)) of each, (M)."""
        places = np.searchsorted(self.cumulative_N, rng.random(self.count), side="right")
        items = np.minimum(places, len(self.cumulative_N) - 1)
        return torch.from_numpy(items), torch.from_numpy(self.log_weight_N[items])


def sampled_cross_entropy(
    hidden_KF: Tensor,
    targets_K: Tensor,
    table_RF: Tensor,
    negatives_M: Tensor,
    log_weight_M: Tensor,
) -> Tensor:
    """Estimated cross-entropy of each target, (K).

    Args:
        hidden_KF: hidden states, (K, f).
        targets_K: items, as rows of the table, int64 (K).
        table_RF: scoring table of the items at hand, (R, f).
        negatives_M: drawn items, as rows of the table, int64 (M).
        log_weight_M: log of what each draw counts, (M); zeros where every item is there once, and
            then this is the softmax over all of them.
    """
    target_K = (hidden_KF * table_RF[targets_K]).sum(-1)
    hits = _hits(targets_K, negatives_M)
    others_K = _OthersSum.apply(hidden_KF, table_RF[negatives_M], log_weight_M, *hits)  # type: ignore[no-untyped-call]
    return torch.logaddexp(target_K, others_K) - target_K


def _hits(targets_K: Tensor, negatives_M: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of a target and a draw that are the same item: positions in either."""
    ordered_M, order_M = negatives_M.sort()
    first_K = torch.searchsorted(ordered_M, targets_K)
    count_K = torch.searchsorted(ordered_M, targets_K, right=True) - first_K
    rows = torch.arange(len(targets_K), device=targets_K.device).repeat_interleave(count_K)
    nth = torch.arange(len(rows), device=rows.device) - (count_K.cumsum(0) - count_K)[rows]
    return rows, order_M[first_K[rows] + nth]


class _OthersSum(torch.autograd.Function):
    """log of the weighted sum over negatives, per row, in chunks of rows.

    With P = softmax of the scores and upstream u, the gradient of the hidden states is u P T and
    that of the negatives' rows T is (u P)^T h. P T is made with the scores; P itself is kept where
    T has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KF: Tensor,
        rows_MF: Tensor,
        log_weight_M: Tensor,
        hit_rows: Tensor,
        hit_draws: Tensor,
    ) -> Tensor:
        at_once = rows_at_once(hidden_KF, rows_MF)
        chunks = hidden_KF.split(at_once)
        starts = torch.arange(len(chunks) + 1, device=hit_rows.device) * at_once
        hits = torch.searchsorted(hit_rows, starts).tolist()
        values, expected, kept = [], [], []
        for nth, h in enumerate(chunks):
            own = slice(hits[nth], hits[nth + 1])
            P = torch.addmm(log_weight_M, h, rows_MF.T)
            P[hit_rows[own] - nth * at_once, hit_draws[own]] = -torch.inf
            # A row all of whose draws hit its target has no other items: its sum is zero.
            peak = P.amax(-1, keepdim=True).clamp(min=torch.finfo(P.dtype).min)
            total = P.sub_(peak).exp_().sum(-1, keepdim=True)
            values.append((total.log() + peak).squeeze(-1))
            scale = total.clamp(min=SMALLEST_TOTAL).reciprocal_()
            expected.append((P @ rows_MF).mul_(scale))
            if ctx.needs_input_grad[1]:
                kept.append(P.mul_(scale))
        ctx.save_for_backward(hidden_KF, torch.cat(expected), *kept)
        ctx.at_once = at_once
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_KF, expected_KF, *kept = ctx.saved_tensors
        u = upstream[0][:, None]
        if not kept:
            return u * expected_KF, None, None, None, None
        weighted = (u * hidden_KF).split(ctx.at_once)
        to_rows = [P.T @ part for P, part in zip(kept, weighted, strict=True)]
        return u * expected_KF, reduce(Tensor.add_, to_rows), None, None, None
