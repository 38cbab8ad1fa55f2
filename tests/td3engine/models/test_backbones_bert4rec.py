"""BERT4Rec against torch's own modules and plain loops; what it may see; what it asks for."""

import pytest
import torch
from torch import Tensor, nn

from td3engine.config import BackboneConfig
from td3engine.models.backbone import TargetPositions
from td3engine.models.backbones.bert4rec import BERT4Rec
from tests.td3engine.models.backbone_kit import (
    EXACT,
    HISTORY,
    WIDTH,
    Pieces,
    ask,
    drawn,
    load,
    make_config,
    make_parameters,
    same_values_and_gradients,
    slow_gelu,
    slow_norm,
    slow_transform,
)
from tests.td3engine.oracles import distance, leaves, normal, seeded

SHAPES = [(1, 1), (1, 2), (2, 4)]
LENGTHS = torch.tensor([5, HISTORY + 1, 1, 3])
# Several of a row, none of row 3, an only event, one twice, and in no order.
ASKED = ask((1, 7), (0, 1), (0, 4), (2, 0), (0, 1), (1, 0))


def make_bert(layers: int = 1, heads: int = 1, dropout: float = 0.0) -> BERT4Rec:
    return BERT4Rec(make_config("bert4rec", layers, heads, dropout), HISTORY)


def make_events(seed: int = 5) -> Tensor:
    return normal(seed, len(LENGTHS), HISTORY + 1, WIDTH)


