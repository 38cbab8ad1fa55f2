"""`benchmarks.backbones`: the search, its result file, and a training that keeps its budget."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import backbones
from benchmarks.backbones import GRID, Plan, Point, ResultFile, Trial, measure, search, table
from td3engine.config import BACKBONES
from td3engine.data.split import Split
from td3engine.ranking.protocols import PROTOCOLS
from tests.td3engine.oracles import make_split

START = Point(32, 1, 0.2, 0.001)


@pytest.fixture
def split() -> Split:
    ring = [[(start + step) % 130 for step in range(9)] for start in range(0, 130, 3)]
    return make_split(ring, 130)


class KnownTrial(Trial):
    """Validation is a known function of the point; counts its trainings."""

    def __init__(self, plan: Plan) -> None:
        self.backbone, self.plan, self.points = "hstu", plan, list[Point]()

    def train(self, point: Point, seed: int) -> Any:
        self.points.append(point)
        value = point.width / 64 - abs(point.dropout - 0.35) - point.layers / 10 + point.lr
        return None, None, {"backbone": "hstu", **vars(point), "validation": value, "seed": seed}


def test_the_search_keeps_the_best_of_each_setting_and_goes_on(tmp_path: Path) -> None:
    trial = KnownTrial(Plan(START, seconds=1))
    results = ResultFile(tmp_path / "results.json")
    assert search(trial, "log", results) == Point(64, 1, 0.35, 0.003)
    # One training at the start, then one for each value that is new.
    assert len(trial.points) == len(set(trial.points)) == 1 + sum(len(v) - 1 for v in GRID.values())
    again = KnownTrial(trial.plan)
    assert search(again, "log", ResultFile(results.path)) == Point(64, 1, 0.35, 0.003)
    assert again.points == []


def test_a_search_leaves_other_settings_alone(tmp_path: Path) -> None:
    trial = KnownTrial(Plan(START, 1, ("dropout",)))
    point = search(trial, "log", ResultFile(tmp_path / "results.json"))
    assert point == Point(32, 1, 0.35, 0.001)


def test_measured_points_are_a_row_each(tmp_path: Path, split: Split) -> None:
    results = ResultFile(tmp_path / "results.json")
    trial = Trial(split, "hstu", Plan(START, 0.0, ("layers",)))
    measure(trial, "ring", results, seeds=2)
    content = json.loads(results.path.read_text())
    # No time at all: a training ends at its first validation.
    ended = {(row["epochs"], row["ended"]) for row in content["search"] + content["test"]}
    assert ended == {(backbones.VALIDATE_EVERY, "budget")}
    assert [row["seed"] for row in content["test"]] == [1, 2]
    assert set(content["test"][0]["test"]) == set(PROTOCOLS)
    (line,) = list(table(content))[2:]
    figures = [row["test"]["unseen"]["hr@10"] for row in content["test"]]
    assert f"{sum(figures) / 2:.4f}" in line


def test_every_planned_log_has_a_start_on_the_grid() -> None:
    for plan in backbones.PLANS.values():
        for setting in plan.searched:
            assert getattr(plan.start, setting) in GRID[setting]
    assert {"sasrec", "esasrec", "hstu"} <= set(BACKBONES)
