"""Embeddings of soft sequences: X = softmax(C V^T) F, with derivatives, for any number of items.

Implementations differ by the *synthetic* tensor that batches are cut from, which is also what the
unrolled inner loop is differentiated by:

| class | scoring table F | synthetic | why |
|---|---|---|---|
| `Precomputed` | fixed | X (mu, zeta, d) | X is computed once (I-1) |
| `SparseSupport` | fixed | X (mu, zeta, d) | the same with few items one by one (`item_cells`) |
| `DenseProbs` | trained | S (mu, zeta, n) | S fits in memory |
| `ChunkedQueries` | trained | C (mu, zeta, d) | S does not fit; it is recomputed in chunks |

The second dimension has the positions of `tucker.SoftSequences.stacked`. Each class
reads a batch for autograd (`read`) and by analytic derivatives (`passes`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.losses import softmax
from td3engine.summary.item_cells import ItemCells


def expected_embeddings(C_UTD: Tensor, V_ND: Tensor, E_ND: Tensor) -> Tensor:
    """X = softmax(C V^T) E, the expected embedding of each position, (mu, zeta, d) (I-1).

    Fused attention: the (mu, zeta, n) probabilities are never stored. First order only.
    """
    flat = C_UTD.reshape(1, 1, -1, C_UTD.shape[-1])
    out = F.scaled_dot_product_attention(flat, V_ND[None, None], E_ND[None, None], scale=1.0)
    return out.view(*C_UTD.shape[:-1], E_ND.shape[-1])


class EmbeddingPasses(Protocol):
    """Analytic derivatives of one batch's embeddings; each pass once, in this order.

    `to_X` is the gradient of the loss by X, (B, zeta, d). None stands for the table's gradient or
    tangent if the table is not trained.
    """

    def forward(self) -> Tensor:
        """X, (B, zeta, d)."""

    def backward(self, to_X: Tensor) -> Tensor | None:
        """Gradient of the table, (n, d)."""

    def jvp(self, table_ND: Tensor) -> Tensor | None:
        """Tangent of X along a direction of the table, (B, zeta, d)."""

    def backward_jvp(self, to_X: Tensor) -> tuple[Tensor | None, Tensor]:
        """Tangent of the table's gradient along that direction, and the derivative of
        (gradient . direction) by the batch. `to_X` is the tangent of the gradient by X."""


class SoftEmbedding(Protocol):
    """Embeds the soft sequences of a summary."""

    def synthetic(self, C_UTD: Tensor) -> Tensor:
        """The tensor that batches are cut from, (mu, zeta, .), differentiable in the queries."""

    def read(self, batch: Tensor, table_NF: Tensor) -> Tensor:
        """Expected rows of the table for a batch, (B, zeta, f)."""

    def passes(self, batch: Tensor, table_ND: Tensor) -> EmbeddingPasses:
        """The same with analytic derivatives."""


@dataclass(frozen=True)
class Precomputed:
    """Synthetic tensor: X (mu, zeta, d)."""

    V: Tensor

    def synthetic(self, C_UTD: Tensor) -> Tensor:
        return expected_embeddings(C_UTD, self.V, self.V)

    def read(self, batch: Tensor, _table_NF: Tensor) -> Tensor:
        return batch

    def passes(self, batch: Tensor, _table_ND: Tensor) -> EmbeddingPasses:
        return _PrecomputedPasses(batch)


@dataclass(frozen=True)
class SparseSupport(Precomputed):
    """Synthetic tensor: X (mu, zeta, d), where each position meets few items one by one.

    Attributes:
        cells: of V.
        items: how many items, at least.
    """

    cells: ItemCells
    items: int

    @classmethod
    def of(cls, V_ND: Tensor, items: int) -> Self:
        """Cut V into cells."""
        return cls(V_ND, ItemCells.of(V_ND), items)

    def synthetic(self, C_UTD: Tensor) -> Tensor:
        return self.cells.expected_rows(C_UTD, self.items)

    def top(self, C_UTD: Tensor, count: int) -> Tensor:
        """See `ItemCells.top`."""
        return self.cells.top(C_UTD, self.items, count)


@dataclass(frozen=True)
class _PrecomputedPasses:
    X: Tensor

    def forward(self) -> Tensor:
        return self.X

    def backward(self, _to_X: Tensor) -> None:
        return None

    def jvp(self, _table_ND: Tensor) -> None:
        return None

    def backward_jvp(self, to_X: Tensor) -> tuple[None, Tensor]:
        return None, to_X


@dataclass(frozen=True)
class DenseProbs:
    """Synthetic tensor: S (mu, zeta, n)."""

    V: Tensor

    def synthetic(self, C_UTD: Tensor) -> Tensor:
        return (C_UTD @ self.V.T).softmax(-1)

    def read(self, batch: Tensor, table_NF: Tensor) -> Tensor:
        return batch @ table_NF

    def passes(self, batch: Tensor, table_ND: Tensor) -> EmbeddingPasses:
        return _DensePasses(batch, table_ND)


class _DensePasses:
    def __init__(self, S_BTN: Tensor, table_ND: Tensor) -> None:
        self.S, self.table = S_BTN, table_ND

    def forward(self) -> Tensor:
        return self.S @ self.table

    def backward(self, to_X: Tensor) -> Tensor:
        self.to_X = to_X
        return self._to_table(to_X)

    def jvp(self, table_ND: Tensor) -> Tensor:
        self.table_tangent = table_ND
        return self.S @ table_ND

    def backward_jvp(self, to_X: Tensor) -> tuple[Tensor, Tensor]:
        return self._to_table(to_X), to_X @ self.table.t() + self.to_X @ self.table_tangent.t()

    def _to_table(self, to_X: Tensor) -> Tensor:
        return self.S.flatten(0, 1).t() @ to_X.flatten(0, 1)


@dataclass(frozen=True)
class ChunkedQueries:
    """Synthetic tensor: C (mu, zeta, d)."""

    V: Tensor

    def synthetic(self, C_UTD: Tensor) -> Tensor:
        return C_UTD

    def read(self, batch: Tensor, table_NF: Tensor) -> Tensor:
        """Expected rows, (B, zeta, f); once differentiable."""
        return expected_embeddings(batch, self.V, table_NF)

    def passes(self, batch: Tensor, table_ND: Tensor) -> EmbeddingPasses:
        return _ChunkedPasses(batch, self.V, table_ND)


class _ChunkedPasses:
    def __init__(self, C_BTD: Tensor, V_ND: Tensor, table_ND: Tensor) -> None:
        self.shape, self.C_KD = C_BTD.shape, C_BTD.flatten(0, 1)
        self.V, self.table = V_ND, table_ND

    def forward(self) -> Tensor:
        return self._expected(self.table)

    def backward(self, to_X: Tensor) -> Tensor:
        self.to_X_KD = to_X.flatten(0, 1)
        return self._to_table(self.to_X_KD)

    def jvp(self, table_ND: Tensor) -> Tensor:
        self.table_tangent = table_ND
        return self._expected(table_ND)

    def backward_jvp(self, to_X: Tensor) -> tuple[Tensor, Tensor]:
        to_X_KD = to_X.flatten(0, 1)
        to_C_KD = torch.empty_like(self.C_KD)
        for rows, S in self._probabilities():
            to_S = (to_X_KD[rows] @ self.table.t()).addmm_(
                self.to_X_KD[rows], self.table_tangent.t()
            )
            to_scores = to_S.sub_((S * to_S).sum(-1, keepdim=True)).mul_(S)
            torch.mm(to_scores, self.V, out=to_C_KD[rows])
        return self._to_table(to_X_KD), to_C_KD.view(self.shape)

    def _expected(self, table_ND: Tensor) -> Tensor:
        X_KD = torch.empty_like(self.C_KD)
        for rows, S in self._probabilities():
            torch.mm(S, table_ND, out=X_KD[rows])
        return X_KD.view(self.shape)

    def _to_table(self, to_X_KD: Tensor) -> Tensor:
        to_table_ND = torch.zeros_like(self.table)
        for rows, S in self._probabilities():
            to_table_ND.addmm_(S.t(), to_X_KD[rows])
        return to_table_ND

    def _probabilities(self) -> Iterator[tuple[slice, Tensor]]:
        at_once = max(1, softmax.SCORES_AT_ONCE // len(self.V))
        for first in range(0, len(self.C_KD), at_once):
            rows = slice(first, first + at_once)
            yield rows, (self.C_KD[rows] @ self.V.t()).softmax(-1)
