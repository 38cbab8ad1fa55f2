"""eSASRec against loops over positions and heads, and against a layer of torch's modules."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from td3engine.config import BackboneConfig
from td3engine.models.backbones.esasrec import ESASRec
from tests.td3engine.models.backbone_kit import (
    EXACT,
    HISTORY,
    INNER,
    WIDTH,
    Pieces,
    drawn,
    load,
    make_config,
    make_parameters,
    same_derivatives,
    slow_gelu,
    slow_norm,
)
from tests.td3engine.oracles import distance, normal, seeded

SHAPES = [(1, 1), (1, 2), (2, 4)]
OPTIONS: list[dict[str, Any]] = [{}, {"gated": False}, {"feed_forward": "gelu"}]


def make_esasrec(
    layers: int = 1, heads: int = 1, dropout: float = 0.0, options: dict[str, Any] | None = None
) -> ESASRec:
    config = make_config("esasrec", layers, heads, dropout)
    return ESASRec(config.model_copy(update={"options": options or {}}), HISTORY)


class SlowLayer:
    """One layer at one position at a time; weights and masks are the next pieces."""

    def __init__(self, config: BackboneConfig, weights: Pieces, drops: Pieces, x: Tensor) -> None:
        d, inner, self.heads = config.hidden, config.inner, config.heads
        batch, length, _ = x.shape
        gated = config.options.get("gated", True)
        self.swiglu = config.options.get("feed_forward", "swiglu") == "swiglu"
        self.attention_norm = weights.take(d), weights.take(d)
        self.into, self.into_bias = weights.take(3, d, d), weights.take(3, d)
        self.out, self.out_bias = weights.take(d, d), weights.take(d)
        self.attention_gate = (weights.take(d, d), weights.take(d)) if gated else None
        self.feed_norm = weights.take(d), weights.take(d)
        self.swish = weights.take(inner, d) if self.swiglu else None
        self.up, self.down = weights.take(inner, d), weights.take(d, inner)
        self.feed_gate = (weights.take(d, d), weights.take(d)) if gated else None
        self.attention_mask = drops.take(batch, config.heads, length, length)
        self.projection_mask = drops.take(batch, length, d)
        self.output_mask = drops.take(batch, length, d)

    def at(self, x: Tensor, row: int, t: int) -> Tensor:
        """The layer's output at position t of a row."""
        seen = [slow_norm(x[row, j], *self.attention_norm) for j in range(t + 1)]
        width = len(seen[0]) // self.heads
        heads = []
        for head in range(self.heads):
            own = slice(head * width, (head + 1) * width)
            q, k, v = (
                [self.into[i, own] @ s + self.into_bias[i, own] for s in seen] for i in range(3)
            )
            exponentials = [torch.exp(q[t] @ k[j] / width**0.5) for j in range(t + 1)]
            total = torch.stack(exponentials).sum()
            shares = [each / total for each in exponentials]
            kept = self.attention_mask[row, head, t]
            heads.append(torch.stack([shares[j] * kept[j] * v[j] for j in range(t + 1)]).sum(0))
        mixed = (self.out @ torch.cat(heads) + self.out_bias) * self.projection_mask[row, t]
        y = x[row, t] + self.through(self.attention_gate, x[row, t], mixed)
        h = slow_norm(y, *self.feed_norm)
        if self.swish is not None:
            a = self.swish @ h
            middle = a / (1 + torch.exp(-a)) * (self.up @ h)
        else:
            middle = slow_gelu(self.up @ h)
        return y + self.through(self.feed_gate, y, self.down @ middle * self.output_mask[row, t])

    @staticmethod
    def through(gate: tuple[Tensor, Tensor] | None, stream: Tensor, branch: Tensor) -> Tensor:
        return branch if gate is None else branch / (1 + torch.exp(-(gate[0] @ stream + gate[1])))


def slow_encode(config: BackboneConfig, parameters: Tensor, x: Tensor, masks: Tensor) -> Tensor:
    weights, drops = Pieces(parameters), Pieces(masks)
    rows, length, d = x.shape
    position, first_norm = weights.take(HISTORY, d), (weights.take(d), weights.take(d))
    at = [(row, t) for row in range(rows) for t in range(length)]
    keep = drops.take(rows, length, d)
    x = torch.stack([slow_norm(x[r, t] + position[t], *first_norm) * keep[r, t] for r, t in at])
    x = x.view(rows, length, d)
    for _ in range(config.layers):
        layer = SlowLayer(config, weights, drops, x)
        x = torch.stack([layer.at(x, row, t) for row, t in at]).view(rows, length, d)
    last_norm = weights.take(d), weights.take(d)
    weights.done()
    drops.done()
    return torch.stack([slow_norm(x[row, t], *last_norm) for row, t in at]).view(rows, length, d)


def ones(backbone: ESASRec, x: Tensor) -> Tensor:
    dropping = backbone.config.model_copy(update={"dropout": 0.5})
    return torch.ones_like(drawn(ESASRec(dropping, HISTORY), len(x), x.shape[1] + 1)).double()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("layers", "heads"), SHAPES)
