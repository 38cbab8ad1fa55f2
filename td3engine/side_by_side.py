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


def _mm(learners: int, x: _Stacked, y: _Stacked) -> Tensor:
    if y.shared:
        return _apart(learners, x.flat(learners) @ y.tensor)
    return torch.bmm(x.each(learners), y.each(learners))


def _addmm(
    learners: int, to: _Stacked, x: _Stacked, y: _Stacked, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    added = to.each(learners)
    added = added[:, None] if added.dim() == 2 else added  # a bias, for every row
    return torch.baddbmm(added, x.each(learners), y.each(learners), beta=beta, alpha=alpha)


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
