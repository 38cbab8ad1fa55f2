"""The recommender whole: what lies where in theta, losses on real rows, scores of histories."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from td3engine.config import BackboneConfig, Mode
from td3engine.inner_loop.learner import recommender
from td3engine.losses.cross_entropy import cross_entropy
from td3engine.models import trained_model
from td3engine.models.backbones.sasrec import SASRec
from td3engine.models.recommender import Recommender, StepRandomness
from td3engine.models.trained_model import TrainedModel
from td3engine.models.training_loss import real_loss, unseen_loss
from tests.td3engine.biased import BiasedSASRec
from tests.td3engine.oracles import Textbook, distance, leaves, normal, seeded

WIDTH, ITEMS, HISTORY = 4, 9, 6
EXACT = 1e-10
KINDS: list[tuple[Mode, bool]] = [
    ("shared-items", False),
    ("shared-items", True),
    ("from-scratch", False),
    ("from-scratch", True),
]
kinds = pytest.mark.parametrize(("mode", "biased"), KINDS)


def make_backbone(biased: bool = False, dropout: float = 0.4) -> SASRec:
    config = BackboneConfig(hidden=WIDTH, inner=5, heads=2, layers=2, dropout=dropout)
    return (BiasedSASRec if biased else SASRec)(config, HISTORY)


def make(mode: Mode, biased: bool) -> tuple[Recommender, Textbook, Tensor]:
    """A recommender, its definition, and a theta with no number at zero."""
    backbone, V = make_backbone(biased), normal(0, ITEMS, WIDTH)
    model = recommender(backbone, V, mode)
    size = backbone.n_parameters
    initial = model.initial(seeded(1)).double()
    theta = initial + normal(2, len(initial), std=0.4)
    return model, Textbook(backbone.encode, size, V, mode == "from-scratch", biased), theta


@kinds
def test_theta_holds_what_is_trained(mode: Mode, biased: bool) -> None:
    model, textbook, theta = make(mode, biased)
    trained = (mode == "from-scratch") * ITEMS * WIDTH + biased * ITEMS
    assert model.n_parameters == len(theta) == textbook.size + trained
    encoder, table = model.parts(theta)
    wanted_encoder, E, b = textbook.parts(theta)
    assert torch.equal(encoder, wanted_encoder)
    assert torch.equal(table[:, :WIDTH], E)
    assert table.shape == (ITEMS, WIDTH + biased)
    assert not biased or torch.equal(table[:, WIDTH], b)


@kinds
def test_fresh_theta(mode: Mode, biased: bool) -> None:
    """By the generator alone: the backbone's own start, E from N(0, 0.02^2), b zero."""
    backbone = make_backbone(biased)
    model = recommender(backbone, normal(0, 400, WIDTH).float(), mode)
    one, same, other = (model.initial(seeded(seed)) for seed in (1, 1, 2))
    assert one.dtype == torch.float32
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    encoder, table = model.parts(one)
    assert torch.equal(encoder, backbone.initial(seeded(1)))
    assert not biased or not table[:, WIDTH].any()
    if mode == "from-scratch":
        assert float(table[:, :WIDTH].std()) == pytest.approx(0.02, rel=0.1)
        assert abs(float(table[:, :WIDTH].mean())) < 0.002
    given = torch.arange(backbone.n_parameters).float()
    kept, drawn = model.parts(model.with_table(given, seeded(3)))
    assert torch.equal(kept, given)
    assert mode == "shared-items" or not torch.equal(drawn[:, :WIDTH], table[:, :WIDTH])


@pytest.mark.parametrize("biased", [False, True])
def test_cross_entropy_of_real_items(biased: bool) -> None:
    """Values and gradients of torch's own, over logits h E^T + b."""
    h, E, b = leaves(normal(0, 7, WIDTH), normal(1, ITEMS, WIDTH), normal(2, ITEMS))
    items = torch.tensor([0, 8, 3, 3, 5, 1, 7])
    inputs = [h, E, b] if biased else [h, E]
    table = torch.cat([E, b[:, None]], 1) if biased else E
    states = torch.cat([h, torch.ones(7, 1).double()], 1) if biased else h
    found = cross_entropy(states, table[items], table)
    wanted = functional.cross_entropy(h @ E.T + (b if biased else 0), items, reduction="none")
    assert distance(found, wanted) < EXACT
    weights = normal(3, 7)
    ours, theirs = (torch.autograd.grad(each, inputs, weights) for each in (found, wanted))
    for got, want in zip(ours, theirs, strict=True):
        assert distance(got, want) < EXACT


def padded(rows: list[Tensor], fill: int = 0) -> tuple[Tensor, Tensor]:
    items = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
    return items, torch.tensor([len(row) for row in rows])


def some_rows(*lengths: int) -> list[Tensor]:
    return [
        torch.randint(ITEMS, (length,), generator=seeded(nth)) for nth, length in enumerate(lengths)
    ]


