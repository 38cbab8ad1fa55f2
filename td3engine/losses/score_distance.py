"""The distance of two models' scores: mean over items of the squared difference of centred scores.

A learner of state h and table F should order all items as a summary's query q and table V do. A
softmax over items does not change when one number is added to all scores, so scores are centred:

    D(h, F) = 1/n sum_v (h . Fc_v - q . Vc_v)^2 = h A h - 2 h B q + q C q,

with Fc = F - mean(F), Vc = V - mean(V), A = Fc^T Fc / n, B = Fc^T Vc / n, C = Vc^T Vc / n. The n
items enter through three small products alone: no (positions, n) array of scores is made, and where
F is not trained no item enters a step at all. It is the high-temperature limit of distilling by
softmax (Hinton, Vinyals, Dean, 2015, section 2.1), and the loss of Ba and Caruana (2014).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ItemProducts:
    """The products of centred tables that a distance needs.

    Attributes:
        own: A, (f, f).
        mixed: B, (f, d).
        other: C, (d, d).
    """

    own: Tensor
    mixed: Tensor
    other: Tensor

    @classmethod
    def of(cls, F_NF: Tensor, V_ND: Tensor, other: Tensor) -> "ItemProducts":
        """Of centred tables, the learner's F and the summary's V, whose own product is known;
        differentiable."""
        n = len(V_ND)
        return cls(F_NF.T @ F_NF / n, F_NF.T @ V_ND / n, other)


def centred(table: Tensor) -> Tensor:
    """The table less its mean row."""
    return table - table.mean(0)


def mean_distance(hidden_KF: Tensor, query_KD: Tensor, products: ItemProducts) -> Tensor:
    """The mean of D over rows; for autograd, differentiable as often as you like.

    Args:
        hidden_KF: a learner's states h.
        query_KD: the queries q that they are compared with.
        products: of the two tables.
    """
    of_states = ((hidden_KF @ products.own) * hidden_KF).sum(-1)
    of_both = ((hidden_KF @ products.mixed) * query_KD).sum(-1)
    of_queries = ((query_KD @ products.other) * query_KD).sum(-1)
    return (of_states - 2 * of_both + of_queries).mean()


class AnalyticDistance:
    """`mean_distance` with its first and second derivatives in closed form.

    Args:
        hidden_KD, query_KD: as there.
        products: of the two tables.
        table_ND: the learner's table, centred, if it is trained; else None.
        V_ND: the summary's, centred.
    """

    def __init__(
        self,
        hidden_KD: Tensor,
        query_KD: Tensor,
        products: ItemProducts,
        table_ND: Tensor | None,
        V_ND: Tensor,
    ) -> None:
        self.hidden, self.query, self.products = hidden_KD, query_KD, products
        self.table, self.V = table_ND, V_ND
        self.scale = 2 / max(1, len(hidden_KD))

    def gradient(self) -> tuple[Tensor, Tensor | None]:
        """Gradients of h (K, d) and of a trained table (n, d)."""
        h, q = self.hidden, self.query
        to_hidden = (h @ self.products.own - q @ self.products.mixed.T).mul_(self.scale)
        if self.table is None:
            return to_hidden, None
        return to_hidden, self._to_table(self.table, h.T @ h, q.T @ h)

    def hvp(
        self, hidden_KD: Tensor, table_ND: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Change of both gradients along directions of h and of the table (None: it is not
        trained); and the derivative of (gradients . directions) by q, (K, d)."""
        h, q, v = self.hidden, self.query, hidden_KD
        own, mixed = self.products.own, self.products.mixed
        to_hidden, to_query = v @ own, v @ mixed
        if table_ND is None or self.table is None:
            return to_hidden.mul_(self.scale), None, to_query.mul_(-self.scale)
        w = centred(table_ND)
        n = len(w)
        across = self.table.T @ w / n
        own_tangent, mixed_tangent = across + across.T, w.T @ self.V / n
        to_hidden += h @ own_tangent - q @ mixed_tangent.T
        to_query += h @ mixed_tangent
        hv = h.T @ v
        to_table = self._to_table(self.table, hv + hv.T, q.T @ v)
        to_table += w @ (h.T @ h).mul_(self.scale / n)
        return to_hidden.mul_(self.scale), to_table, to_query.mul_(-self.scale)

    def _to_table(self, table_ND: Tensor, states_DD: Tensor, queries_DD: Tensor) -> Tensor:
        """Gradient of the table, from sums of h h^T and q h^T over rows."""
        share = self.scale / len(table_ND)
        to_table = torch.mm(table_ND, states_DD.mul(share))
        return to_table.addmm_(self.V, queries_DD.mul(share), alpha=-1)