class TorchBERT4Rec(nn.Module):
    """Reads one row at a time, without its padding. `weights` is in the flat vector's order."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        d, self.weights = config.hidden, list[Tensor]()
        self.position = nn.Embedding(HISTORY + 1, d, dtype=torch.float64)
        self.mask = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        self.norm = nn.LayerNorm(d, dtype=torch.float64)
        self.weights += [self.position.weight, self.mask, self.norm.weight, self.norm.bias]
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            attention = nn.MultiheadAttention(
                d, config.heads, batch_first=True, dtype=torch.float64
            )
            first, last = (nn.LayerNorm(d, dtype=torch.float64) for _ in range(2))
            up = nn.Linear(d, config.inner, dtype=torch.float64)
            down = nn.Linear(config.inner, d, dtype=torch.float64)
            self.weights += [attention.in_proj_weight, attention.in_proj_bias]
            for part in (attention.out_proj, first, up, down, last):
                self.weights += [part.weight, part.bias]
            self.layers.append(nn.ModuleList([attention, first, up, down, last]))
        linear, norm = nn.Linear(d, d, dtype=torch.float64), nn.LayerNorm(d, dtype=torch.float64)
        self.head = nn.Sequential(linear, nn.GELU(), norm)
        self.weights += [linear.weight, linear.bias, norm.weight, norm.bias]

    def predict(self, events: Tensor, lengths: Tensor, asked: TargetPositions) -> Tensor:
        pairs = list(zip(asked.rows.tolist(), asked.at.tolist(), strict=True))
        found = []
        for row, at in pairs:
            seen = [
                self.mask if (row, place) in pairs else events[row, place]
                for place in range(int(lengths[row]))
            ]
            found.append(self(torch.stack(seen)[None])[0, at])
        return torch.stack(found)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.position(torch.arange(x.shape[1])))
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            attention, first, up, down, last = layer
            x = first(x + attention(x, x, x, need_weights=False)[0])
            x = last(x + down(nn.functional.gelu(up(x))))
        head: Tensor = self.head(x)
        return head


@pytest.mark.parametrize(("layers", "heads"), SHAPES)
def test_predict_is_torchs_transformer(layers: int, heads: int) -> None:
    backbone = make_bert(layers, heads)
    reference = TorchBERT4Rec(make_config("bert4rec", layers, heads))
    same_values_and_gradients(
        lambda parameters, x: backbone.predict(parameters, x, LENGTHS, ASKED, None),
        lambda x: reference.predict(x, LENGTHS, ASKED),
        reference.weights,
        make_parameters(backbone),
        make_events(),
    )


def test_last_puts_a_mask_after_each_row() -> None:
    backbone, reference = make_bert(2, 2), TorchBERT4Rec(make_config("bert4rec", 2, 2))
    parameters, events = make_parameters(backbone), normal(5, 3, HISTORY, WIDTH)
    lengths = [4, HISTORY, 1]
    load(reference.weights, parameters)
    wanted = [
        reference(torch.cat([events[row, :length], reference.mask[None]])[None])[0, length]
        for row, length in enumerate(lengths)
    ]
    found = backbone.last(parameters, events, torch.tensor(lengths))
    assert distance(found, torch.stack(wanted)) < EXACT


def test_predict_with_dropout_in_loops() -> None:
    backbone = make_bert(2, 2, dropout=0.4)
    parameters, events = make_parameters(backbone), make_events()
    masks = drawn(backbone, len(LENGTHS), HISTORY + 1)
    found = backbone.predict(parameters, events, LENGTHS, ASKED, masks)
    weights, drops = Pieces(parameters), Pieces(masks.double())
    position, mask = weights.take(HISTORY + 1, WIDTH), weights.take(WIDTH)
    seen = events.clone()
    for row, at in zip(ASKED.rows, ASKED.at, strict=True):
        seen[row, at] = mask
    hidden = slow_transform(
        backbone.config, weights, drops, seen + position, lambda row, _: range(int(LENGTHS[row]))
    )
    linear, bias = weights.take(WIDTH, WIDTH), weights.take(WIDTH)
    norm = weights.take(WIDTH), weights.take(WIDTH)
    weights.done()
    drops.done()
    wanted = [
        slow_norm(slow_gelu(linear @ hidden[row, at] + bias), *norm)
        for row, at in zip(ASKED.rows, ASKED.at, strict=True)
    ]
    assert distance(found, torch.stack(wanted)) < EXACT
    assert distance(found, backbone.predict(parameters, events, LENGTHS, ASKED, None)) > 0.01


def test_only_events_that_are_not_asked_for_are_seen() -> None:
    """The gradient of a row's states reaches just the events that the row shows."""
    backbone = make_bert(2, 2)
    hidden_from = torch.zeros(len(LENGTHS), HISTORY + 1, dtype=torch.bool)
    hidden_from[ASKED.rows, ASKED.at] = True
    inside = torch.arange(HISTORY + 1) < LENGTHS[:, None]
    for row in (0, 1, 2):
        (events,) = leaves(make_events())
        found = backbone.predict(make_parameters(backbone), events, LENGTHS, ASKED, None)
        own = found[ASKED.rows == row]
        (reached,) = torch.autograd.grad((own * normal(7, *own.shape)).sum(), events)
        wanted = inside & ~hidden_from
        wanted[torch.arange(len(LENGTHS)) != row] = False
        assert torch.equal(reached.abs().amax(-1) > 1e-9, wanted)
        assert not reached[~wanted].any()


def test_neither_padding_nor_answers_change_a_bit() -> None:
    backbone = make_bert(2, 2)
    parameters, events = make_parameters(backbone), make_events()
    changed = events.clone()
    hidden_from = torch.arange(HISTORY + 1) >= LENGTHS[:, None]
    hidden_from[ASKED.rows, ASKED.at] = True
    changed[hidden_from] = 1e3 * make_events(8)[hidden_from]
    before, after = (
        backbone.predict(parameters, each, LENGTHS, ASKED, None) for each in (events, changed)
    )
    assert torch.equal(before, after)
    shown = events.clone()
    shown[0, 0] += normal(6, WIDTH)
    moved = before - backbone.predict(parameters, shown, LENGTHS, ASKED, None)
    assert torch.equal(moved.abs().amax(-1) > 1e-9, ASKED.rows == 0)


