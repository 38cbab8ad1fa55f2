"""HSTU against loops over positions and heads, and by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from td3engine.config import BackboneConfig
from td3engine.models.backbones.hstu import HSTU
from tests.td3engine.models.backbone_kit import (
    EXACT,
    HISTORY,
    WIDTH,
    Pieces,
    drawn,
    make_config,
    make_parameters,
    same_derivatives,
    slow_norm,
)
from tests.td3engine.oracles import distance, normal

SHAPES = [(1, 1), (1, 2), (2, 4)]
OPTIONS: list[dict[str, Any]] = [{}, {"positions": "relative"}]


def make_hstu(
    layers: int = 1, heads: int = 1, dropout: float = 0.0, options: dict[str, Any] | None = None
) -> HSTU:
    config = make_config("hstu", layers, heads, dropout)
    return HSTU(config.model_copy(update={"options": options or {}}), HISTORY)


def slow_silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def slow_encode(config: BackboneConfig, parameters: Tensor, x: Tensor, masks: Tensor) -> Tensor:
    """One row, position and head after the other."""
    weights, drops = Pieces(parameters), Pieces(masks)
    rows, length, d = x.shape
    first_norm = weights.take(d), weights.take(d)
    absolute = config.options.get("positions", "both") == "both"
    position = weights.take(HISTORY, d) if absolute else torch.zeros(HISTORY, d)
    at = [(row, t) for row in range(rows) for t in range(length)]
    keep = drops.take(rows, length, d)
    h = {(r, t): slow_norm(x[r, t] + position[t], *first_norm) * keep[r, t] for r, t in at}
    for _ in range(config.layers):
        layer_norm = weights.take(d), weights.take(d)
        into = weights.take(4, d, d)
        bias = weights.take(HISTORY)
        mixed_norm = weights.take(d), weights.take(d)
        out, out_bias = weights.take(d, d), weights.take(d)
        keep = drops.take(rows, length, d)
        normed = {each: slow_norm(h[each], *layer_norm) for each in at}
        u, v, q, k = ({each: slow_silu(into[i] @ normed[each]) for each in at} for i in range(4))
        added = {}
        for row, t in at:
            heads = []
            for own in torch.arange(d).split(d // config.heads):
                mixed = torch.zeros(len(own))
                for j in range(t + 1):
                    score = q[row, t][own] @ k[row, j][own] + bias[t - j]
                    mixed = mixed + slow_silu(score) / (t + 1) * v[row, j][own]
                heads.append(mixed)
            gated = slow_norm(torch.cat(heads), *mixed_norm) * u[row, t]
            added[row, t] = out @ (gated * keep[row, t]) + out_bias
        h = {each: h[each] + added[each] for each in at}
    last_norm = weights.take(d), weights.take(d)
    weights.done()
    drops.done()
    return torch.stack([slow_norm(h[each], *last_norm) for each in at]).view(x.shape)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("layers", "heads"), SHAPES)
def test_encode_and_its_derivatives_are_the_slow_loops(
    layers: int, heads: int, options: dict[str, Any]
) -> None:
    backbone = make_hstu(layers, heads, options=options)
    ones = torch.ones(2 * 3 * WIDTH * (1 + layers))
    same_derivatives(
        lambda parameters, x: backbone.encode(parameters, x, None),
        lambda parameters, x: slow_encode(backbone.config, parameters, x, ones),
        make_parameters(backbone),
        normal(5, 2, 3, WIDTH),
    )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("length", [1, 4, HISTORY])
def test_dropout_falls_where_the_slow_loop_has_it(length: int, options: dict[str, Any]) -> None:
    backbone = make_hstu(2, 2, 0.4, options)
    parameters, x = make_parameters(backbone), normal(5, 2, length, WIDTH)
    masks = drawn(backbone, 2, length + 1).double()
    states = backbone.encode(parameters, x, masks)
    assert distance(states, slow_encode(backbone.config, parameters, x, masks)) < EXACT
    assert distance(states, backbone.encode(parameters, x, None)) > 0.01


def test_without_positions_a_row_may_begin_anywhere() -> None:
    """The bias sees distances alone: with the same events twice in a row of weights that only reach
    one event back, the second half repeats the first."""
    backbone = make_hstu(1, 1, options={"positions": "relative"})
    parameters = make_parameters(backbone)
    # The bias closes the gate of silu for all distances above one.
    backbone.named(parameters)["0_distance"][2:] = -1e6
    x = normal(5, 1, 3, WIDTH)
    states = backbone.encode(parameters, torch.cat([x, x], 1), None)
    # Mixed values are layer-normed, so dividing by 3 or by 6 events matters by epsilon alone.
    assert distance(states[:, 2], states[:, 5]) < 1e-2
    assert distance(states[:, 0], states[:, 3]) > 0.1


def test_weights_are_not_normalised_by_their_sum() -> None:
    """Attention to one event more changes the scale of the mixed values, not their softmax."""
    backbone = make_hstu()
    parameters = make_parameters(backbone)
    p = backbone.named(parameters)
    p["0_distance"][:] = -1e6  # silu is zero there: nothing is attended to
    x = normal(5, 1, 4, WIDTH)
    states = backbone.encode(parameters, x, None)
    p["0_uvqk"][WIDTH:] = 0.0  # no values, queries or keys
    assert distance(backbone.encode(parameters, x, None), states) < EXACT


def test_sizes_by_hand() -> None:
    """d = 8, history 7. Two norms 32, positions 56; a layer: norms 32, maps 5*64 + 8, bias 7."""
    assert make_hstu(1).n_parameters == 32 + 56 + 367
    assert make_hstu(3, options={"positions": "relative"}).n_parameters == 32 + 3 * 367
    assert len(drawn(make_hstu(2, dropout=0.2), 10, 7)) == 3 * 10 * 6 * 8