def test_encode_and_its_derivatives_are_the_slow_loops(
    layers: int, heads: int, options: dict[str, Any]
) -> None:
    backbone = make_esasrec(layers, heads, options=options)
    x = normal(5, 2, 3, WIDTH)
    masks = ones(backbone, x)
    same_derivatives(
        lambda parameters, x: backbone.encode(parameters, x, None),
        lambda parameters, x: slow_encode(backbone.config, parameters, x, masks),
        make_parameters(backbone),
        x,
    )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("layers", "heads"), SHAPES)
def test_dropout_falls_where_the_slow_loop_has_it(
    layers: int, heads: int, options: dict[str, Any]
) -> None:
    backbone = make_esasrec(layers, heads, 0.4, options)
    parameters, x = make_parameters(backbone), normal(5, 2, 4, WIDTH)
    masks = drawn(backbone, 2, 5).double()
    states = backbone.encode(parameters, x, masks)
    assert distance(states, slow_encode(backbone.config, parameters, x, masks)) < EXACT
    assert distance(states, backbone.encode(parameters, x, None)) > 0.01


class TorchLayer(nn.Module):
    """A layer of torch's modules, weights in the flat vector's order."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        double = torch.float64
        self.attention_norm, self.feed_norm = (nn.LayerNorm(WIDTH, dtype=double) for _ in range(2))
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=True, dtype=double)
        self.gate, self.feed_gate = (nn.Linear(WIDTH, WIDTH, dtype=double) for _ in range(2))
        self.swish, self.up = (nn.Linear(WIDTH, INNER, bias=False, dtype=double) for _ in range(2))
        self.down = nn.Linear(INNER, WIDTH, bias=False, dtype=double)
        attention = self.attention
        self.weights: list[Tensor] = [
            *self.attention_norm.parameters(),
            attention.in_proj_weight,
            attention.in_proj_bias,
            *attention.out_proj.parameters(),
            *self.gate.parameters(),
            *self.feed_norm.parameters(),
            *(part.weight for part in (self.swish, self.up, self.down)),
            *self.feed_gate.parameters(),
        ]

    def forward(self, x: Tensor) -> Tensor:
        normed, length = self.attention_norm(x), x.shape[1]
        future = torch.tensor([[key > query for key in range(length)] for query in range(length)])
        mixed, _ = self.attention(normed, normed, normed, attn_mask=future, need_weights=False)
        x = x + torch.sigmoid(self.gate(x)) * mixed
        h = self.feed_norm(x)
        inner = self.down(nn.functional.silu(self.swish(h)) * self.up(h))
        y: Tensor = x + torch.sigmoid(self.feed_gate(x)) * inner
        return y


@pytest.mark.parametrize(("layers", "heads"), SHAPES)
@pytest.mark.parametrize("length", [1, HISTORY])
def test_encode_is_layers_of_torchs_modules(layers: int, heads: int, length: int) -> None:
    backbone = make_esasrec(layers, heads)
    parameters, x = make_parameters(backbone), normal(5, 3, length, WIDTH)
    position = nn.Embedding(HISTORY, WIDTH, dtype=torch.float64)
    first, last = (nn.LayerNorm(WIDTH, dtype=torch.float64) for _ in range(2))
    stack = [TorchLayer(heads) for _ in range(layers)]
    load(
        [
            position.weight,
            *first.parameters(),
            *(weight for layer in stack for weight in layer.weights),
            *last.parameters(),
        ],
        parameters,
    )
    h = first(x + position(torch.arange(length)))
    for layer in stack:
        h = layer(h)
    assert distance(backbone.encode(parameters, x, None), last(h)) < EXACT


def test_sizes_by_hand() -> None:
    """d = 8, inner = 10, history 7. Positions 56, two norms 32. A layer: attention 4*64 + 32, its
    norm 16, the feed-forward norm 16, SwiGLU 3*80; with gates 2*72 more; with GELU 80 less."""
    layer = 288 + 16 + 16 + 240 + 144
    assert make_esasrec(1).n_parameters == 88 + layer
    assert make_esasrec(3).n_parameters == 88 + 3 * layer
    assert make_esasrec(1, options={"gated": False}).n_parameters == 88 + layer - 144
    assert make_esasrec(1, options={"feed_forward": "gelu"}).n_parameters == 88 + layer - 80
    masks = drawn(make_esasrec(2, 4, 0.2), 10, 7)
    assert len(masks) == 10 * (6 * 8 + 2 * (4 * 6 * 6 + 2 * 6 * 8))


def test_a_gate_starts_at_one_half() -> None:
    backbone = make_esasrec(2)
    for name, weight in backbone.named(backbone.initial(seeded(1))).items():
        if name.endswith("norm_weight"):
            assert (weight == 1).all(), name
        elif name.endswith("bias"):
            assert not weight.any(), name
        else:
            assert 0.01 < float(weight.std()) < 0.03, name
