"""The speed and memory benchmarks run; what they measure is never tested."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import datasets, memory, speed, work
from benchmarks.datasets import Dataset
from benchmarks.end_to_end import Curve, compared
from td3engine.config import BackboneConfig, Mode
from td3engine.config.presets import merge
from td3engine.models.registry import build_backbone
from td3engine.models.trained_model import TrainedModel
from td3engine.teacher.training import TrainedOnLog
from tests.td3engine.small import SMALL, write_small_log


def test_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small_log(tmp_path / "small.csv")
    monkeypatch.setitem(datasets.DATASETS, "ml-100k", Dataset("small.csv", SMALL))
    monkeypatch.setattr(speed, "keep_memory", lambda: None)  # not in the tests' own process
    command = ["speed", "--data", str(tmp_path), "--end-to-end", "--budget", "0.01"]
    monkeypatch.setattr("sys.argv", command)
    short = merge(work.PUBLISHED, {"learner": {"steps": 4}, "outer": {"window": 2}})
    monkeypatch.setattr(work, "PUBLISHED", short)
    speed.main()
    found = json.loads(capsys.readouterr().out)
    for side in ("engine", "textbook"):
        assert all(seconds > 0 and 0 <= value <= 1 for seconds, value in found[side]["looks"])
    assert found["ratio_is_a_lower_bound"] != found["textbook"]["reached_the_engines_best"]


def test_who_reached_what(teacher: TrainedOnLog) -> None:
    engine = Curve([(1.0, 0.1), (2.0, 0.3), (3.0, 0.2)])
    slow = Curve([(10.0, 0.05), (20.0, 0.2), (30.0, 0.15)])
    found = compared(teacher, 8.0, engine, slow)
    assert found["ratio_is_a_lower_bound"]
    assert found["ratio_of_distilling"] == 30 / 2
    assert found["ratio_with_teacher"] == 38 / 10
    assert found["engine_seconds_to_the_textbooks_best"] == 2.0
    equal = compared(teacher, 8.0, engine, Curve([(10.0, 0.3)]))
    assert not equal["ratio_is_a_lower_bound"]
    assert equal["ratio_of_distilling"] == 10 / 2


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_a_point_of_memory(mode: Mode) -> None:
    found = memory.peak(memory.Point("window", 60, 2, recompute=True, mode=mode, large=False))
    assert 0 < found["before_mib"] <= found["peak_mib"]


@pytest.fixture
def teacher() -> TrainedOnLog:
    empty = torch.zeros(0)
    model = TrainedModel(build_backbone(BackboneConfig(), 50), empty, empty[None])
    return TrainedOnLog(model, empty, validation=0.4, seconds=0.0)
