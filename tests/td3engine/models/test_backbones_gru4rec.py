"""GRU4Rec against torch's own modules, and against the equations of a GRU in plain loops."""

import pytest
import torch
from torch import Tensor, nn

from td3engine.config import BackboneConfig
from td3engine.models.backbones.gru4rec import GRU4Rec
from tests.td3engine.models.backbone_kit import (
    EXACT,
    HISTORY,
    INNER,
    WIDTH,
    Pieces,
    drawn,
    make_config,
    make_parameters,
    same_values_and_gradients,
)
from tests.td3engine.oracles import distance, normal, seeded


def make_gru4rec(layers: int = 1, dropout: float = 0.0) -> GRU4Rec:
    return GRU4Rec(make_config("gru4rec", layers, dropout=dropout), HISTORY)


class TorchGRU4Rec(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        d, inner = config.hidden, config.inner
        self.gru = nn.GRU(d, inner, config.layers, batch_first=True, dtype=torch.float64)
        self.out = nn.Linear(inner, d, dtype=torch.float64)
        self.weights = [*self.gru.parameters(), self.out.weight, self.out.bias]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.gru(x)[0])
        return found


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("length", [2, HISTORY])
def test_encode_is_torchs_gru(layers: int, length: int) -> None:
    backbone, reference = make_gru4rec(layers), TorchGRU4Rec(make_config("gru4rec", layers))
    same_values_and_gradients(
        lambda parameters, x: backbone.encode(parameters, x, None),
        reference,
        reference.weights,
        make_parameters(backbone),
        normal(5, 3, length, WIDTH),
    )


def slow_encode(config: BackboneConfig, parameters: Tensor, x: Tensor, masks: Tensor) -> Tensor:
    """By the equations of a GRU, with dropout on the input alone."""
    weights, inner = Pieces(parameters), config.inner
    h = [list(row) for row in x * masks.view(x.shape)]
    for _ in range(config.layers):
        wide = len(h[0][0])
        to_r, to_z, to_n = weights.take(3, inner, wide)
        from_r, from_z, from_n = weights.take(3, inner, inner)
        r_bias, z_bias, n_bias = weights.take(3, inner)
        r_state_bias, z_state_bias, n_state_bias = weights.take(3, inner)
        for row in h:
            state = torch.zeros(inner, dtype=x.dtype)
            for at, event in enumerate(row):
                r = torch.sigmoid(to_r @ event + r_bias + from_r @ state + r_state_bias)
                z = torch.sigmoid(to_z @ event + z_bias + from_z @ state + z_state_bias)
                n = torch.tanh(to_n @ event + n_bias + r * (from_n @ state + n_state_bias))
                state = (1 - z) * n + z * state
                row[at] = state
    out, out_bias = weights.take(config.hidden, inner), weights.take(config.hidden)
    weights.done()
    return torch.stack([torch.stack([out @ state + out_bias for state in row]) for row in h])


@pytest.mark.parametrize("layers", [1, 2])
def test_encode_with_dropout_in_loops(layers: int) -> None:
    backbone = make_gru4rec(layers, dropout=0.4)
    parameters, x = make_parameters(backbone), normal(5, 2, 5, WIDTH)
    masks = drawn(backbone, 2, 6)
    found = backbone.encode(parameters, x, masks)
    wanted = slow_encode(backbone.config, parameters, x, masks.double())
    assert distance(found, wanted) < EXACT
    assert distance(found, backbone.encode(parameters, x, None)) > 0.01


def test_sizes_by_hand() -> None:
    """d = 8, inner = 10: a first layer 30*8 + 30*10 + 60 = 600, another 2*30*10 + 60 = 660, out
    80 + 8; and a mask for each number of the 6 events that rows of 7 read."""
    assert make_gru4rec(1).n_parameters == 600 + 88
    assert make_gru4rec(3).n_parameters == 600 + 2 * 660 + 88
    assert len(drawn(make_gru4rec(3, dropout=0.2), 10, 7)) == 10 * 6 * 8


def test_initial_parameters() -> None:
    """Biases at zero, matrices uniform within Xavier's bound and up to it."""
    backbone = make_gru4rec(2)
    named = backbone.named(backbone.initial(seeded(1)))
    for name, weight in named.items():
        if name.endswith("bias"):
            assert not weight.any(), name
        else:
            bound = (6 / sum(weight.shape)) ** 0.5
            assert 0.9 * bound < float(weight.abs().max()) <= bound, name
            assert abs(float(weight.std()) / (bound / 3**0.5) - 1) < 0.15, name
            assert abs(float(weight.mean())) < 0.15 * bound, name
    assert named["1_state"].shape == (3 * INNER, INNER)