def test_events_are_left_as_they_are() -> None:
    backbone, events = make_bert(), make_events()
    before = events.clone()
    backbone.predict(make_parameters(backbone), events, LENGTHS, ASKED, None)
    assert torch.equal(events, before)


def test_it_reads_the_future() -> None:
    """A changed last event changes what predicts the first: it is not causal."""
    backbone = make_bert()
    parameters, events = make_parameters(backbone), make_events()
    changed = events.clone()
    changed[1, HISTORY] += normal(6, WIDTH)
    first = ask((1, 0))
    one, other = (
        backbone.predict(parameters, each, LENGTHS, first, None) for each in (events, changed)
    )
    assert distance(one, other) > 1e-3


def test_more_events_than_it_has_positions_are_an_error() -> None:
    backbone = make_bert()
    events = normal(5, 1, HISTORY + 1, WIDTH)
    with pytest.raises(RuntimeError):
        backbone.last(make_parameters(backbone), events, torch.tensor([HISTORY + 1]))


@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_asked_follows_the_cloze_rule(length: int) -> None:
    """An event that is not the last is asked for by half of the rows with 0.2; the last one by the
    other half, by those with 0.2, and by those that would ask for nothing."""
    rows = 20_000
    asked = make_bert().draw_targets(torch.full((rows,), length), seeded(3))
    shares = torch.bincount(asked.at, minlength=length) / rows
    wanted = torch.full((length,), 0.5 * 0.2)
    wanted[-1] = 0.5 + 0.5 * (0.2 + 0.8**length)
    error = (wanted * (1 - wanted) / rows).sqrt()
    assert ((shares - wanted).abs() <= 4.5 * error).all()


def test_a_row_that_asks_for_its_last_event_by_rule_asks_for_no_other() -> None:
    """Else an inference-like row would hide events that inference shows."""
    rows, length = 20_000, 12
    asked = make_bert().draw_targets(torch.full((rows,), length), seeded(4))
    counts = torch.bincount(asked.rows, minlength=rows)
    alone = (counts[asked.rows] == 1) & (asked.at == length - 1)
    # Half by rule; of the others those that drew nothing, and those that drew the last alone.
    wanted = 0.5 + 0.5 * (0.8**12 + 0.2 * 0.8**11)
    assert abs(int(alone.sum()) / rows - wanted) < 4.5 * (wanted * (1 - wanted) / rows) ** 0.5


def test_asked_is_row_major_within_rows_and_the_generators() -> None:
    lengths = torch.arange(1, 30).repeat(4)
    asked, again, other = (make_bert().draw_targets(lengths, seeded(seed)) for seed in (1, 1, 2))
    assert asked.rows.dtype == asked.at.dtype == torch.int64
    pairs = list(zip(asked.rows.tolist(), asked.at.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    assert all(0 <= at < lengths[row] for row, at in pairs)
    assert {row for row, _ in pairs} == set(range(len(lengths)))
    assert torch.equal(asked.rows, again.rows)
    assert torch.equal(asked.at, again.at)
    assert pairs != list(zip(other.rows.tolist(), other.at.tolist(), strict=True))


def test_sizes_by_hand() -> None:
    """As SASRec (16 + 498 a layer), with positions 8*8 = 64, mask 8, head 64 + 8 + 16; masks for
    all 7 events of a row: input and twice a layer (10, 7, 8), attention (10, 4, 7, 7)."""
    assert make_bert(2, 2).n_parameters == 64 + 8 + 16 + 2 * 498 + 88
    masks = drawn(make_bert(2, 4, dropout=0.2), 10, 7)
    assert len(masks) == 560 + 2 * (1960 + 2 * 560)


def test_initial_parameters() -> None:
    backbone = make_bert()
    named = backbone.named(backbone.initial(seeded(1)))
    assert (named["head_norm_weight"] == 1).all()
    assert not named["head_norm_bias"].any()
    assert not named["head_bias"].any()
    for name in ("position", "mask", "head"):
        assert 0.005 < float(named[name].std()) < 0.04, name
