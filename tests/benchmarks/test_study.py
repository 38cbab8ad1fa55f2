"""The quality study on a small made-up log: every row comes out, once, and is kept."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import datasets, quality
from benchmarks.datasets import Dataset
from benchmarks.study import Study, prefix_windows
from benchmarks.study_results import OF_LOG
from td3engine.config.presets import merge
from td3engine.models.backbones.sasrec import SASRec
from tests.td3engine.oracles import make_split
from tests.td3engine.small import SMALL, write_small_log


def test_prefix_rows_are_every_transition_with_what_came_before() -> None:
    split = make_split([range(6), range(2), range(4)], 10)
    windows = prefix_windows(split, 2)
    # Four training events, two (never evaluated), two.
    expected = [(0, 2), (0, 3), (1, 4), (6, 8), (8, 10)]
    assert list(zip(windows.start.tolist(), windows.end.tolist(), strict=True)) == expected
    assert windows.start.dtype == np.int64


@pytest.mark.usefixtures("small_study")
def test_every_row_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--data", str(tmp_path), "--dataset", "ml-100k", "--seeds", "2"]
    command += ["--json", str(tmp_path / "out" / "quality.json"), "--work", str(tmp_path / "work")]
    quality.main(command)
    kept = json.loads((tmp_path / "out" / "quality.json").read_text())
    rows = kept["rows"]
    # Rows of the log leave a summary's settings alone.
    modes = {name: config["mode"] for name, config in kept["configs"].items()}
    assert modes == {
        "ml-100k sasrec log": "from-scratch",
        "ml-100k sasrec from-scratch": "from-scratch",
        "ml-100k sasrec shared-items": "shared-items",
    }
    unseen = [row for row in rows if row["protocol"] == "unseen"]
    found = {(row["source"], row["mode"]) for row in unseen}
    assert len(unseen) == len(found) == len(rows) / 3
    both = {"random", "longest", "recent", "initial", "summary", "soft-export", "hard-export"}
    both |= {"labelled", "labelled-bytes", "labelled-seconds"}
    assert found == {
        *((source, mode) for source in both for mode in ("shared-items", "from-scratch")),
        *((source, "from-scratch") for source in OF_LOG),
        ("zero-steps", "shared-items"),
    }
    for row in unseen:
        assert 0 <= row["ndcg@5"] <= row["ndcg@20"] <= 1
        # No item of this log is met more often than others are.
        assert row["ndcg@20"] > 0 or row["source"] == "popularity"
        assert {"hr@5", "mrr@20_std", "seeds", "train_seconds", "numbers_stored"} <= row.keys()
        assert row["bytes"] > 0
        assert row["log_bytes"] == unseen[0]["log_bytes"] > 0
        assert (row["teacher_seconds"] == 0) == (row["source"] in OF_LOG)
        assert (row["making_seconds"] > 0) == (
            row["source"] in {"summary", "soft-export", "hard-export"}
            or row["source"].startswith("labelled")
        )
        assert row["distilled_with"] == "sasrec"
    capsys.readouterr()
    quality.main(command)
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "out" / "quality.json").read_text())["rows"] == rows


@pytest.fixture
def small_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_log(tmp_path / "small.csv")
    settings = merge(SMALL, {"outer": {"shared_steps": 2}})
    monkeypatch.setitem(datasets.DATASETS, "ml-100k", Dataset("small.csv", settings))


@pytest.mark.usefixtures("small_study")
def test_the_teacher_of_a_study_has_its_own_dropout(tmp_path: Path) -> None:
    study = Study("ml-100k", tmp_path, tmp_path, print)
    config = study.config("sasrec", "shared-items")
    own = config.teacher.model_copy(update={"dropout": 0.35})
    for teacher, rate in ((config.teacher, config.backbone.dropout), (own, 0.35)):
        model = study._recommender(config.model_copy(update={"teacher": teacher}))
        assert isinstance(model.backbone, SASRec)
        assert model.backbone.config.dropout == rate
