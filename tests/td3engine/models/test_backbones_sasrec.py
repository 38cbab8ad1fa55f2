"""SASRec against two models that share no code with it: torch's own modules, and plain loops."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from td3engine.config import BackboneConfig
from td3engine.models import trained_model
from td3engine.models.backbones.sasrec import SASRec
from td3engine.models.trained_model import TrainedModel
from tests.td3engine.models.backbone_kit import (
    EXACT,
    HISTORY,
    WIDTH,
    Pieces,
    drawn,
    load,
    make_config,
    make_parameters,
    rows_taken,
    same_values_and_gradients,
    slow_transform,
)
from tests.td3engine.oracles import distance, normal, seeded

SHAPES = [(1, 1), (1, 2), (2, 1), (2, 4)]


def make_sasrec(layers: int = 1, heads: int = 1, dropout: float = 0.0) -> SASRec:
    return SASRec(make_config("sasrec", layers, heads, dropout), HISTORY)


class TorchSASRec(nn.Module):
    """Built of torch's modules. `weights` is in the flat vector's order."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        d, self.weights = config.hidden, list[Tensor]()
        self.position = nn.Embedding(HISTORY, d, dtype=torch.float64)
        self.norm = nn.LayerNorm(d, dtype=torch.float64)
        self.weights += [self.position.weight, self.norm.weight, self.norm.bias]
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            layer = nn.TransformerEncoderLayer(
                d, config.heads, config.inner, dropout=0.0, activation="gelu",
                batch_first=True, norm_first=False, dtype=torch.float64,
            )  # fmt: skip
            attention = layer.self_attn
            self.weights += [attention.in_proj_weight, attention.in_proj_bias]
            self.weights += [attention.out_proj.weight, attention.out_proj.bias]
            for part in (layer.norm1, layer.linear1, layer.linear2, layer.norm2):
                self.weights += [part.weight, part.bias]
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        x = self.norm(x + self.position(torch.arange(length)))
        # True: this position may not be read.
        future = torch.tensor([[key > query for key in range(length)] for query in range(length)])
        for layer in self.layers:
            x = layer(x, src_mask=future)
        return x


@pytest.mark.parametrize(("layers", "heads"), SHAPES)
@pytest.mark.parametrize("length", [2, HISTORY])
def test_encode_is_torchs_transformer(layers: int, heads: int, length: int) -> None:
    backbone = make_sasrec(layers, heads)
    reference = TorchSASRec(make_config("sasrec", layers, heads))
    same_values_and_gradients(
        lambda parameters, x: backbone.encode(parameters, x, None),
        reference,
        reference.weights,
        make_parameters(backbone),
        normal(5, 3, length, WIDTH),
    )


def test_one_event_is_torchs_transformer() -> None:
    backbone, reference = make_sasrec(2, 2), TorchSASRec(make_config("sasrec", 2, 2))
    parameters, x = make_parameters(backbone), normal(5, 3, 1, WIDTH)
    load(reference.weights, parameters)
    assert distance(backbone.encode(parameters, x, None), reference(x)) < EXACT


def slow_encode(config: BackboneConfig, parameters: Tensor, x: Tensor, masks: Tensor) -> Tensor:
    weights, drops = Pieces(parameters), Pieces(masks)
    position = weights.take(HISTORY, config.hidden)
    found = slow_transform(
        config, weights, drops, x + position[: x.shape[1]], lambda _, i: range(i + 1)
    )
    weights.done()
    drops.done()
    return found


@pytest.mark.parametrize(("layers", "heads"), SHAPES)
def test_encode_with_dropout_in_loops(layers: int, heads: int) -> None:
    backbone = make_sasrec(layers, heads, dropout=0.4)
    parameters, x = make_parameters(backbone), normal(5, 2, 4, WIDTH)
    masks = drawn(backbone, 2, 5)
    found = backbone.encode(parameters, x, masks)
    wanted = slow_encode(make_config("sasrec", layers, heads), parameters, x, masks.double())
    # The masks are float32: 1 / (1 - 0.4) is the same rounded number on both sides.
    assert distance(found, wanted) < EXACT
    assert distance(found, backbone.encode(parameters, x, None)) > 0.01
    kept = backbone.encode(parameters, x, torch.ones_like(masks))
    assert distance(kept, backbone.encode(parameters, x, None)) < EXACT


