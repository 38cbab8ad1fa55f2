"""Items in cells of like rows, so that a query meets few of them one by one.

The log-sum-exp of a query c over all items is that over the items of its near cells, each exactly,
and over its far cells, each as a whole. A cell of m items with mean row u and variances s (by
column) stands for

    sum over its items of exp(c . v)  =~  m exp(c . u + c^2 . s / 2),

which has the first two cumulants of the scores in the cell (of their covariance the diagonal), and
is exact where they are normally distributed. So nothing is left out; what is far is known less
exactly. Let L(c) be this log-sum-exp. The expected row X is its gradient, and what a gradient g of
X gives to c is the Hessian of L times g. Both belong to one function, as those of the exact softmax
do; with all cells near it is the exact softmax.

Cells are made once from the item table, which is frozen: nothing about them has to be kept in a
checkpoint. They are halves of halves: a part is cut at the median along the direction in which its
rows vary most. So all cells have one size, up to a few empty places.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS_A_ROOT = 2  # cells, times the square root of the number of items
FEWEST_ITEMS = 16  # of a cell
ROWS_AT_ONCE = 2**17  # of the table, while cells are made
DIRECTION_ROWS = 2**18  # from which the directions of all parts are found
POWER_STEPS = 16
SCORES_AT_ONCE = 2**24  # of near items: 64 MiB in float32


@dataclass(frozen=True)
class ItemCells:
    """An item table V (n, d), cut into K cells of M places.

    Attributes:
        basis: the principal directions of V, (d, d), in whose coordinates rows, mean and variance
            are: there the diagonals hold most of the cells' covariances.
        items: of each cell, int64 (K, M); an empty place repeats some item.
        empty: which places are empty, (K, M).
        rows: the items' rows of V, (K, M, d).
        log_count: log of each cell's number of items, (K).
        mean, variance: of each cell's rows, by column, (K, d).
    """

    basis: Tensor
    items: Tensor
    empty: Tensor
    rows: Tensor
    log_count: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, V_ND: Tensor) -> "ItemCells":
        """Cut a table. The same table gives the same cells."""
        n_items = len(V_ND)
        basis_DD = torch.linalg.eigh(_covariance(V_ND)).eigenvectors
        wanted = min(CELLS_A_ROOT * n_items**0.5, n_items / FEWEST_ITEMS)
        levels = max(0, round(log2(wanted)))
        # Cells have one size: the last places, fewer than there are cells, stay empty.
        places = torch.arange(-(-n_items // 2**levels) * 2**levels, device=V_ND.device)
        for level in range(levels):
            places = _halved(V_ND, places.view(2**level, -1))
        places = places.view(2**levels, -1)
        items, empty = places % n_items, places >= n_items
        rows = V_ND.new_empty(*items.shape, V_ND.shape[1])
        mean_KD, variance_KD = V_ND.new_zeros(2, len(items), V_ND.shape[1])
        for nth, (cell, empty_M) in enumerate(zip(items, empty, strict=True)):
            torch.mm(V_ND.index_select(0, cell), basis_DD, out=rows[nth])
            there = rows[nth][~empty_M]
            if len(there):
                mean_KD[nth], variance_KD[nth] = there.mean(0), there.var(0, correction=0)
        log_count_K = (~empty).sum(1).to(V_ND.dtype).log()
        return cls(basis_DD, items, empty, rows, log_count_K, mean_KD, variance_KD)

    def near(self, items: int) -> int:
        """How many cells have so many items at least, or all cells."""
        return min(len(self.items), -(-items // self.items.shape[1]))

    def expected_rows(self, C_UTD: Tensor, items: int) -> Tensor:
        """X (mu, zeta, d) of queries C (mu, zeta, d), once differentiable in C.

        Args:
            C_UTD: queries.
            items: how many items meet each query one by one, at least.
        """
        C_RD = C_UTD.flatten(0, 1) @ self.basis
        X_RD: Tensor = _ExpectedRows.apply(C_RD, self, self.near(items))  # type: ignore[no-untyped-call]
        return (X_RD @ self.basis.T).view(C_UTD.shape)

    @torch.no_grad()
    def top(self, C_UTD: Tensor, items: int, count: int) -> Tensor:
        """Of each query the `count` items of highest score, as far as they are near: int64
        (mu zeta, count)."""
        found, enough = [], self.near(max(items, count))
        C_RD = C_UTD.flatten(0, 1) @ self.basis
        for some_RD in C_RD.split(self.queries_at_once(enough)):
            near = _Near(self, some_RD, self.nearest(some_RD, enough)[0])
            at = near.by_query(near.scores()).topk(count).indices
            cell = near.cells_RC.gather(1, at // self.items.shape[1])
            found.append(self.items[cell, at % self.items.shape[1]])
        return torch.cat(found)

    def nearest(self, C_RD: Tensor, near: int) -> tuple[Tensor, Tensor]:
        """So many cells of each query, int64 (R, near), and all cells' log-sum-exps as wholes,
        (R, K). Near are those whose wholes would be furthest off: weight times variance of scores.
        """
        variance_RK = C_RD.square() @ self.variance.T
        sums_RK = torch.addmm(self.log_count, C_RD, self.mean.T).add_(variance_RK, alpha=0.5)
        return (sums_RK + variance_RK.log_()).topk(near, sorted=False).indices, sums_RK

    def queries_at_once(self, near: int) -> int:
        """How many queries are computed at a time."""
        return max(1, SCORES_AT_ONCE // max(len(self.items), near * self.items.shape[1]))


def _covariance(V_ND: Tensor) -> Tensor:
    """Of the columns, (d, d), times the number of rows."""
    mean_D = V_ND.mean(0)
    parts = (part - mean_D for part in V_ND.split(ROWS_AT_ONCE))
    return torch.stack([part.T @ part for part in parts]).sum(0)


def _halved(V_ND: Tensor, places_PM: Tensor) -> Tensor:
    """Each part's places, in order along the direction in which its rows vary most."""
    parts, size = places_PM.shape
    items = places_PM % len(V_ND)
    every = max(1, min(size // 2, places_PM.numel() // DIRECTION_ROWS))
    some = items[:, ::every].flatten()
    sample = V_ND.index_select(0, some).view(parts, -1, V_ND.shape[1])
    sample -= sample.mean(1, keepdim=True)
    covariance_PDD = sample.mT @ sample
    direction_PD1 = covariance_PDD.sum(2, keepdim=True)
    for _ in range(POWER_STEPS):
        direction_PD1 = F.normalize(covariance_PDD @ direction_PD1, dim=1)
    along = [
        V_ND.index_select(0, some) @ direction_PD1[part, :, 0]
        for part, items_M in enumerate(items)
        for some in items_M.split(ROWS_AT_ONCE)
    ]
    order = torch.cat(along).view(parts, size).argsort(dim=1, stable=True)
    return places_PM.gather(1, order)


class _Near:
    """The pairs (p) of a query and one of its near cells, ordered by cell.

    Attributes:
        cells_RC: each query's near cells, int64 (R, C).
        query_p: each pair's query.
    """

    def __init__(self, cells: ItemCells, queries_RD: Tensor, cells_RC: Tensor) -> None:
        self.cells, self.queries, self.cells_RC = cells, queries_RD, cells_RC
        cell_p = cells_RC.flatten()
        order_p = cell_p.argsort(stable=True)
        self.query_p = order_p // cells_RC.shape[1]
        self.pair_of = torch.empty_like(order_p)
        self.pair_of[order_p] = torch.arange(len(order_p), device=order_p.device)
        self.ends = cell_p.bincount(minlength=len(cells.items)).cumsum(0).tolist()

    def scores(self) -> Tensor:
        """Scores of the pairs' items, (p, M); of empty places minus infinity."""
        scores = self.products(self.queries)
        with_empty = self.cells.empty.any(1).tolist()
        for cell, pairs in self._by_cell():
            if with_empty[cell]:
                scores[pairs].masked_fill_(self.cells.empty[cell], -torch.inf)
        return scores

    def products(self, x_RD: Tensor) -> Tensor:
        """x . v of each pair's items, (p, M)."""
        x_pD = x_RD[self.query_p]
        products = x_pD.new_empty(len(x_pD), self.cells.items.shape[1])
        for cell, pairs in self._by_cell():
            torch.mm(x_pD[pairs], self.cells.rows[cell].T, out=products[pairs])
        return products

    def mixed(self, weights_pM: Tensor) -> Tensor:
        """The sum over each query's near items of weight times v, (R, d)."""
        mixed_pD = weights_pM.new_empty(len(weights_pM), self.cells.rows.shape[2])
        for cell, pairs in self._by_cell():
            torch.mm(weights_pM[pairs], self.cells.rows[cell], out=mixed_pD[pairs])
        return self.by_query(mixed_pD).view(*self.cells_RC.shape, -1).sum(1)

    def by_query(self, of_pairs: Tensor) -> Tensor:
        """(p, .) -> (R, C .)."""
        return of_pairs[self.pair_of].view(len(self.cells_RC), -1)

    def _by_cell(self) -> Iterator[tuple[int, slice]]:
        """Cells that are near to some query, and their pairs."""
        start = 0
        for cell, end in enumerate(self.ends):
            if end > start:
                yield cell, slice(start, end)
            start = end


class _Softmax:
    """The probabilities of some queries' near items, (p, M), and far cells, (R, K).

    They share a factor a query, `scale` (R, 1).

    Args:
        cells: the items.
        C_RD: queries.
        near: how many cells are near to each.
    """

    def __init__(self, cells: ItemCells, C_RD: Tensor, near: int) -> None:
        near_RC, sums_RK = cells.nearest(C_RD, near)
        self.cells, self.C, self.near = cells, C_RD, _Near(cells, C_RD, near_RC)
        self.items, self.far = self.near.scores(), sums_RK.scatter_(1, near_RC, -torch.inf)
        peak_R1 = self.near.by_query(self.items.amax(1)).amax(1, keepdim=True)
        peak_R1 = torch.maximum(peak_R1, self.far.amax(1, keepdim=True))
        self.items.sub_(peak_R1[self.near.query_p]).exp_()
        self.far.sub_(peak_R1).exp_()
        total_R1 = self.near.by_query(self.items.sum(1)).sum(1, keepdim=True)
        self.scale = (total_R1 + self.far.sum(1, keepdim=True)).reciprocal_()

    def expected(self) -> Tensor:
        """X, (R, d)."""
        far_RD = self.far @ self.cells.mean + (self.far @ self.cells.variance) * self.C
        return (self.near.mixed(self.items) + far_RD) * self.scale

    def through(self, X_RD: Tensor, to_X_RD: Tensor) -> Tensor:
        """The gradient of C, (R, d): the Hessian of the log-sum-exp times that of X."""
        cells, C_RD = self.cells, self.C
        of_items_pM = self.near.products(to_X_RD).mul_(self.items)
        of_far_RK = (to_X_RD @ cells.mean.T).addmm_(to_X_RD * C_RD, cells.variance.T)
        of_far_RK.mul_(self.far)
        to_C_RD = self.near.mixed(of_items_pM) + of_far_RK @ cells.mean
        to_C_RD += (of_far_RK @ cells.variance) * C_RD + (self.far @ cells.variance) * to_X_RD
        return to_C_RD * self.scale - X_RD * (X_RD * to_X_RD).sum(1, keepdim=True)


class _ExpectedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, C_RD: Tensor, cells: ItemCells, near: int) -> Tensor:
        parts = C_RD.split(cells.queries_at_once(near))
        X_RD = torch.cat([_Softmax(cells, part, near).expected() for part in parts])
        ctx.save_for_backward(C_RD, X_RD)
        ctx.cells, ctx.near = cells, near
        return X_RD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        at_once = ctx.cells.queries_at_once(ctx.near)
        saved = (each.split(at_once) for each in (*ctx.saved_tensors, upstream[0]))
        to_C = [
            _Softmax(ctx.cells, C_RD, ctx.near).through(X_RD, to_X_RD)
            for C_RD, X_RD, to_X_RD in zip(*saved, strict=True)
        ]
        return torch.cat(to_C), None, None
