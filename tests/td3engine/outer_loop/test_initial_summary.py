"""The summary before distilling, against what its parts say they are."""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from td3engine.config import BackboneName, SummaryConfig
from td3engine.models.backbone import Backbone
from td3engine.models.registry import build_backbone
from td3engine.models.trained_model import TrainedModel
from td3engine.outer_loop.initial_summary import (
    factored,
    initial_summary,
    labelled,
    real_histories,
    teachers_labels,
)
from td3engine.runtime.seeding import Purpose, numpy_generator
from td3engine.summary.labelled import LabelledSummary, as_stored, pointing_queries
from td3engine.summary.packing import half, rounded
from td3engine.summary.tucker import TuckerSummary, query
from td3engine.teacher.training import TrainedOnLog
from tests.td3engine.models.backbone_kit import rows_taken
from tests.td3engine.oracles import default_double, distance, make_split, normal, seeded
from tests.td3engine.small import paper_config, small_config

USERS, LENGTH, ITEMS, WIDTH = 6, 5, 11, 4


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_double():
        yield


def teacher_of(backbone: Backbone, table: Tensor) -> TrainedOnLog:
    parameters = normal(8, backbone.n_parameters, std=0.3)
    model = TrainedModel(backbone, parameters, table)
    return TrainedOnLog(model, parameters[None], validation=0.0, seconds=0.0)


def noise(
    user_rank: int, time_rank: int, targets: Literal["own", "next"] = "next"
) -> TuckerSummary:
    config = SummaryConfig(
        users=USERS, length=LENGTH, user_rank=user_rank, time_rank=time_rank, targets=targets
    )
    return TuckerSummary.initial(config, normal(0, ITEMS, WIDTH), seeded(1))


@pytest.mark.parametrize(
    ("ranks", "targets"), [((6, 5), "next"), ((9, 7), "next"), ((6, 10), "own"), ((9, 12), "own")]
)
def test_enough_ranks_keep_the_queries(
    ranks: tuple[int, int], targets: Literal["own", "next"]
) -> None:
    own = targets == "own"
    C = normal(1, USERS, LENGTH * (1 + own), WIDTH, std=3.0)
    found = factored(C, noise(*ranks, targets), 0.5)
    # Of two queries at a position only those are kept that a causal learner reads or predicts.
    assert distance(found.soft_sequences().inputs[:, :-1], C[:, : LENGTH - 1]) < 1e-12
    assert distance(found.soft_sequences().targets[:, 1:], C[:, 1 - LENGTH :]) < 1e-12
    assert (
        distance(
            query(*found.learned),
            torch.cat(
                [found.soft_sequences().inputs, found.soft_sequences().targets][: 1 + own], 1
            ),
        )
        == 0
    )
    assert [tuple(f.shape) for f in found.learned] == [
        (USERS, ranks[0]),
        (LENGTH, ranks[1]),
        (*ranks, WIDTH),
        *([(LENGTH, ranks[1])] if own else []),
    ]
    # Every column has entries of the wanted size; those beyond the rank are noise's and can learn.
    root_mean_square = found.U[:, :USERS].square().mean(0).sqrt()
    assert distance(root_mean_square, torch.full_like(root_mean_square, 0.5)) < 1e-12
    assert found.U[:, USERS:].abs().sum() > 0 or ranks[0] == USERS
    assert found.G[USERS:].abs().sum() == 0


def test_a_low_rank_tensor_is_kept_by_its_own_rank() -> None:
    """C of rank (2, 3) by construction, so nothing is lost at those ranks, and something below."""
    U, T, G = normal(2, USERS, 2), normal(3, LENGTH, 3), normal(4, 2, 3, WIDTH)
    C = torch.einsum("ua,tb,abd->utd", U, T, G)
    assert distance(query(*factored(C, noise(2, 3), 0.5).learned), C) < 1e-12
    lost = distance(query(*factored(C, noise(1, 3), 0.5).learned), C)
    # Of one user direction the best keeps the largest singular value (numpy's, on the unfolding).
    values = np.linalg.svd(C.flatten(1).numpy(), compute_uv=False)
    assert lost == pytest.approx(values[1] / np.linalg.norm(values), rel=1e-9)


