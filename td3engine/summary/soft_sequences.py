"""How a learner reads a summary: X = softmax(C V^T) F, with derivatives, for any size of catalogue.

Three ways, by what a batch of the summary is cut from (the *leaf*):

- `Precomputed`: the scoring table is fixed, and X is computed once (I-1).
- `DenseProbs`: the table is trained, and the probabilities S are few enough to be stored.
- `ChunkedQueries`: the table is trained and S would be too large; the queries C are kept, and S is
  computed in chunks of positions, again each time that it is needed.

Positions are all that a summary has queries of: where shapes say zeta, that is 2 zeta with targets
of their own. Each way reads a batch for autograd (`read`), or gives the passes of
`backbones.analytic` (`passes`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from td3engine.losses import softmax
from td3engine.summary.tucker import soft_sequences


class EmbeddingPasses(Protocol):
    """Reading one batch, each pass once and in this order. None: the table is not trained."""

    def forward(self) -> Tensor:
        """X, (B, zeta, d)."""

    def backward(self, to_X: Tensor) -> Tensor | None:
        """Gradient of the table, (n, d)."""

    def jvp(self, table_ND: Tensor) -> Tensor | None:
        """Change of X along a direction of the table."""

    def backward_jvp(self, to_X: Tensor) -> tuple[Tensor | None, Tensor]:
        """Change of the table's gradient along that direction, given that of X's; and the
        derivative of (gradient . direction) to the batch."""


class SoftEmbedding(Protocol):
    """One of the ways."""

    def synthetic(self, C_UTD: Tensor) -> Tensor:
        """What batches are cut from, differentiable in the queries: (mu, zeta, .)."""

    def read(self, batch: Tensor, table_NF: Tensor) -> Tensor:
        """A batch's expected rows of the table, (B, zeta, f)."""

    def passes(self, batch: Tensor, table_ND: Tensor) -> EmbeddingPasses:
        """The same with its derivatives written out."""


@dataclass(frozen=True)
class Precomputed:
    """The leaf is X (mu, zeta, d)."""

    V: Tensor

    def synthetic(self, C_UTD: Tensor) -> Tensor:
        return soft_sequences(C_UTD, self.V, self.V)

    def read(self, batch: Tensor, _table_NF: Tensor) -> Tensor:
        return batch

    def passes(self, batch: Tensor, _table_ND: Tensor) -> EmbeddingPasses:
        return _Ready(batch)


@dataclass(frozen=True)
class _Ready:
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
    """The leaf is S (mu, zeta, n)."""

    V: Tensor

    def synthetic(self, C_UTD: Tensor) -> Tensor:
        return (C_UTD @ self.V.T).softmax(-1)

    def read(self, batch: Tensor, table_NF: Tensor) -> Tensor:
        return batch @ table_NF

    def passes(self, batch: Tensor, table_ND: Tensor) -> EmbeddingPasses:
        return _Dense(batch, table_ND)


class _Dense:
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
    """The leaf is C (mu, zeta, d)."""

    V: Tensor

    def synthetic(self, C_UTD: Tensor) -> Tensor:
        return C_UTD

    def read(self, batch: Tensor, table_NF: Tensor) -> Tensor:
        """Once differentiable."""
        return soft_sequences(batch, self.V, table_NF)

    def passes(self, batch: Tensor, table_ND: Tensor) -> EmbeddingPasses:
        return _Queries(batch, self.V, table_ND)


class _Queries:
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
        found = torch.zeros_like(self.table)
        for rows, S in self._probabilities():
            found.addmm_(S.t(), to_X_KD[rows])
        return found

    def _probabilities(self) -> Iterator[tuple[slice, Tensor]]:
        at_once = max(1, softmax.SCORES_AT_ONCE // len(self.V))
        for first in range(0, len(self.C_KD), at_once):
            rows = slice(first, first + at_once)
            yield rows, (self.C_KD[rows] @ self.V.t()).softmax(-1)
