"""A traced function of one learner made one of K learners side by side, a kernel where K were.

`torch.func.vmap` does most of it. What it does badly are products of matrices, of which it makes a
broadcast product, two scalings and a sum where one batched kernel has all that, and `index_add`,
which it runs learner by learner. For those five operations stand rules here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, vmap
from torch.fx import GraphModule

aten = torch.ops.aten

SHORTEST_PIECE = 16
MOST_PIECES = 256  # of all learners: some two for each multiprocessor


def side_by_side(one: GraphModule) -> Callable[..., Any]:
    """`one` of K learners: each tensor it is given and gives has a leading dimension of K.

    Args:
        one: a function without operations in place (`functionalize`); is changed.
    """
    for node in one.graph.nodes:
        if node.target in RULES:
            node.args = (node.target, *node.args)
            node.target = _ruled
    one.recompile()
    mapped: Callable[..., Any] = vmap(one)
    return mapped


class _Stacked(NamedTuple):
    """An argument of K learners: their tensors (K, ...), or one that all share."""

    tensor: Tensor
    shared: bool

    def each(self, learners: int) -> Tensor:
        """With the leading dimension of K, as a view."""
        return self.tensor.expand(learners, *self.tensor.shape) if self.shared else self.tensor

    def flat(self, learners: int) -> Tensor:
        """(K x B, ...), one learner's (B, ...) after another's."""
        return self.each(learners).flatten(0, 1)


def _apart(learners: int, flat: Tensor) -> Tensor:
    """`_Stacked.flat` undone."""
    found: Tensor = flat.unflatten(0, (learners, -1))
    return found


def pieces_of(x_KAR: Tensor, y_KRB: Tensor) -> int:
    """Into how many pieces to cut the rows of a product (K, A, B).

    A weight's gradient is a small matrix made of long rows: whole, one multiprocessor of a GPU
    would make it while the others have nothing to do.
    """
    (learners, height, long), width = x_KAR.shape, y_KRB.shape[2]
    if not x_KAR.is_cuda or learners == 1 or long < 4 * max(height, width):
        return 1
    most = min(long // SHORTEST_PIECE, MOST_PIECES // learners)
    return max((each for each in range(1, most + 1) if long % each == 0), default=1)


def _in_pieces(x_KAR: Tensor, y_KRB: Tensor, pieces: int) -> Tensor:
    """A product of matrices a learner, (K, A, B)."""
    left = x_KAR.unflatten(2, (pieces, -1)).transpose(1, 2).flatten(0, 1)
    right = y_KRB.unflatten(1, (pieces, -1)).flatten(0, 1)
    found: Tensor = torch.bmm(left, right).unflatten(0, (-1, pieces)).sum(1)
    return found


def _mm(learners: int, x: _Stacked, y: _Stacked) -> Tensor:
    if y.shared:
        return _apart(learners, x.flat(learners) @ y.tensor)
    factors = x.each(learners), y.each(learners)
    pieces = pieces_of(*factors)
    return torch.bmm(*factors) if pieces == 1 else _in_pieces(*factors, pieces)


def _addmm(
    learners: int, to: _Stacked, x: _Stacked, y: _Stacked, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    added = to.each(learners)
    factors = x.each(learners), y.each(learners)
    pieces = pieces_of(*factors)
    if pieces == 1 or added.dim() == 2:
        added = added[:, None] if added.dim() == 2 else added  # a bias, for every row
        return torch.baddbmm(added, *factors, beta=beta, alpha=alpha)
    scaled = added if beta == 1 else added * beta
    return torch.add(scaled, _in_pieces(*factors, pieces), alpha=alpha)


def _bmm(learners: int, x: _Stacked, y: _Stacked) -> Tensor:
    return _apart(learners, torch.bmm(x.flat(learners), y.flat(learners)))


def _baddbmm(
    learners: int, to: _Stacked, x: _Stacked, y: _Stacked, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    factors = x.flat(learners), y.flat(learners)
    rows = len(factors[0]) // learners
    added = to.each(learners).expand(learners, rows, -1, -1).flatten(0, 1)
    return _apart(learners, torch.baddbmm(added, *factors, beta=beta, alpha=alpha))


def _index_add(
    learners: int,
    to: _Stacked,
    dim: int,
    index: _Stacked,
    rows: _Stacked,
    *,
    alpha: float = 1,
) -> Tensor:
    assert dim == 0
    each_to, each_index = to.each(learners), index.each(learners)
    height = each_to.shape[1]
    first = torch.arange(0, learners * height, height, device=each_index.device)
    places = (each_index + first[:, None]).flatten()
    found = to.flat(learners).index_add(0, places, rows.flat(learners), alpha=alpha)
    return found.view(each_to.shape)


RULES: dict[Any, Callable[..., Tensor]] = {
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten.baddbmm.default: _baddbmm,
    aten.index_add.default: _index_add,
}


class _Ruled(torch.autograd.Function):
    """An operation of `RULES`, which `vmap` lets say itself what it is side by side."""

    @staticmethod
    def forward(operation: Any, options: dict[str, Any], *arguments: Any) -> Tensor:
        found: Tensor = operation(*arguments, **options)
        return found

    @staticmethod
    def setup_context(_ctx: Any, _inputs: Any, _output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, operation: Any, options: dict[str, Any], *arguments: Any
    ) -> tuple[Tensor, int]:
        stacked = [
            _stacked(each, dim) if isinstance(each, Tensor) else each
            for each, dim in zip(arguments, in_dims[2:], strict=True)
        ]
        return RULES[operation](info.batch_size, *stacked, **options), 0


def _stacked(tensor: Tensor, dim: int | None) -> _Stacked:
    # (Moving a dimension to where it is would be another view.)
    return _Stacked(tensor.movedim(dim, 0) if dim else tensor, dim is None)


def _ruled(operation: Any, *arguments: Any, **options: Any) -> Tensor:
    found: Tensor = _Ruled.apply(operation, options, *arguments)  # type: ignore[no-untyped-call]
    return found
