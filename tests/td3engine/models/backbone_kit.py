"""What the tests of the four backbones share: sizes, pieces of a flat vector, slow transformers."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from td3engine.config import BackboneConfig, BackboneName
from td3engine.models.backbone import Backbone, TargetPositions
from tests.td3engine.oracles import distance, leaves, normal, seeded

WIDTH, INNER, HISTORY = 8, 10, 7
EXACT = 1e-10


def make_config(
    name: BackboneName, layers: int = 1, heads: int = 1, dropout: float = 0.0
) -> BackboneConfig:
    return BackboneConfig(
        name=name, hidden=WIDTH, layers=layers, heads=heads, inner=INNER, dropout=dropout
    )


def make_parameters(backbone: Backbone, seed: int = 0) -> Tensor:
    """Initial ones with noise on all, so that no bias is zero and no norm weight one."""
    initial = backbone.initial(seeded(seed)).double()
    return initial + normal(seed + 1, len(initial), std=0.4)


def ask(*pairs: tuple[int, int]) -> TargetPositions:
    """Asks for these (row, event)."""
    return TargetPositions(
        torch.tensor([row for row, _ in pairs]), torch.tensor([at for _, at in pairs])
    )


def drawn(backbone: Backbone, sequences: int, events: int, seed: int = 6) -> Tensor:
    """Dropout masks of a backbone that has them."""
    masks = backbone.dropout(sequences, events, seeded(seed))
    assert masks is not None
    return masks


class Pieces:
    """Cuts a flat tensor into shapes, front to back."""

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat

    def take(self, *shape: int) -> Tensor:
        size = math.prod(shape)
        piece, self.flat = self.flat[:size], self.flat[size:]
        assert len(piece) == size
        return piece.view(shape)

    def done(self) -> None:
        assert not len(self.flat)


def load(weights: Sequence[Tensor], flat: Tensor) -> None:
    """Fill a module's weights from the flat vector, whose order theirs is."""
    pieces = Pieces(flat)
    with torch.no_grad():
        for weight in weights:
            weight.copy_(pieces.take(*weight.shape))
    pieces.done()


def same_values_and_gradients(
    found: Callable[[Tensor, Tensor], Tensor],
    module: Callable[[Tensor], Tensor],
    weights: Sequence[Tensor],
    parameters_P: Tensor,
    events: Tensor,
) -> None:
    """`found(parameters, events)` against a module of torch with these weights in this order: the
    output, and the gradient with respect to every parameter and event."""
    load(weights, parameters_P)
    own_parameters, own_events, its_events = leaves(parameters_P, events, events)
    own, its = found(own_parameters, own_events), module(its_events)
    assert own.shape == its.shape
    assert distance(own, its) < EXACT
    towards = normal(99, *own.shape)
    own_gradients = torch.autograd.grad((own * towards).sum(), [own_parameters, own_events])
    *flat, to_events = torch.autograd.grad((its * towards).sum(), [*weights, its_events])
    assert distance(own_gradients[0], torch.cat([each.flatten() for each in flat])) < EXACT
    assert distance(own_gradients[1], to_events) < EXACT


def slow_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weight + bias


def slow_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def slow_transform(
    config: BackboneConfig,
    weights: Pieces,
    drops: Pieces,
    x: Tensor,
    sees: Callable[[int, int], range],
) -> Tensor:
    """Transformer layers a position and a head at a time; each dropout takes the next piece.

    `sees(row, position)`: the positions that this one attends to.
    """
    batch, length, d = x.shape
    width = config.hidden // config.heads
    norm = weights.take(d), weights.take(d)
    keep = drops.take(batch, length, d)
    at = [(row, place) for row in range(batch) for place in range(length)]
    h = {(b, i): slow_norm(x[b, i], *norm) * keep[b, i] for b, i in at}
    for _ in range(config.layers):
        into, into_bias = weights.take(3, d, d), weights.take(3, d)
        out, out_bias = weights.take(d, d), weights.take(d)
        first_norm = weights.take(d), weights.take(d)
        up, up_bias = weights.take(config.inner, d), weights.take(config.inner)
        down, down_bias = weights.take(d, config.inner), weights.take(d)
        second_norm = weights.take(d), weights.take(d)
        attention = drops.take(batch, config.heads, length, length)
        projection, output = drops.take(batch, length, d), drops.take(batch, length, d)
        before = h
        h = {}
        for b, i in at:
            seen = list(sees(b, i))
            q = into[0] @ before[b, i] + into_bias[0]
            k, v = ([into[part] @ before[b, j] + into_bias[part] for j in seen] for part in (1, 2))
            mixed = []
            for head in range(config.heads):
                own = slice(head * width, (head + 1) * width)
                scores = torch.stack([q[own] @ key[own] / width**0.5 for key in k])
                shares = scores.softmax(0) * attention[b, head, i, seen]
                mixed.append(torch.stack([value[own] for value in v]).T @ shares)
            joined = (out @ torch.cat(mixed) + out_bias) * projection[b, i]
            middle = slow_norm(before[b, i] + joined, *first_norm)
            outside = (down @ slow_gelu(up @ middle + up_bias) + down_bias) * output[b, i]
            h[b, i] = slow_norm(middle + outside, *second_norm)
    return torch.stack([torch.stack([h[b, i] for i in range(length)]) for b in range(batch)])


def rows_taken(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of `last` is given, from now on."""
    taken, last = list[int](), backbone.last

    def counted(parameters_P: Tensor, events_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        taken.append(len(events_BLD))
        return last(parameters_P, events_BLD, lengths_B)

    monkeypatch.setattr(backbone, "last", counted)
    return taken


Encode = Callable[[Tensor, Tensor], Tensor]


def same_derivatives(encode: Encode, reference: Encode, parameters_P: Tensor, x: Tensor) -> None:
    """Two encoders of (parameters, input): states, gradients, and gradients of those."""
    rows = [_derivatives(each, parameters_P, x) for each in (encode, reference)]
    for own, its in zip(*rows, strict=True):
        assert own.shape == its.shape
        assert distance(own, its) < EXACT


def _derivatives(encode: Encode, parameters_P: Tensor, x: Tensor) -> list[Tensor]:
    inputs = leaves(parameters_P, x)
    states = encode(*inputs)
    weighted = (states * normal(99, *states.shape)).sum()
    first = torch.autograd.grad(weighted, inputs, create_graph=True)
    directions = normal(98, len(parameters_P)), normal(97, *x.shape)
    along = sum((each * way).sum() for each, way in zip(first, directions, strict=True))
    assert isinstance(along, Tensor)
    return [states, *first, *torch.autograd.grad(along, inputs)]
