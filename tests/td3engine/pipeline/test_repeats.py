"""Whole runs on logs where items come again: rows written twice, and loops."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from td3engine.api.summary import Summary
from td3engine.config import DistillConfig
from td3engine.data.reading import read_log
from td3engine.evaluation.table import Row
from td3engine.events import Event, Note
from td3engine.pipeline.run import Control, Outcome, Run
from tests.td3engine.small import small_config

ROW = tuple[int, int, int]


def run(rows: list[ROW], folder: Path, config: DistillConfig) -> tuple[Outcome, str]:
    """What a run on these rows (user, item, time) gives, and all its notes."""
    folder.mkdir()
    path = folder / "log.csv"
    lines = [f"u{user},i{item},{time}" for user, item, time in rows]
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    events: list[Event] = []
    log = read_log(path)
    control = Control(listener=events.append)
    outcome = Run(log, log.fingerprint(), config, folder / "out", control).run()
    return outcome, "\n".join(event.message for event in events if isinstance(event, Note))


def figures_of(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if not name.endswith("_seconds")}
        for row in outcome.rows
    ]


def questions_of(rows: list[Row]) -> dict[str, set[int]]:
    """By protocol, the numbers of questions that its rows have."""
    counts: dict[str, set[int]] = {}
    for row in rows:
        counts.setdefault(row["protocol"], set()).add(row["questions"])
    return counts


def noise() -> list[ROW]:
    """Items at random, none twice for a user."""
    draw = np.random.default_rng(5)
    return [
        (user, int(item), time)
        for user in range(60)
        for time, item in enumerate(draw.choice(40, 10, replace=False))
    ]


def test_every_row_twice_is_every_row_once(tmp_path: Path) -> None:
    rows = noise()
    once, said_once = run(rows, tmp_path / "once", small_config())
    twice, said = run([row for row in rows for _ in range(2)], tmp_path / "twice", small_config())
    assert figures_of(twice) == figures_of(once)
    files = [folder / "out" / "summary.safetensors" for folder in sorted(tmp_path.iterdir())]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "600 rows have the user, item and time of an earlier row and were dropped" in said
    assert "rows" not in said_once
    assert twice.manifest.statistics["duplicates"] == 600
    # The manifest says what was done, not that it depends.
    assert once.manifest.config.data.duplicates == "keep"
    assert twice.manifest.config.data.duplicates == "drop"
    assert twice.manifest.statistics["repeat_share"] == 0.0
    assert twice.manifest.config.data.validate_by == "unseen"
    assert questions_of(twice.rows) == {"all": {60}, "unseen": {60}}


def test_a_few_duplicates_are_counted_as_published_figures_count_them(tmp_path: Path) -> None:
    """59 copies of 600 rows are below a tenth of the log, 67 are not."""
    for copies, dropped in ((59, 0), (67, 67)):
        rows = [*noise(), *noise()[:copies]]
        outcome, said = run(rows, tmp_path / str(copies), small_config())
        statistics = outcome.manifest.statistics
        assert statistics["duplicates"] == dropped
        assert statistics["interactions"] == 600 + (copies - dropped)
        assert (f"{copies} rows have the user" in said) == bool(dropped)
        assert outcome.manifest.config.data.duplicates == ("drop" if dropped else "keep")


def test_kept_duplicates_are_no_new_items(tmp_path: Path) -> None:
    """Each test event is the event before it again: nothing but `all` asks about it."""
    config = small_config(data={"duplicates": "keep"})
    outcome, said = run([row for row in noise() for _ in range(2)], tmp_path / "twice", config)
    assert outcome.manifest.statistics["interactions"] == 1200
    # Of each user's 20 events but the first and the last: 9 of 18.
    assert outcome.manifest.statistics["repeat_share"] == 0.5
    assert outcome.manifest.config.data.validate_by == "all"
    assert "protocol `all`" in said
    assert "no figures under `unseen`" in said
    assert questions_of(outcome.rows) == {"all": {60}}


def loops() -> list[ROW]:
    """Users stay in a list of five tracks, and the next is one of the other four."""
    draw = np.random.default_rng(7)
    rows = []
    for user in range(120):
        own, track = int(draw.integers(30)), int(draw.integers(5))
        for time in range(20):
            rows.append((user, own * 5 + track, time))
            track = (track + int(draw.integers(1, 5))) % 5
    return rows


def test_loops_are_chosen_and_measured_among_all_items(tmp_path: Path) -> None:
    """Nobody can know the next of four: NDCG@10 is at most the mean of 1/log2(2..5)."""
    rows = loops()
    config = small_config(teacher={"max_epochs": 60, "validate_every": 5, "lr": 0.01})
    outcome, said = run(rows, tmp_path / "loops", config)
    assert outcome.manifest.config.data.validate_by == "all"
    assert "protocol `all`" in said
    histories = [[item for user, item, _ in rows if user == each] for each in range(120)]
    new = sum(history[-1] not in history[:-1] for history in histories)
    expected = {"all": {120}} | ({"unseen": {new}, "sampled-100": {new}} if new else {})
    assert questions_of(outcome.rows) == expected
    ceiling = sum(1 / math.log2(place + 1) for place in (1, 2, 3, 4)) / 4
    assert ceiling == pytest.approx(0.6404, abs=1e-4)
    teacher = next(
        row for row in outcome.rows if (row["name"], row["protocol"]) == ("full data", "all")
    )
    # A mean of 120 draws, each between 0.43 and 1: its standard error is below 0.02.
    assert 0.3 < teacher["ndcg@10"] < ceiling + 0.06
    quality = Summary.load(tmp_path / "loops" / "out").quality
    assert quality is not None
    assert quality.full_data == round(teacher["ndcg@10"], 6)  # as a manifest has it


def test_one_user_with_a_huge_history_keeps_sampled_100_for_the_others(tmp_path: Path) -> None:
    rows = [(user, (7 * user + 3 * time) % 150, time) for user in range(50) for time in range(8)]
    rows += [(50, item, item) for item in range(150)]
    outcome, said = run(rows, tmp_path / "huge", small_config())
    assert questions_of(outcome.rows) == {"all": {51}, "unseen": {51}, "sampled-100": {50}}
    assert "`sampled-100` leaves out 1 of 51 questions" in said


def test_an_earlier_release_s_bundle_has_its_quality(tmp_path: Path) -> None:
    """Rows of protocol `full`, no number of questions, and settings that it did not have."""
    run(noise(), tmp_path / "new", small_config())
    folder = tmp_path / "new" / "out"
    made = Summary.load(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    of_then = ("full data", "popularity", "initial summary", "TD3 summary")
    old_rows = [
        row for row in manifest["results"] if row["protocol"] != "all" and row["name"] in of_then
    ]
    for row in old_rows:
        del row["questions"], row["bytes"]
        row["protocol"] = {"unseen": "full"}.get(row["protocol"], row["protocol"])
    manifest["results"] = old_rows
    for setting in ("duplicates", "validate_by"):
        del manifest["config"]["data"][setting]
    del manifest["config"]["teacher"]["ease_items"]
    for count in ("repeat_share", "duplicates"):
        del manifest["statistics"][count]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    old = Summary.load(folder)
    assert old.quality == made.quality is not None
    # It counted every row, and chose by what is `unseen` today where nothing repeats.
    assert (old.config.data.duplicates, old.config.data.validate_by) == ("keep", "unseen")
    assert "ease_items" not in manifest["config"]["teacher"]
