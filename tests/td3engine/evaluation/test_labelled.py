"""Labelled users, against a user at a time and a prefix at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from td3engine.config import Mode
from td3engine.config.presets import merge
from td3engine.contract import FACTORS_FILE
from td3engine.data.split import Split
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.labelled import labelled_rows, labelled_users, users_of_bytes
from td3engine.models.registry import build_backbone
from td3engine.models.trained_model import TrainedModel
from td3engine.summary.bundle import Manifest, packed_bytes, save_bundle
from td3engine.summary.labelled import LabelledSummary
from td3engine.summary.packing import rounded
from td3engine.teacher.training import TrainedOnLog
from tests.td3engine.oracles import make_split, seeded
from tests.td3engine.small import PAPER, small_config

ITEMS, WIDTH, LENGTH = 30, 8, 6
CONFIG = small_config(summary={"users": 3, "length": LENGTH, "sharpness": 2.0})
EXACT = small_config(
    summary={"users": 3, "length": LENGTH, "sharpness": 2.0, "table_step": 0, "label_step": 0}
)


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


def test_items_are_histories_and_labels_are_states(split: Split, teacher: TrainedOnLog) -> None:
    found = labelled_users(split, EXACT.summary, teacher, 9, seed=4)
    assert isinstance(found, LabelledSummary)
    assert torch.equal(found.V, teacher.model.table)
    assert found.items.shape == (9, LENGTH)
    # All users with a transition, each once.
    histories = {tuple(last_training_events(split, user)) for user in range(1, 10)}
    assert {tuple(row) for row in found.items.tolist()} == histories
    for events, labels in zip(found.items.tolist(), found.labels, strict=True):
        for at in range(1, LENGTH):
            state = teacher.model.states(torch.tensor([events[:at]]), torch.tensor([at]))[0]
            torch.testing.assert_close(labels[at - 1], state, rtol=1e-4, atol=1e-5)


def test_labels_and_table_are_on_the_grids_of_a_summary(
    split: Split, teacher: TrainedOnLog
) -> None:
    exact = labelled_users(split, EXACT.summary, teacher, 9, seed=4)
    found = labelled_users(split, CONFIG.summary, teacher, 9, seed=4)
    assert isinstance(found, LabelledSummary)
    assert isinstance(exact, LabelledSummary)
    assert torch.equal(found.items, exact.items)
    assert torch.equal(found.V, rounded(exact.V, CONFIG.summary.table_step))
    assert torch.equal(found.labels, rounded(exact.labels, CONFIG.summary.label_step))
    assert not torch.equal(found.labels, exact.labels)


def test_queries_are_as_sharp_as_configured(split: Split, teacher: TrainedOnLog) -> None:
    """An event's item scores log(n) + sharpness above the mean item, on average."""
    found = labelled_users(split, EXACT.summary, teacher, 9, seed=4)
    scores = found.soft_sequences().inputs[:, :-1] @ found.V.T
    above = scores.max(-1).values - scores.mean(-1)
    assert float(above.mean()) == pytest.approx(np.log(ITEMS) + 2.0, rel=0.1)


def test_another_seed_takes_other_users(split: Split, teacher: TrainedOnLog) -> None:
    one, again, other = (labelled_users(split, CONFIG.summary, teacher, 4, s) for s in (1, 1, 2))
    assert torch.equal(one.queries(), again.queries())
    assert not torch.equal(one.queries(), other.queries())
    # As many as asked for, though the configured summary has three.
    assert one.users == 4


def test_as_many_users_as_the_bytes_hold(split: Split, teacher: TrainedOnLog) -> None:
    """The size of a set of users says how many they are, within what packing varies."""
    draw = np.random.default_rng(3)
    histories = [draw.choice(ITEMS, 12).tolist() for _ in range(200)]
    many = make_split(histories, ITEMS)

    def hold(size: int, most: int = 200) -> int:
        return users_of_bytes(size, many, CONFIG.summary, teacher, most)

    for users in (3, 20, 50, 120):
        size = packed_bytes(labelled_users(many, CONFIG.summary, teacher, users, seed=7))
        assert abs(hold(size) - users) <= max(1, users // 4)
    assert hold(0) == 1
    assert hold(10**9) == 200
    assert hold(10**9, most=60) == 60
    assert hold(10**9, most=1) == 1


@pytest.mark.parametrize("over", [{}, PAPER])
@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_rows_count_items_labels_and_the_table(
    split: Split, teacher: TrainedOnLog, mode: Mode, over: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever form and loss the run's own summary has."""
    config = small_config(**merge(over, {"summary": {"users": 3, "length": LENGTH}}), mode=mode)
    benchmark = Benchmark.prepare(split, config, torch.device("cpu"))
    rows = labelled_rows(benchmark, "some users", teacher, 5, config.mode, (1, 2))
    assert [row["protocol"] for row in rows] == list(benchmark.protocols)
    numbers = 5 * (LENGTH - 1) * WIDTH + 5 * LENGTH + ITEMS * WIDTH
    summary = labelled_users(split, config.summary, teacher, 5, seed=1)
    manifest = Manifest(config=config, fingerprint="f", statistics={}, validation={}, results=[],
                        numbers_stored={})  # fmt: skip
    save_bundle(tmp_path, summary, split.item_ids, manifest)
    for row in rows:
        assert (row["name"], row["mode"], row["seeds"]) == ("some users", mode, 2)
        assert (row["sequences"], row["numbers_stored"]) == (5, numbers)
        assert row["bytes"] == (tmp_path / FACTORS_FILE).stat().st_size
        assert row["train_seconds"] > 0
        assert row["making_seconds"] > 0
