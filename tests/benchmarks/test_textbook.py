"""The yardstick measures the same work: the textbook's meta-gradient is the engine's."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.work import Work, load
from td3engine.data.windows import WindowIndex, WindowSampler
from td3engine.models.registry import build_backbone
from td3engine.models.trained_model import TrainedModel
from td3engine.teacher.training import TrainedOnLog
from tests.td3engine.oracles import default_double, distance, make_split, normal
from tests.td3engine.small import paper_config

ITEMS, WIDTH = 11, 4
HISTORIES = [[0, 5, 2, 2, 7, 1], [3, 4, 6, 8, 9], [10, 1, 4, 0, 6, 7]]
# Seven positions leave the augmentation no choice: it predicts position 5.
ZETA = 7


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_double():
        yield


@pytest.fixture(autouse=True)
def _whole_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    """One window a user, so that the engine's targets have the contexts of prefix rows."""

    def windows(sampler: WindowSampler, count: int, rng: np.random.Generator) -> WindowIndex:
        users = rng.choice(sampler.split.n_users, min(count, sampler.split.n_users), replace=False)
        return WindowIndex(sampler.split.offsets[users], sampler.split.training_ends[users])

    monkeypatch.setattr(WindowSampler, "draw", windows)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_the_same_meta_gradient_as_the_engines(layers: int, schedule: str) -> None:
    work = _work(
        backbone={"hidden": WIDTH, "inner": 6, "layers": layers, "heads": 2, "dropout": 0.0},
        summary={
            "users": 5,
            "length": ZETA,
            "user_rank": 2,
            "time_rank": 3,
            "start": "random",
            "targets": "next",
        },
        learner={
            "steps": 9,
            "batch": 2,
            "augmented": 1,
            "lr": 0.01,
            "schedule": schedule,
            "dropout": 0.0,
        },
        outer={"window": 3, "pool": 1, "normalise": False, "clip": 1e6, "feature_weight": 2.0},
    )
    engine = work.engine()
    (pooled,) = engine.pools.by_learner[0]
    textbook = work.textbook(engine.summary.learned)
    textbook.starts = np.array([pooled.warmup_steps])
    # The learner that the engine has drawn, in place of one of the textbook's own.
    textbook.learner.reset = lambda: load(  # type: ignore[method-assign]
        textbook.learner, work.backbone.named(pooled.state.parameters)
    )
    assert pooled.warmup_steps > 0

    engine.step()
    textbook.step(work.real_rows(np.random.default_rng(0)), lambda _part: None)

    for found, wanted in zip(textbook.factors, engine.factors, strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        assert distance(found.grad, wanted.grad) < 1e-8
        assert distance(found, wanted) < 1e-8


def test_as_many_real_targets() -> None:
    work = _work(learner={"augmented": 1})
    rows = work.real_rows(np.random.default_rng(0))
    # Training is all but the last two events of a user, and its first is no target.
    assert len(rows.items) == sum(len(history) - 3 for history in HISTORIES)
    found = {
        (*items[:length].tolist(), int(target))
        for items, length, target in zip(rows.items, rows.lengths, rows.targets, strict=True)
    }
    assert found == {
        tuple(history[:end]) for history in HISTORIES for end in range(2, len(history) - 1)
    }


def _work(**over: Any) -> Work:
    config = paper_config(**over)
    split = make_split(HISTORIES, ITEMS)
    backbone = build_backbone(config.learner_backbone, config.data.max_history)
    encoder_P = normal(1, backbone.n_parameters, std=0.3)
    table_ND = normal(2, ITEMS, config.backbone.hidden, std=0.5)
    model = TrainedModel(backbone, encoder_P, table_ND)
    teacher = TrainedOnLog(model, encoder_P[None], validation=0.0, seconds=0.0)
    return Work(split, config, teacher, torch.device("cpu"))