@kinds
@pytest.mark.parametrize("lengths", [(2, 7, 4, 2, 5), (3, 3, 3), (7, 2), (2,)])
def test_real_loss_is_the_mean_over_events_of_rows_one_by_one(
    mode: Mode, biased: bool, lengths: tuple[int, ...]
) -> None:
    """Right-padded together, or each alone and without a pad: value and gradient."""
    model, textbook, theta = make(mode, biased)
    (theta,) = leaves(theta)
    rows = some_rows(*lengths)
    items, sizes = padded(rows)
    randomness = StepRandomness(model.backbone.draw_targets(sizes, seeded(0)), None)
    found, wanted = (
        real_loss(model, theta, items, sizes, randomness),
        textbook.real_loss(theta, rows),
    )
    assert distance(found, wanted) < EXACT
    ours, theirs = (torch.autograd.grad(each, theta)[0] for each in (found, wanted))
    assert distance(ours, theirs) < EXACT
    other_pad, _ = padded(rows, fill=5)
    assert torch.equal(real_loss(model, theta, other_pad, sizes, randomness), found)


@kinds
@pytest.mark.parametrize("lengths", [(2, 7, 4, 2, 5), (3, 3, 3), (7, 3)])
def test_unseen_loss_is_the_mean_over_rows_one_by_one(
    mode: Mode, biased: bool, lengths: tuple[int, ...]
) -> None:
    """Each event that is new in its row, among the items that are: value and gradient; pads, which
    are items too, are no part of it. Some rows do repeat themselves."""
    model, textbook, theta = make(mode, biased)
    (theta,) = leaves(theta)
    rows = some_rows(*lengths)
    rows[0][1] = rows[0][0]
    rows[1][2] = rows[1][0]
    items, sizes = padded(rows)
    randomness = StepRandomness(model.backbone.draw_targets(sizes, seeded(0)), None)
    found = unseen_loss(model, theta, items, sizes, randomness)
    wanted = textbook.real_loss(theta, rows, unseen=True)
    assert distance(found, wanted) < EXACT
    ours, theirs = (torch.autograd.grad(each, theta)[0] for each in (found, wanted))
    assert distance(ours, theirs) < EXACT
    assert distance(found, textbook.real_loss(theta, rows)) > 1e-3
    other_pad, _ = padded(rows, fill=5)
    assert torch.equal(unseen_loss(model, theta, other_pad, sizes, randomness), found)


def test_unseen_loss_where_nothing_is_new_is_zero() -> None:
    model, _, theta = make("from-scratch", False)
    (theta,) = leaves(theta)
    items, sizes = padded([torch.tensor([3, 3, 3])])
    found = unseen_loss(
        model,
        theta,
        items,
        sizes,
        StepRandomness(model.backbone.draw_targets(sizes, seeded(0)), None),
    )
    assert float(found.detach()) == 0
    assert not torch.autograd.grad(found, theta)[0].any()


def test_unseen_loss_in_float32_where_the_seen_items_have_it_all() -> None:
    """The last item is certain by its score, but was had before: the rest share next to nothing,
    and loss and gradient are finite."""
    model, _, theta = make("shared-items", False)
    V = model.frozen
    assert V is not None
    sharp = Recommender.sharing(model.backbone, (V * 60).float())
    items, sizes = padded(some_rows(7, 7, 7))
    (theta,) = leaves(theta.float())
    randomness = StepRandomness(model.backbone.draw_targets(sizes, seeded(0)), None)
    found = unseen_loss(sharp, theta, items, sizes, randomness)
    assert torch.isfinite(found)
    assert torch.isfinite(torch.autograd.grad(found, theta)[0]).all()


def test_real_draws_are_the_generators_and_fit_the_longest_row() -> None:
    model, _, theta = make("from-scratch", False)
    items, lengths = padded(some_rows(3, 6, 2))
    one, same, other = (model.sample_randomness(lengths, seeded(seed)) for seed in (1, 1, 2))
    assert one.dropout is not None
    wanted = model.backbone.dropout(3, 6, seeded(1))
    assert wanted is not None
    assert torch.equal(one.dropout, wanted)
    assert one.targets.rows.tolist() == [0, 0, 1, 1, 1, 1, 1, 2]
    assert one.targets.at.tolist() == [1, 2, 1, 2, 3, 4, 5, 1]
    losses = [
        real_loss(model, theta, items, lengths, randomness) for randomness in (one, same, other)
    ]
    assert losses[0] == losses[1] != losses[2]
    plain = real_loss(model, theta, items, lengths, StepRandomness(one.targets, None))
    assert plain not in losses


@kinds
@pytest.mark.parametrize("at_once", [1, 2, 3, 1000])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 0, 4, 1, 2]])
def test_scores_do_not_depend_on_how_rows_are_chunked(
    mode: Mode, biased: bool, at_once: int, order: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row without pads, h E^T + b; together in any order, sorted, cut and padded wide."""
    monkeypatch.setattr(trained_model, "ENCODED_AT_ONCE", at_once)
    model, textbook, theta = make(mode, biased)
    encoder, table = model.parts(theta)
    _, E, b = textbook.parts(theta)
    rows = [some_rows(4, 1, 6, 2, 6, 3)[nth] for nth in order]
    items, lengths = padded(rows)
    wide = functional.pad(items, (0, 3), value=7)  # wider than the longest, and than it can read
    for given in (items, wide):
        states = TrainedModel(model.backbone, encoder, table).states(given, lengths)
        for state, row in zip(states, rows, strict=True):
            hidden = textbook.encode(encoder, E[row][None], None)[0, -1]
            assert distance(table @ state, E @ hidden + b) < EXACT