@pytest.mark.parametrize("place", range(HISTORY))
def test_a_later_position_changes_nothing_earlier(place: int) -> None:
    backbone = make_sasrec(2, 2)
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
    backbone = make_sasrec(2, 2)
    parameters, x = make_parameters(backbone), normal(5, 3, HISTORY, WIDTH)
    alone = backbone.encode(parameters, x[:, :length], None)
    assert distance(backbone.encode(parameters, x, None)[:, :length], alone) < EXACT


def test_order_matters() -> None:
    """The position table is used: the same items in another order end in another state."""
    backbone = make_sasrec()
    parameters, x = make_parameters(backbone), normal(5, 1, HISTORY, WIDTH)
    swapped = x[:, [1, 0, *range(2, HISTORY)]]
    one, other = (backbone.encode(parameters, each, None)[:, -1] for each in (x, swapped))
    assert distance(one, other) > 1e-3


def test_more_positions_than_it_has_are_an_error() -> None:
    backbone = make_sasrec()
    with pytest.raises(RuntimeError):
        backbone.encode(make_parameters(backbone), normal(5, 1, HISTORY + 1, WIDTH), None)


def test_the_number_of_masks_by_hand() -> None:
    """Of rows of 7 events 6 positions are encoded.

    Input (10, 6, 8) = 480; a layer: attention (10, 4, 6, 6) = 1440 and twice 480.
    """
    masks = drawn(make_sasrec(layers=2, heads=4, dropout=0.1), 10, 7)
    assert len(masks) == 480 + 2 * (1440 + 2 * 480)


def test_the_number_of_parameters_by_hand() -> None:
    """d = 8, inner = 10, history = 7.

    Positions 7*8 = 56, input norm 16. A layer: qkv 24*8 + 24 = 216, out 64 + 8 = 72, norm 16,
    up 80 + 10 = 90, down 80 + 8 = 88, norm 16; together 498.
    """
    assert make_sasrec(layers=1, heads=2).n_parameters == 56 + 16 + 498
    assert make_sasrec(layers=3, heads=1).n_parameters == 56 + 16 + 3 * 498
    assert len(make_sasrec(layers=3).initial(seeded(0))) == 56 + 16 + 3 * 498


def test_initial_parameters() -> None:
    """Norms start as identity, biases at zero, the rest at N(0, 0.02^2)."""
    module = TorchSASRec(make_config("sasrec", layers=2))
    load(module.weights, make_sasrec(layers=2).initial(seeded(1)))
    rest = []
    for name, weight in module.named_parameters():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        else:
            rest.append(weight.detach().flatten())
    everything = torch.cat(rest)
    # Positions 56 and, of each layer, 24*8 + 64 + 80 + 80 = 416.
    assert len(everything) == 56 + 2 * 416
    assert abs(float(everything.std()) / 0.02 - 1) < 0.1
    assert abs(float(everything.mean())) < 0.003


@pytest.mark.parametrize(("rows", "pairs"), [(2, 10_000), (100, 2 * HISTORY**2), (100, 1)])
def test_the_scorer_reads_the_last_real_event(
    rows: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded rows in chunks, of few rows or of little attention, give what each history gives
    alone, without pads."""
    monkeypatch.setattr(trained_model, "ENCODED_AT_ONCE", rows)
    monkeypatch.setattr(trained_model, "ATTENDED_AT_ONCE", pairs)
    backbone = make_sasrec(2, 2, dropout=0.5)
    parameters, table = make_parameters(backbone), normal(7, 12, WIDTH)
    histories = [[3], [1, 2, 3, 4, 5, 6, 7], [11, 0], [0, 0, 0], [5, 4, 3, 2]]
    items = torch.zeros(5, HISTORY, dtype=torch.int64)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
    lengths = torch.tensor([len(history) for history in histories])
    taken = rows_taken(backbone, monkeypatch)
    found = TrainedModel(backbone, parameters, table).states(items, lengths)
    assert max(taken) == min(rows, max(1, pairs // HISTORY**2))
    alone = [
        backbone.encode(parameters, table[None, history], None)[0, -1] for history in histories
    ]
    assert distance(found, torch.stack(alone)) < EXACT
    assert functional.cosine_similarity(found[2], found[3], dim=0) < 0.999  # they are not all alike
