"""SASRec against two models that share no code with it: torch's own modules, and plain loops."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from td3engine import learner
from td3engine.backbones import Backbone, build_backbone
from td3engine.config import BackboneConfig
from td3engine.learner import encode_last
from tests.td3engine.oracles import distance, normal, seeded

WIDTH, INNER, HISTORY = 8, 10, 7
SHAPES = [(1, 1), (1, 2), (2, 1), (2, 4)]
EXACT = 1e-10


def make_config(layers: int = 1, heads: int = 1, dropout: float = 0.0) -> BackboneConfig:
    return BackboneConfig(hidden=WIDTH, layers=layers, heads=heads, inner=INNER, dropout=dropout)


def make_backbone(layers: int = 1, heads: int = 1, dropout: float = 0.0) -> Backbone:
    return build_backbone(make_config(layers, heads, dropout), HISTORY)


def make_parameters(backbone: Backbone, seed: int = 0) -> Tensor:
    """Initial ones with noise on all, so that no bias is zero and no norm weight one."""
    initial = backbone.initial(seeded(seed)).double()
    return initial + normal(seed + 1, len(initial), std=0.4)


class Pieces:
    """Cuts a flat tensor into shapes, front to back."""

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat

    def take(self, *shape: int) -> Tensor:
        size = math.prod(shape)
        piece, self.flat = self.flat[:size], self.flat[size:]
        assert len(piece) == size
        return piece.view(shape)


class TorchSASRec(nn.Module):
    """Built of torch's modules. The order of weights here is the flat vector's order."""

    def __init__(self, config: BackboneConfig, flat: Tensor) -> None:
        super().__init__()
        d, inner = config.hidden, config.inner
        pieces = Pieces(flat)
        self.position = nn.Embedding.from_pretrained(pieces.take(HISTORY, d))
        self.norm = nn.LayerNorm(d, dtype=flat.dtype)
        self._copy(pieces, [self.norm.weight, self.norm.bias])
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            layer = nn.TransformerEncoderLayer(
                d, config.heads, inner, dropout=0.0, activation="gelu",
                batch_first=True, norm_first=False, dtype=flat.dtype,
            )  # fmt: skip
            attention = layer.self_attn
            weights: list[Tensor] = [attention.in_proj_weight, attention.in_proj_bias]
            weights += [attention.out_proj.weight, attention.out_proj.bias]
            for part in (layer.norm1, layer.linear1, layer.linear2, layer.norm2):
                weights += [part.weight, part.bias]
            self._copy(pieces, weights)
            self.layers.append(layer)
        assert not len(pieces.flat)

    @staticmethod
    def _copy(pieces: Pieces, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for weight in weights:
                weight.copy_(pieces.take(*weight.shape))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        x = self.norm(x + self.position(torch.arange(length)))
        # True: this position may not be read.
        future = torch.tensor([[key > query for key in range(length)] for query in range(length)])
        for layer in self.layers:
            x = layer(x, src_mask=future)
        return x


@pytest.mark.parametrize(("layers", "heads"), SHAPES)
@pytest.mark.parametrize("length", [1, 2, HISTORY])
def test_encode_is_torchs_transformer(layers: int, heads: int, length: int) -> None:
    backbone = make_backbone(layers, heads)
    parameters = make_parameters(backbone)
    reference = TorchSASRec(make_config(layers, heads), parameters)
    x = normal(5, 3, length, WIDTH)
    found = backbone.encode(parameters, x, None)
    assert found.shape == x.shape
    assert distance(found, reference(x).detach()) < EXACT


def slow_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weight + bias


def slow_encode(config: BackboneConfig, parameters: Tensor, x: Tensor, masks: Tensor) -> Tensor:
    """A position at a time, a head at a time; each dropout takes the next piece of the masks."""
    batch, length, d = x.shape
    weights, drops, width = Pieces(parameters), Pieces(masks), config.hidden // config.heads
    position = weights.take(HISTORY, d)
    norm = weights.take(d), weights.take(d)
    keep = drops.take(batch, length, d)
    at = [(row, place) for row in range(batch) for place in range(length)]
    h = {(b, i): slow_norm(x[b, i] + position[i], *norm) * keep[b, i] for b, i in at}
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
            mixed = []
            for head in range(config.heads):
                own = slice(head * width, (head + 1) * width)
                q, k, v = (
                    [into[part] @ before[b, j] + into_bias[part] for j in range(i + 1)]
                    for part in range(3)
                )
                scores = torch.stack([q[i][own] @ key[own] / width**0.5 for key in k])
                shares = scores.softmax(0) * attention[b, head, i, : i + 1]
                mixed.append(
                    sum(share * value[own] for share, value in zip(shares, v, strict=True))
                )
            joined = (out @ torch.cat(mixed) + out_bias) * projection[b, i]
            middle = slow_norm(before[b, i] + joined, *first_norm)
            inside = up @ middle + up_bias
            inside = inside * 0.5 * (1 + torch.erf(inside / 2**0.5))
            outside = (down @ inside + down_bias) * output[b, i]
            h[b, i] = slow_norm(middle + outside, *second_norm)
    assert not len(weights.flat)
    assert not len(drops.flat)
    return torch.stack([torch.stack([h[b, i] for i in range(length)]) for b in range(batch)])


@pytest.mark.parametrize(("layers", "heads"), SHAPES)
def test_encode_with_dropout_in_loops(layers: int, heads: int) -> None:
    backbone = make_backbone(layers, heads, dropout=0.4)
    parameters, x = make_parameters(backbone), normal(5, 2, 4, WIDTH)
    masks = backbone.dropout(2, 4, seeded(6))
    assert masks is not None
    found = backbone.encode(parameters, x, masks)
    wanted = slow_encode(make_config(layers, heads), parameters, x, masks.double())
    # The masks are float32: 1 / (1 - 0.4) is the same rounded number on both sides.
    assert distance(found, wanted) < EXACT
    assert distance(found, backbone.encode(parameters, x, None)) > 0.01
    kept = backbone.encode(parameters, x, torch.ones_like(masks))
    assert distance(kept, backbone.encode(parameters, x, None)) < EXACT


@pytest.mark.parametrize("place", range(HISTORY))
def test_a_later_position_changes_nothing_earlier(place: int) -> None:
    backbone = make_backbone(2, 2)
    parameters, x = make_parameters(backbone), normal(5, 3, HISTORY, WIDTH)
    changed = x.clone()
    changed[1, place] += normal(6, WIDTH)
    before, after = (backbone.encode(parameters, each, None) for each in (x, changed))
    moved = (before - after).abs().amax(-1) > 1e-12
    # Of its own sequence every position from there on, of the others none.
    wanted = torch.zeros(3, HISTORY, dtype=torch.bool)
    wanted[1, place:] = True
    assert torch.equal(moved, wanted)


@pytest.mark.parametrize("length", range(1, HISTORY))
def test_a_prefix_reads_as_alone(length: int) -> None:
    backbone = make_backbone(2, 2)
    parameters, x = make_parameters(backbone), normal(5, 3, HISTORY, WIDTH)
    alone = backbone.encode(parameters, x[:, :length], None)
    assert distance(backbone.encode(parameters, x, None)[:, :length], alone) < EXACT


def test_order_matters() -> None:
    """The position table is used: the same items in another order end in another state."""
    backbone = make_backbone()
    parameters, x = make_parameters(backbone), normal(5, 1, HISTORY, WIDTH)
    swapped = x[:, [1, 0, *range(2, HISTORY)]]
    one, other = (backbone.encode(parameters, each, None)[:, -1] for each in (x, swapped))
    assert distance(one, other) > 1e-3


def test_more_positions_than_it_has_are_an_error() -> None:
    backbone = make_backbone()
    with pytest.raises(RuntimeError):
        backbone.encode(make_parameters(backbone), normal(5, 1, HISTORY + 1, WIDTH), None)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_dropout_keeps_and_scales(rate: float) -> None:
    """Masks are 0 or 1 / (1 - rate), the expectation is one, and the size is as counted by hand."""
    backbone = make_backbone(layers=2, heads=4, dropout=rate)
    masks = backbone.dropout(10, 6, seeded(0))
    assert masks is not None
    # Input (10, 6, 8) = 480; a layer: attention (10, 4, 6, 6) = 1440 and twice 480.
    assert len(masks) == 480 + 2 * (1440 + 2 * 480)
    values = masks.unique()
    assert values.tolist() == pytest.approx([0, 1 / (1 - rate)])
    kept = float((masks > 0).double().mean())
    assert abs(kept - (1 - rate)) < 4 * (rate * (1 - rate) / len(masks)) ** 0.5


def test_dropout_is_the_generators() -> None:
    backbone = make_backbone(dropout=0.5)
    first, again = (backbone.dropout(3, 4, seeded(1)) for _ in range(2))
    draw = seeded(1)
    _, next_one = backbone.dropout(3, 4, draw), backbone.dropout(3, 4, draw)
    assert first is not None
    assert again is not None
    assert next_one is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, next_one)


def test_no_dropout_draws_nothing() -> None:
    draw = seeded(1)
    before = draw.get_state()
    assert make_backbone(dropout=0.0).dropout(3, 4, draw) is None
    assert torch.equal(draw.get_state(), before)


def test_the_number_of_parameters_by_hand() -> None:
    """d = 8, inner = 10, history = 7.

    Positions 7*8 = 56, input norm 16. A layer: qkv 24*8 + 24 = 216, out 64 + 8 = 72, norm 16,
    up 80 + 10 = 90, down 80 + 8 = 88, norm 16; together 498.
    """
    assert make_backbone(layers=1, heads=2).n_parameters == 56 + 16 + 498
    assert make_backbone(layers=3, heads=1).n_parameters == 56 + 16 + 3 * 498
    assert len(make_backbone(layers=3).initial(seeded(0))) == 56 + 16 + 3 * 498


def test_initial_parameters() -> None:
    """By the generator alone; norms start as identity, biases at zero, the rest at N(0, 0.02^2)."""
    backbone = make_backbone(layers=2)
    one, same, other = (backbone.initial(seeded(seed)) for seed in (1, 1, 2))
    assert one.dtype == torch.float32
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    module = TorchSASRec(make_config(layers=2), one)
    drawn = []
    for name, weight in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        else:
            drawn.append(weight.detach().flatten())
    everything = torch.cat(drawn)
    # Positions 56 and, of each layer, 24*8 + 64 + 80 + 80 = 416.
    assert len(everything) == 56 + 2 * 416
    assert abs(float(everything.std()) / 0.02 - 1) < 0.1
    assert abs(float(everything.mean())) < 0.003


def test_the_scorer_reads_the_last_real_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded rows in chunks give what each history gives alone, without pads."""
    monkeypatch.setattr(learner, "ENCODED_AT_ONCE", 2)
    backbone = make_backbone(2, 2, dropout=0.5)
    parameters, table = make_parameters(backbone), normal(7, 12, WIDTH)
    histories = [[3], [1, 2, 3, 4, 5, 6, 7], [11, 0], [0, 0, 0], [5, 4, 3, 2]]
    items = torch.zeros(5, HISTORY, dtype=torch.int64)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
    lengths = torch.tensor([len(history) for history in histories])
    found = encode_last(backbone, parameters, table)(items, lengths)
    alone = [
        backbone.encode(parameters, table[None, history], None)[0, -1] for history in histories
    ]
    assert distance(found, torch.stack(alone)) < EXACT
    assert functional.cosine_similarity(found[2], found[3], dim=0) < 0.999  # they are not all alike
