"""NARM against the published model: torch's modules on one prefix at a time."""

import pytest
import torch
from torch import Tensor, nn

from td3engine.config import BackboneConfig
from td3engine.models.backbones.narm import BLOCK, NARM
from tests.td3engine.models.backbone_kit import (
    EXACT,
    WIDTH,
    drawn,
    load,
    make_config,
    make_parameters,
    same_values_and_gradients,
)
from tests.td3engine.oracles import distance, normal, seeded

LONG = 2 * BLOCK + 3  # two full blocks and a part of one


def make_narm(layers: int = 1, dropout: float = 0.0) -> NARM:
    return NARM(make_config("narm", layers, dropout=dropout), LONG)


class TorchNARM(nn.Module):
    """Reads a prefix and predicts once, as published; here one prefix after the other."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        d, inner = config.hidden, config.inner
        self.gru = nn.GRU(d, inner, config.layers, batch_first=True, dtype=torch.float64)
        self.current = nn.Linear(inner, inner, bias=False, dtype=torch.float64)
        self.state = nn.Linear(inner, inner, bias=False, dtype=torch.float64)
        self.fit = nn.Linear(inner, 1, bias=False, dtype=torch.float64)
        self.out = nn.Linear(2 * inner, d, bias=False, dtype=torch.float64)
        linears = self.current, self.state, self.fit, self.out
        self.weights = [*self.gru.parameters(), *(each.weight for each in linears)]

    def forward(self, x: Tensor, both_mask: Tensor | None = None) -> Tensor:
        """(B, L, d); `both_mask` (B, L, 2 inner) is the dropout before the last map."""
        found = []
        for row, events in enumerate(x):
            for at in range(len(events)):
                h = self.gru(events[None, : at + 1])[0][0]
                local = torch.zeros_like(h[at])
                for state in h:
                    fit = self.fit(torch.sigmoid(self.current(h[at]) + self.state(state)))
                    local = local + fit * state
                both = torch.cat([local, h[at]])
                found.append(self.out(both if both_mask is None else both * both_mask[row, at]))
        return torch.stack(found).view_as(x)


@pytest.mark.parametrize(
    ("layers", "length"), [(1, 1), (2, 2), (1, BLOCK), (1, BLOCK + 1), (2, LONG)]
)
def test_encode_is_the_published_model_on_every_prefix(layers: int, length: int) -> None:
    backbone, reference = make_narm(layers), TorchNARM(make_config("narm", layers))
    parameters, x = make_parameters(backbone), normal(5, 2, length, WIDTH)
    load(reference.weights, parameters)
    assert distance(backbone.encode(parameters, x, None), reference(x)) < EXACT


def test_gradients_are_those_of_the_published_model() -> None:
    backbone, reference = make_narm(2), TorchNARM(make_config("narm", 2))
    same_values_and_gradients(
        lambda parameters, x: backbone.encode(parameters, x, None),
        reference,
        reference.weights,
        make_parameters(backbone),
        normal(5, 2, BLOCK + 2, WIDTH),
    )


def test_dropout_falls_on_the_input_and_before_the_last_map() -> None:
    backbone, reference = make_narm(dropout=0.4), TorchNARM(make_config("narm"))
    parameters, x = make_parameters(backbone), normal(5, 2, 5, WIDTH)
    masks = drawn(backbone, 2, 6)
    load(reference.weights, parameters)
    inner = backbone.config.inner
    input_mask, both_mask = masks.double().split([2 * 5 * WIDTH, 2 * 5 * 2 * inner])
    wanted = reference(x * input_mask.view_as(x), both_mask.view(2, 5, 2 * inner))
    found = backbone.encode(parameters, x, masks)
    assert distance(found, wanted) < EXACT
    assert distance(found, backbone.encode(parameters, x, None)) > 0.01


def test_the_last_state_is_encodes() -> None:
    """`last` attends from one position only, and pays no heed to padding."""
    backbone = make_narm(2)
    parameters, x = make_parameters(backbone), normal(5, 4, LONG, WIDTH)
    lengths = torch.tensor([LONG, 1, BLOCK, 14])
    everything = backbone.encode(parameters, x, None)
    wanted = torch.stack([everything[row, length - 1] for row, length in enumerate(lengths)])
    assert distance(backbone.last(parameters, x, lengths), wanted) < EXACT


def test_the_weights_are_not_normalised() -> None:
    """The same state seen twice as often counts twice: no softmax over the states."""
    backbone = make_narm()
    parameters = torch.zeros(backbone.n_parameters, dtype=torch.float64)
    p = backbone.named(parameters)
    # Reset and update gates stay at 1/2 and the candidate at tanh(100) = 1: h_t = 1 - 2^-t.
    p["0_input_bias"][20:] = 100.0
    p["attention_out"][:] = 0.2  # ten units, each sigmoid(0) = 1/2: every alpha is one
    p["out"][0, 0] = 1.0  # the local encoder's first number
    found = backbone.encode(parameters, torch.zeros(1, 4, WIDTH, dtype=torch.float64), None)
    wanted = torch.tensor([0.5, 0.5 + 0.75, 0.5 + 0.75 + 0.875, 0.5 + 0.75 + 0.875 + 0.9375])
    assert distance(found[0, :, 0], wanted.double()) < EXACT


def test_sizes_by_hand() -> None:
    """d = 8, inner = 10: GRU 30*8 + 30*10 + 60 = 600 (another 660), A1 and A2 200, v 10, B 160."""
    assert make_narm(1).n_parameters == 600 + 370
    assert make_narm(2).n_parameters == 600 + 660 + 370
    assert len(drawn(make_narm(dropout=0.2), 10, 7)) == 10 * 6 * (8 + 20)


def test_initial_parameters() -> None:
    """Biases at zero, matrices uniform within Xavier's bound."""
    backbone = make_narm(2)
    for name, weight in backbone.named(backbone.initial(seeded(1))).items():
        if name.endswith("bias"):
            assert not weight.any(), name
        else:
            bound = (6 / sum(weight.shape)) ** 0.5
            assert 0.75 * bound < float(weight.abs().max()) <= bound, name
