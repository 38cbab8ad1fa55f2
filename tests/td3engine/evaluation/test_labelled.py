"""Labelled users, against a user at a time and a prefix at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from td3engine.data.split import Split
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.labelled import (
    labelled_rows,
    labelled_users,
    unfactored,
    users_of_bytes,
)
from td3engine.models.registry import build_backbone
from td3engine.models.trained_model import TrainedModel
from td3engine.teacher.training import TrainedOnLog
from tests.td3engine.oracles import make_split, seeded
from tests.td3engine.small import small_config

ITEMS, WIDTH, LENGTH = 30, 8, 6
CONFIG = small_config(summary={"users": 3, "length": LENGTH, "sharpness": 2.0})


def float32(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed)) * 0.3


@pytest.fixture
def split() -> Split:
    """Users of 3 to 12 events; the first of them has one training event, and no transition."""
    draw = np.random.default_rng(3)
    histories = [draw.choice(ITEMS, size, replace=False).tolist() for size in range(3, 13)]
    return make_split(histories, ITEMS)


@pytest.fixture
def teacher() -> TrainedOnLog:
    backbone = build_backbone(CONFIG.backbone, CONFIG.data.max_history)
    model = TrainedModel(backbone, float32(1, backbone.n_parameters), float32(2, ITEMS, WIDTH))
    return TrainedOnLog(model, model.parameters[None], validation=0.0, seconds=0.0)


def last_training_events(split: Split, user: int) -> list[int]:
    """Two events are held out; a history that is too short comes again before itself."""
    events = split.history(user).tolist()[:-2]
    while len(events) < LENGTH:
        events = split.history(user).tolist()[:-2] + events
    return [int(item) for item in events[-LENGTH:]]


def test_inputs_point_at_items_and_targets_are_states(split: Split, teacher: TrainedOnLog) -> None:
    found = labelled_users(split, CONFIG.summary, teacher, 9, seed=4)
    V = teacher.model.table
    assert torch.equal(found.V, V)
    sequences = found.soft_sequences()
    assert sequences.inputs.shape == sequences.targets.shape == (9, LENGTH, WIDTH)
    directions = (V - V.mean(0)) / (V - V.mean(0)).norm(dim=1, keepdim=True)
    # All users with a transition, each once.
    histories = {tuple(last_training_events(split, user)): user for user in range(1, 10)}
    met = set()
    for queries, targets in zip(sequences.inputs, sequences.targets, strict=True):
        items = [int((directions @ query).argmax()) for query in queries[:-1]]
        (user,) = [user for events, user in histories.items() if list(events[:-1]) == items]
        met.add(user)
        events = last_training_events(split, user)
        for at, (item, query) in enumerate(zip(items, queries, strict=False)):
            assert float(directions[item] @ query) == pytest.approx(float(query.norm()), rel=1e-5)
            if at:
                prefix = torch.tensor([events[:at]])
                state = teacher.model.states(prefix, torch.tensor([at]))[0]
                torch.testing.assert_close(targets[at], state, rtol=1e-4, atol=1e-5)
    assert met == set(range(1, 10))


def test_queries_are_as_sharp_as_configured(split: Split, teacher: TrainedOnLog) -> None:
    """An event's item scores log(n) + sharpness above the mean item, on average."""
    found = labelled_users(split, CONFIG.summary, teacher, 9, seed=4)
    scores = found.soft_sequences().inputs[:, :-1] @ found.V.T
    above = scores.max(-1).values - scores.mean(-1)
    assert float(above.mean()) == pytest.approx(np.log(ITEMS) + 2.0, rel=0.1)


def test_another_seed_takes_other_users(split: Split, teacher: TrainedOnLog) -> None:
    one, again, other = (labelled_users(split, CONFIG.summary, teacher, 4, s) for s in (1, 1, 2))
    assert torch.equal(one.G, again.G)
    assert not torch.equal(one.G, other.G)
    # As many as asked for, though the configured summary has three.
    assert len(one.U) == 4


def test_a_summary_of_full_ranks_has_the_queries_again() -> None:
    queries = float32(5, 4, 2 * LENGTH, WIDTH)
    queries[:, LENGTH] = queries[:, 0]  # the first target is the first input
    found = unfactored(queries, float32(6, ITEMS, WIDTH)).soft_sequences()
    assert torch.equal(found.targets, queries[:, LENGTH:])
    assert torch.equal(found.inputs[:, :-1], queries[:, : LENGTH - 1])
    # No causal learner reads the last input; the target of its position stands there.
    assert torch.equal(found.inputs[:, -1], queries[:, -1])


@pytest.mark.parametrize(
    ("numbers", "length", "width", "users"),
    [
        (10 * 5 * 9, 5, 8, 10),  # a position is an item and a label of 8 numbers
        (10 * 5 * 9 - 1, 5, 8, 9),
        (5 * 9 - 1, 5, 8, 1),
        (0, 5, 8, 1),
    ],
)
def test_as_many_users_as_the_bytes_hold(numbers: int, length: int, width: int, users: int) -> None:
    assert users_of_bytes(numbers, length, width) == users


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_rows_count_items_labels_and_the_table(
    split: Split, teacher: TrainedOnLog, mode: str
) -> None:
    config = small_config(summary={"users": 3, "length": LENGTH}, mode=mode)
    benchmark = Benchmark.prepare(split, config, torch.device("cpu"))
    rows = labelled_rows(benchmark, "some users", teacher, 5, config.mode, (1, 2))
    assert [row["protocol"] for row in rows] == list(benchmark.protocols)
    numbers = 5 * LENGTH * (1 + WIDTH) + ITEMS * WIDTH
    for row in rows:
        assert (row["name"], row["mode"], row["seeds"]) == ("some users", mode, 2)
        assert (row["sequences"], row["numbers_stored"]) == (5, numbers)
        assert row["bytes"] == 4 * numbers
        assert row["train_seconds"] > 0
        assert row["making_seconds"] > 0
