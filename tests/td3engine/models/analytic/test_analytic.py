"""Layers with written-out derivatives against autograd's double backward, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from td3engine.config import BackboneConfig
from td3engine.models.analytic.layers import Attention, Gelu, Linear, Norm, PerHead
from td3engine.models.backbone import TargetPositions
from td3engine.models.backbones.sasrec import SASRec
from tests.td3engine.oracles import distance, leaves, normal, seeded

EXACT = 1e-12
N, IN, OUT = 6, 4, 3


def assert_derivatives(
    layer: Any,
    value: Callable[..., Tensor],
    inputs: list[Tensor],
    parameters: list[Tensor],
) -> None:
    """All four passes of `layer` against autograd on `value(*inputs, *parameters)`."""
    every = leaves(*inputs, *parameters)
    directions = [normal(20 + nth, *each.shape) for nth, each in enumerate(every)]
    wanted = value(*every)
    assert distance(layer.forward(*inputs), wanted) < EXACT

    (to_y,) = leaves(normal(10, *wanted.shape))
    firsts = torch.autograd.grad(wanted, every, to_y, create_graph=True)
    for found, first in zip(flat(layer.backward(to_y.detach())), firsts, strict=True):
        assert distance(found, first) < EXACT

    # The change of the value along the directions: the gradient of its gradient by `to_y`.
    (hvp,) = torch.autograd.grad(firsts, to_y, directions, retain_graph=True)
    assert distance(layer.jvp(*directions), hvp) < EXACT

    # Of the gradients, where `to_y` changes too. The Hessian is symmetric.
    to_y_tangent = normal(11, *wanted.shape)
    products = torch.autograd.grad(
        firsts, every, directions, retain_graph=True, materialize_grads=True
    )
    moved = torch.autograd.grad(wanted, every, to_y_tangent)
    for found, product, more in zip(
        flat(layer.backward_jvp(to_y_tangent)), products, moved, strict=True
    ):
        assert distance(found, product + more) < EXACT


def flat(found: Any) -> list[Tensor]:
    """A layer's gradients: of its inputs, then of its parameters."""
    if isinstance(found, Tensor):
        return [found]
    return [each for part in found for each in ([part] if isinstance(part, Tensor) else part)]


def test_linear() -> None:
    weight, bias = normal(1, OUT, IN), normal(2, OUT)
    assert_derivatives(Linear(weight, bias), functional.linear, [normal(0, N, IN)], [weight, bias])


def test_per_head() -> None:
    matrix = normal(1, 2, IN, OUT)
    assert_derivatives(PerHead(matrix), torch.bmm, [normal(0, 2, N, IN)], [matrix])


def test_norm() -> None:
    weight, bias = normal(1, IN), normal(2, IN)
    assert_derivatives(
        Norm(weight, bias),
        lambda x, w, b: functional.layer_norm(x, (IN,), w, b),
        [normal(0, N, IN, std=2.0)],
        [weight, bias],
    )


def test_gelu() -> None:
    assert_derivatives(Gelu(), functional.gelu, [normal(0, N, IN, std=2.0)], [])


@pytest.mark.parametrize("dropout", [False, True])
def test_attention(dropout: bool) -> None:
    queries, events = 3, 5
    hidden = torch.zeros(2, queries, events, dtype=torch.float64)
    hidden[0, 0, 2:] = hidden[1, :, 4] = -torch.inf
    mask = (normal(3, 2, queries, events) > 0).double() * 2 if dropout else None

    def value(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights: Tensor = (q @ k.mT * IN**-0.5 + hidden).softmax(-1)
        return (weights if mask is None else weights * mask) @ v

    inputs = [normal(0, 2, queries, IN), normal(1, 2, events, IN), normal(2, 2, events, IN)]
    assert_derivatives(Attention(hidden, mask, IN**-0.5), value, inputs, [])


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["all", "whole", "some"])
def test_sasrec(layers: int, heads: int, dropout: float, kind: str) -> None:
    """The encoder whole, also where rows ask for a few events, one of them twice."""
    rows, events, history = 3, 5, 6  # a row of the position table is never read
    config = BackboneConfig(hidden=4, layers=layers, heads=heads, inner=5, dropout=dropout)
    backbone = SASRec(config, history)
    parameters = backbone.initial(seeded(0)).double() + normal(1, backbone.n_parameters, std=0.3)
    twice = 2 if dropout == 0 else 4  # by hand, one that is asked for twice has two masks
    asked = {
        "all": None,
        "whole": TargetPositions(
            torch.arange(rows).repeat_interleave(events),
            torch.arange(1, events + 1).repeat(rows),
            all_positions=True,
        ),
        "some": TargetPositions(
            torch.arange(rows).repeat_interleave(2), torch.tensor([5, 1, 2, twice, 3, 5]), per_row=2
        ),
    }[kind]
    masks = backbone.dropout(rows, events + 1, seeded(2), asked.selected_per_row if asked else None)
    lengths = torch.full((rows,), events + 1)

    def value(input_BLD: Tensor, parameters_P: Tensor) -> Tensor:
        if asked is None:
            return backbone.encode(parameters_P, input_BLD, masks).flatten(0, 1)
        events_BLD = functional.pad(input_BLD, (0, 0, 0, 1))
        return backbone.predict(parameters_P, events_BLD, lengths, asked, masks)

    passes = backbone.analytic(parameters, asked, masks, rows)
    assert_derivatives(InOrder(passes), value, [normal(3, rows, events, 4)], [parameters])


class InOrder:
    """Passes with input before parameters, as layers have them."""

    def __init__(self, passes: Any) -> None:
        self.passes = passes
        self.forward = passes.forward

    def backward(self, to_y: Tensor) -> list[Tensor]:
        return [*self.passes.backward(to_y)][::-1]

    def jvp(self, input_BLD: Tensor, parameters_P: Tensor) -> Tensor:
        found: Tensor = self.passes.jvp(parameters_P, input_BLD)
        return found

    def backward_jvp(self, to_y: Tensor) -> list[Tensor]:
        return [*self.passes.backward_jvp(to_y)][::-1]