def test_queries_point_at_their_items() -> None:
    """At a large sharpness each position's likeliest item is its own; the margin is as said."""
    V = normal(5, ITEMS, 8)
    items = torch.randint(ITEMS, (USERS, LENGTH), generator=seeded(6))
    C = pointing_queries(items, V, 20.0)
    scores = C @ (V - V.mean(0)).T
    own = scores.gather(-1, items[..., None])
    assert float(own.mean()) == pytest.approx(math.log(ITEMS) + 20.0)
    # All queries have one length: a rare item with a short row is not shouted.
    assert distance(C.norm(dim=-1), C.norm(dim=-1).mean().expand(USERS, LENGTH)) < 1e-12
    cosines = torch.nn.functional.cosine_similarity(C, (V - V.mean(0))[items], dim=-1)
    assert distance(cosines, torch.ones_like(cosines)) < 1e-12


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "narm", "bert4rec"])
@pytest.mark.parametrize("at_once", [2**22, 4 * LENGTH**2, 1])
def test_labels_are_what_the_teacher_expects(
    name: BackboneName, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position by position, from a row of the items before it alone; all users and some at once."""
    monkeypatch.setattr("td3engine.outer_loop.initial_summary.PREFIXES_AT_ONCE", at_once)
    backbone = build_backbone(small_config(backbone={"name": name}).backbone, 8)
    width = 8
    table = normal(5, ITEMS, width + int(backbone.biased))
    teacher = teacher_of(backbone, table)
    items = torch.randint(ITEMS, (USERS, LENGTH), generator=seeded(6))
    taken = rows_taken(backbone, monkeypatch)
    found = teachers_labels(items, teacher)
    users = min(USERS, max(1, at_once // LENGTH**2))
    assert taken[0] == users * (LENGTH - 1)
    assert found.shape == (USERS, LENGTH - 1, width)
    score = teacher.model.states
    for user in range(USERS):
        for position in range(1, LENGTH):
            [state] = score(items[user : user + 1, :position], torch.tensor([position]))
            assert distance(found[user, position - 1], state[:width]) < 1e-10


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_a_start_of_full_rank_reads_histories_and_predicts_what_the_teacher_does(
    name: BackboneName,
) -> None:
    """Of as many positions as a model reads, and one more; an item bias is left out."""
    split = make_split([[(user + step) % ITEMS for step in range(14)] for user in range(8)], ITEMS)
    summary = {"users": 4, "length": 9, "user_rank": 4, "time_rank": 18}
    config = paper_config(backbone={"name": name}, summary=summary)
    backbone = build_backbone(config.backbone, config.data.max_history)
    teacher = teacher_of(backbone, normal(7, ITEMS, 8 + int(backbone.biased)))
    start = initial_summary(config, split, teacher)
    rng = numpy_generator(config.seed, Purpose.SUMMARY_INITIAL)
    items = torch.from_numpy(real_histories(split, config.summary, rng))
    pointing = pointing_queries(items, start.V, config.summary.sharpness)
    assert torch.equal(start.V, teacher.model.table[:, :8])
    assert distance(start.soft_sequences().inputs[:, :-1], pointing[:, :-1]) < 1e-10
    score = teacher.model.states
    for position in range(1, 9):
        states = score(items[:, :position], torch.full((4,), position))
        assert distance(start.soft_sequences().targets[:, position], states[:, :8]) < 1e-10
    assert distance(start.soft_sequences().targets[:, 0], pointing[:, 0]) < 1e-10
    last = start.soft_sequences()
    assert distance(last.inputs[:, -1], last.targets[:, -1]) < 1e-10


def test_real_histories_hold_the_last_training_events_and_repeat_short_ones() -> None:
    # The last two of a user with three or more are held out; the third user has no transition.
    split = make_split([[0, 1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 9, 1, 2], [3, 4, 5]], ITEMS)
    config = SummaryConfig(users=8, length=5, start="users")
    rows = real_histories(split, config, np.random.default_rng(0))
    assert {tuple(row) for row in rows.tolist()} == {(2, 3, 4, 5, 6), (10, 9, 9, 10, 9)}


def test_different_users_where_there_are_enough() -> None:
    split = make_split([[user, user + 1, 0, 0] for user in range(8)], ITEMS)
    rows = real_histories(split, SummaryConfig(users=8, length=4), np.random.default_rng(0))
    assert sorted(rows[:, 0].tolist()) == list(range(8))


def test_both_starts_are_the_seeds() -> None:
    split = make_split([[user, user + 1, user + 2, 0, 0] for user in range(8)], ITEMS)
    V = normal(7, ITEMS, 8)
    backbone = build_backbone(small_config().backbone, 8)
    for start in ("users", "random"):
        one, same, other = (
            initial_summary(config, split, teacher_of(backbone, V))
            for config in (paper_config(summary={"start": start}, seed=seed) for seed in (1, 1, 2))
        )
        for factor, again, different in zip(one.learned, same.learned, other.learned, strict=True):
            assert torch.equal(factor, again)
            assert not torch.equal(factor, different)
        assert torch.equal(one.V, V)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("step", [0.0, 0.2])
def test_items_are_histories_with_the_labels_of_a_teacher(name: BackboneName, step: float) -> None:
    """The default form. The table is rounded first; the teacher reads and labels with its own."""
    split = make_split([[(user + step) % ITEMS for step in range(14)] for user in range(8)], ITEMS)
    config = small_config(
        backbone={"name": name}, summary={"users": 4, "length": 9, "table_step": step}
    )
    backbone = build_backbone(config.backbone, config.data.max_history)
    teacher = teacher_of(backbone, normal(7, ITEMS, 8 + int(backbone.biased)))
    start = initial_summary(config, split, teacher)
    assert isinstance(start, LabelledSummary)
    rng = numpy_generator(config.seed, Purpose.SUMMARY_INITIAL)
    rows = real_histories(split, config.summary, rng)
    assert start.items.tolist() == rows.tolist()
    assert torch.equal(start.V, rounded(teacher.model.table[:, :8], step))
    assert torch.equal(start.V, teacher.model.table[:, :8]) == (step == 0)
    assert start.sharpness == config.summary.sharpness
    for position in range(1, 9):
        states = teacher.model.states(start.items[:, :position], torch.full((4,), position))
        assert distance(start.labels[:, position - 1], states[:, :8]) < 1e-10
    assert (start.users, start.length, start.positions) == (4, 9, 36)
    assert start.numbers_learned == 4 * 8 * 8
    assert start.numbers_stored == 4 * 8 * 8 + 4 * 9 + ITEMS * 8
    again = labelled(rows, config.summary, teacher)
    assert torch.equal(again.labels, start.labels)
    other = initial_summary(config.model_copy(update={"seed": 9}), split, teacher)
    assert isinstance(other, LabelledSummary)
    assert not torch.equal(other.items, start.items)


def a_labelled_summary() -> LabelledSummary:
    items = torch.randint(ITEMS, (USERS, LENGTH), generator=seeded(6))
    labels = normal(1, USERS, LENGTH - 1, WIDTH)
    return LabelledSummary(items, labels, normal(2, ITEMS, WIDTH), 1.5)


def test_items_and_labels_as_queries_of_all_positions() -> None:
    """Inputs point at their items; nothing precedes the first one, which is its own target."""
    summary = a_labelled_summary()
    sequences = summary.soft_sequences()
    pointing = pointing_queries(summary.items, summary.V, 1.5)
    assert torch.equal(sequences.inputs, pointing)
    assert torch.equal(sequences.targets[:, 0], pointing[:, 0])
    assert torch.equal(sequences.targets[:, 1:], summary.labels)
    # What labels are distilled as: one a position, zeros where there is none.
    assert torch.equal(summary.queries()[:, 1:], summary.labels)
    assert not summary.queries()[:, 0].any()


def test_distilling_changes_labels_alone() -> None:
    summary = a_labelled_summary()
    assert [part is summary.labels for part in summary.learned] == [True]
    moved = summary.with_learned(summary.labels + 1)
    assert torch.equal(moved.labels, summary.labels + 1)
    assert moved.items is summary.items
    assert moved.V is summary.V
    assert moved.sharpness == summary.sharpness
    there = summary.to(torch.device("cpu"))
    assert torch.equal(there.labels, summary.labels)
    assert torch.equal(there.items, summary.items)


@pytest.mark.parametrize("step", [0.0, 0.5, 1.0])
def test_what_was_learned_is_rounded_as_its_file_will_hold_it(step: float) -> None:
    config = SummaryConfig(users=USERS, length=LENGTH, label_step=step)
    summary = a_labelled_summary()
    stored = as_stored(summary, config)
    assert isinstance(stored, LabelledSummary)
    assert torch.equal(stored.labels, rounded(summary.labels, step))
    assert torch.equal(stored.labels, summary.labels) == (step == 0)
    assert torch.equal(stored.V, summary.V)
    assert torch.equal(stored.items, summary.items)
    soft = noise(2, 3, "own")
    factors = as_stored(soft, config)
    for factor, before in zip(factors.learned, soft.learned, strict=True):
        assert torch.equal(factor, half(before) if step else before)
        assert torch.equal(factor, before) == (step == 0)
    assert torch.equal(factors.V, soft.V)
