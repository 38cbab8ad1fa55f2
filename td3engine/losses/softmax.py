"""The softmax over items: log-sum-exp of h E^T, the one place where n items enter a loss (I-2).

Autograd's own double backward of `logsumexp(h E^T)` keeps and re-reads half a dozen (K, n) arrays.
With P = softmax(h E^T) all derivatives have a closed form over one of them. For upstream u:

    gradient of h:  u P E                 gradient of E:  P^T (u h)

and along directions v of h and w of E, with Z = P * (v E^T + h w^T) and m = rowsum(Z):

    of the value:  m      of h:  u (Z E - m P E + P w)      of E:  Z^T (u h) + P^T (u (v - m h))

Besides the products a step scales (K, n) numbers by exp, sums them, and multiplies two such arrays.
Rows are computed in chunks, so that no more than `SCORES_AT_ONCE` scores exist at a time. While P
is small it is kept between the passes, as exp(scores - peak) and one factor a row; a larger one is
computed again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SCORES_AT_ONCE = 8_000_000  # 32 MiB in float32
KEPT_SCORES = 5_000_000  # largest P that is kept between the passes
SCORES_NEAR_CACHE = 2**21  # where P is computed again, so that chunks may be of any size
SCORES_IN_CACHE = 2**18  # 1 MiB in float32: about what a core's own cache holds
FEWEST_ROWS = 64  # of a chunk that is cut for the cache: with less the products get slow
ROWS_OF_A_BLOCK = 512  # where the items are cut too
LARGEST_SCORE = 60.0  # float32 holds its exp, summed over any number of items; e^88 is too large


class SoftmaxOverItems:
    """log-sum-exp of h E^T per row of h (K, d), and its derivatives in closed form.

    Args:
        hidden_KD: hidden states h.
        table_ND: the scoring table E.
        derivatives: whether `gradient` or `hvp` will follow.
        log_weight_N: added to each item's score, where an item stands for several.
        small: whether exp bears every score (`scores_are_small`), so that no row's largest has to
            be found and taken off.
    """

    def __init__(
        self,
        hidden_KD: Tensor,
        table_ND: Tensor,
        derivatives: bool,
        log_weight_N: Tensor | None = None,
        *,
        small: bool = False,
    ) -> None:
        self.hidden, self.table, self.log_weight = hidden_KD, table_ND, log_weight_N
        self.exp_scores: tuple[Tensor, Tensor] | None = None
        values, expected = [], []
        peak = hidden_KD.new_zeros(())
        for rows in self._chunks():
            scores = self._scores(rows)
            if not small:
                peak = scores.amax(-1, keepdim=True)
                scores.sub_(peak)
            total = scores.exp_().sum(-1, keepdim=True)
            values.append((total.log() + peak).squeeze(-1))
            if not derivatives:
                continue
            expected.append((scores @ table_ND).div_(total))
            if self._fits():
                self.exp_scores = scores, total.reciprocal()
        self.value = _joined(values)
        self.expected = _joined(expected) if derivatives else None  # P E

    def gradient(self, upstream: Tensor | float, to_table: bool) -> tuple[Tensor, Tensor | None]:
        """Gradients to h and E for `upstream` (K, 1), or one number for all rows."""
        assert self.expected is not None  # `derivatives` was set
        to_E = torch.zeros_like(self.table) if to_table else None
        if to_E is not None:
            for rows, P, scale in self._probabilities():
                to_E.addmm_(P.T, self.hidden[rows] * (_of_rows(upstream, rows) * scale))
        return self.expected * upstream, to_E

    def hvp(
        self, upstream: Tensor | float, v_KD: Tensor | None, w_ND: Tensor | None, to_table: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Change of both gradients along v of h and w of E (None: none); before them the change of
        the value, (K). The Hessian is symmetric: also the derivative of (gradients . (v, w)).
        """
        assert self.expected is not None  # `derivatives` was set
        to_upstream, to_hidden = [], []
        to_E = torch.zeros_like(self.table) if to_table else None
        for rows, P, scale in self._probabilities():
            h, u = self.hidden[rows], _of_rows(upstream, rows)
            Z = _score_tangents(v_KD, w_ND, self.hidden, self.table, rows).mul_(P)
            if v_KD is not None and w_ND is None:
                mean = (self.expected[rows] * v_KD[rows]).sum(-1, keepdim=True)
            else:
                mean = Z.sum(-1, keepdim=True).mul_(scale)
            to_upstream.append(mean.squeeze(-1))
            mixed = Z @ self.table
            if w_ND is not None:
                mixed.addmm_(P, w_ND)
            to_hidden.append(mixed.mul_(scale).sub_(self.expected[rows] * mean).mul_(u))
            if to_E is not None:
                to_E.addmm_(Z.T, h * (u * scale))
                less_mean = h * -mean if v_KD is None else v_KD[rows] - h * mean
                to_E.addmm_(P.T, less_mean.mul_(u * scale))
        return _joined(to_upstream), _joined(to_hidden), to_E

    def _probabilities(self) -> Iterator[tuple[slice, Tensor, Tensor | float]]:
        """Rows, their P up to a factor a row, and that factor (K, 1): from the forward pass, or
        computed again from h, E and the log-sum-exp."""
        if self.exp_scores is not None:
            yield slice(None), *self.exp_scores
            return
        for rows in self._chunks():
            yield rows, self._scores(rows).sub_(self.value[rows, None]).exp_(), 1.0

    def _scores(self, rows: slice) -> Tensor:
        scores = self.hidden[rows] @ self.table.T
        return scores if self.log_weight is None else scores.add_(self.log_weight)

    def _fits(self) -> bool:
        """Whether P is kept between the passes; then there is one chunk only."""
        return len(self.hidden) * len(self.table) <= min(KEPT_SCORES, SCORES_AT_ONCE)

    def _chunks(self) -> Iterator[slice]:
        scores = SCORES_AT_ONCE
        if self.hidden.device.type == "cpu" and not self._fits():
            scores = min(scores, SCORES_NEAR_CACHE)
        at_once = max(1, scores // len(self.table))
        for first in range(0, max(1, len(self.hidden)), at_once):  # of no rows one, empty
            yield slice(first, first + at_once)


def log_sum_exp(hidden_KD: Tensor, table_ND: Tensor, log_weight_N: Tensor | None = None) -> Tensor:
    """logsumexp over items of h E^T (+ log weights), per row (K); twice differentiable in h and E.

    Twice only: the second derivative itself has no graph.
    """
    value: Tensor = _LogSumExp.apply(hidden_KD, table_ND, log_weight_N)  # type: ignore[no-untyped-call]
    return value


def mean_log_sum_exp(
    hidden_KD: Tensor, table_ND: Tensor, weight_K1: Tensor | None = None
) -> Tensor:
    """The mean over rows of `log_sum_exp`, once differentiable in h and E.

    A real batch's thousands of rows need no second derivative, and their weights are known. So a
    chunk's gradients are computed with its scores, while those are in the cache.

    Args:
        hidden_KD: hidden states h.
        table_ND: the scoring table E.
        weight_K1: each row's share of the mean, (K, 1); None: all the same.
    """
    value: Tensor = _MeanLogSumExp.apply(hidden_KD, table_ND, weight_K1)  # type: ignore[no-untyped-call]
    return value


class _WithGradients(torch.autograd.Function):
    """A scalar whose gradients, one an argument, the forward pass computes: `ctx.gradients`."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(None if each is None else each * upstream for each in ctx.gradients)


class _MeanLogSumExp(_WithGradients):
    @staticmethod
    def forward(ctx: Any, hidden_KD: Tensor, table_ND: Tensor, weight_K1: Tensor | None) -> Tensor:
        to_table = torch.zeros_like(table_ND) if ctx.needs_input_grad[1] else None
        to_hidden, value = torch.empty_like(hidden_KD), hidden_KD.new_zeros(())
        weights, small = _weights(hidden_KD, weight_K1), scores_are_small(hidden_KD, table_ND)
        # A table's gradient needs a row's whole sum first, so there the items stay together.
        parts = _cut(table_ND) if small and to_table is None else [table_ND]
        at_once = ROWS_OF_A_BLOCK if len(parts) > 1 else rows_at_once(hidden_KD, table_ND)
        for first in range(0, len(hidden_KD), at_once):
            rows = slice(first, first + at_once)
            h = hidden_KD[rows]
            total, expected, peak = h.new_zeros(len(h), 1), torch.zeros_like(h), h.new_zeros(())
            for part in parts:
                P = h @ part.T
                if not small:
                    peak = P.amax(-1, keepdim=True)
                    P.sub_(peak)
                total += P.exp_().sum(-1, keepdim=True)
                expected.addmm_(P, part)
            weight = _of_rows(weights, rows)
            value += ((total.log() + peak) * weight).sum()
            share = weight / total
            torch.mul(expected, share, out=to_hidden[rows])
            if to_table is not None:
                to_table.addmm_(P.T, h * share)
        ctx.gradients = to_hidden, to_table, None
        return value


def mean_expected_score(
    hidden_KF: Tensor,
    table_NF: Tensor,
    other_KG: Tensor,
    keys_NG: Tensor,
    weight_K1: Tensor | None = None,
) -> Tensor:
    """The mean over rows of h . (Q F) with Q = softmax(g K^T): the score that another model, of
    states g and table K, expects an item to have. Once differentiable in h and F. Weights are
    those of `mean_log_sum_exp`."""
    theirs = other_KG.detach(), keys_NG.detach(), weight_K1
    value: Tensor = _MeanExpectedScore.apply(hidden_KF, table_NF, *theirs)  # type: ignore[no-untyped-call]
    return value


class _MeanExpectedScore(_WithGradients):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_KF: Tensor,
        table_NF: Tensor,
        other_KG: Tensor,
        keys_NG: Tensor,
        weight_K1: Tensor | None,
    ) -> Tensor:
        expected = torch.empty_like(hidden_KF)
        to_table = torch.zeros_like(table_NF) if ctx.needs_input_grad[1] else None
        weights, small = _weights(hidden_KF, weight_K1), scores_are_small(other_KG, keys_NG)
        at_once = rows_at_once(hidden_KF, table_NF)
        for first in range(0, len(hidden_KF), at_once):
            rows = slice(first, first + at_once)
            Q = other_KG[rows] @ keys_NG.T
            if not small:
                Q.sub_(Q.amax(-1, keepdim=True))
            scale = Q.exp_().sum(-1, keepdim=True).reciprocal_()
            torch.mul(Q @ table_NF, scale, out=expected[rows])
            if to_table is not None:
                to_table.addmm_(Q.T, hidden_KF[rows] * (_of_rows(weights, rows) * scale))
        to_hidden = expected.mul_(weights)
        ctx.gradients = to_hidden, to_table, None, None, None
        return (hidden_KF * to_hidden).sum()


def _weights(hidden_KD: Tensor, weight_K1: Tensor | None) -> Tensor | float:
    return 1 / max(1, len(hidden_KD)) if weight_K1 is None else weight_K1


def rows_at_once(hidden_KD: Tensor, table_ND: Tensor) -> int:
    """How many rows' scores are computed at a time where none is kept."""
    most = max(1, SCORES_AT_ONCE // len(table_ND))
    if hidden_KD.device.type != "cpu":
        return most
    return min(most, max(FEWEST_ROWS, SCORES_IN_CACHE // len(table_ND)))


def longest_row(x_ND: Tensor) -> float:
    """The largest norm of a row; of no rows 0."""
    return float(torch.linalg.vector_norm(x_ND, dim=-1).max()) if len(x_ND) else 0.0


def scores_are_small(
    hidden_KD: Tensor, table_ND: Tensor, longest: float | None = None, largest_weight: float = 0.0
) -> bool:
    """Whether exp bears every score, so that no row's largest has to be subtracted.

    A score is at most the product of two norms. On a GPU reading the answer would wait for all
    kernels, so there it is False.

    Args:
        hidden_KD: hidden states.
        table_ND: the scoring table.
        longest: its `longest_row`, where that is known.
        largest_weight: the largest log weight that is added to a score.
    """
    if hidden_KD.device.type != "cpu" or not len(hidden_KD):
        return False
    longest = longest_row(table_ND) if longest is None else longest
    return longest_row(hidden_KD) * longest + largest_weight <= LARGEST_SCORE


def _cut(table_ND: Tensor) -> list[Tensor]:
    """The items in parts whose scores with a block of rows fit into a core's cache."""
    at_once = max(1, SCORES_IN_CACHE // ROWS_OF_A_BLOCK)
    return [table_ND[first : first + at_once] for first in range(0, len(table_ND), at_once)]


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_KD: Tensor, table_ND: Tensor, log_weight_N: Tensor | None
    ) -> Tensor:
        derivatives = any(ctx.needs_input_grad)
        ctx.softmax = SoftmaxOverItems(hidden_KD, table_ND, derivatives, log_weight_N)
        # Saved by autograd's way, which checks that nobody changes them in place.
        ctx.save_for_backward(hidden_KD, table_ND)
        value: Tensor = ctx.softmax.value
        return value.clone()  # not itself: its graph would hold what holds it

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_KD, table_ND = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[:2])
        arguments = (upstream[0], hidden_KD, table_ND, ctx.softmax, needs)
        to_hidden, to_table = _Gradient.apply(*arguments)  # type: ignore[no-untyped-call]
        return (to_hidden if needs[0] else None), (to_table if needs[1] else None), None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        upstream_K: Tensor,
        hidden_KD: Tensor,
        table_ND: Tensor,
        softmax: SoftmaxOverItems,
        needs: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        to_hidden, to_table = softmax.gradient(upstream_K[:, None], needs[1])
        ctx.softmax = softmax
        ctx.save_for_backward(upstream_K, hidden_KD, table_ND)
        ctx.set_materialize_grads(False)
        return to_hidden, table_ND.new_empty(0) if to_table is None else to_table

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        upstream_K, _, _ = ctx.saved_tensors
        v_KD, w_ND = directions
        if v_KD is None and w_ND is None:
            return None, None, None, None, None
        changes = ctx.softmax.hvp(upstream_K[:, None], v_KD, w_ND, ctx.needs_input_grad[2])
        return *changes, None, None


def _joined(chunks: list[Tensor]) -> Tensor:
    """Chunks of rows one after another; a single one is not copied."""
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)


def _of_rows(upstream: Tensor | float, rows: slice) -> Tensor | float:
    return upstream[rows] if isinstance(upstream, Tensor) else upstream


def _score_tangents(
    v_KD: Tensor | None, w_ND: Tensor | None, hidden_KD: Tensor, table_ND: Tensor, rows: slice
) -> Tensor:
    """Change of these rows' scores along the directions, in memory of its own."""
    if v_KD is None:
        assert w_ND is not None  # there is at least one direction
        return hidden_KD[rows] @ w_ND.T
    Z = v_KD[rows] @ table_ND.T
    return Z if w_ND is None else Z.addmm_(hidden_KD[rows], w_ND.T)
