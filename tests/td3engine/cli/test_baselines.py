"""`td3 baselines`: the table, the file, the note, and errors as one line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import td3engine as td3
from td3engine.cli.main import app
from td3engine.evaluation.full_data import full_data_note
from td3engine.evaluation.table import COUNTING_MIXED
from tests.td3engine.small import LOG_ROWS, SMALL, set_options, write_small_log

runner = CliRunner()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("log") / "log.csv")


def without_times(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [
        {key: value for key, value in row.items() if not key.endswith("_seconds")} for row in rows
    ]


@pytest.mark.parametrize("network", [False, True])
def test_the_table_and_the_file_have_the_rows_of_the_library(
    log: Path, tmp_path: Path, network: bool
) -> None:
    out = tmp_path / "rows.json"
    arguments = ["baselines", str(log), "--json", str(out), "--seed", "3", *set_options()]
    done = runner.invoke(app, [*arguments, *([] if network else ["--no-network"])])
    assert done.exit_code == 0, done.output
    kept = json.loads(out.read_text())
    ours = td3.baselines(log, config={**SMALL, "seed": 3}, network=network)
    assert without_times(kept) == without_times([dict(row) for row in ours])
    names = LOG_ROWS if network else (COUNTING_MIXED, *LOG_ROWS[2:])
    lines = done.output.partition("note: ")[0].splitlines()
    for name in names:
        assert sum(line.startswith(f"{name} ") for line in lines) == 3
    said = " ".join(done.output.split())
    for protocol in ("all", "unseen", "sampled-100"):
        assert f"protocol `{protocol}`, 40 questions" in said
    note = full_data_note(ours)
    assert (note is not None) == ("a model that counts" in said)
    assert "note: counting models' settings, chosen on validation: repeat rule (decay " in said
    if not network:
        assert note is None
    if note:
        assert note in said
    assert f"rows: {out}" in said


def test_a_preset_is_taken(log: Path, tmp_path: Path) -> None:
    """`auto` too, whose knobs depend on the log."""
    out = tmp_path / "rows.json"
    options = ["--preset", "auto", "--no-network", "--json", str(out), *set_options()]
    done = runner.invoke(app, ["baselines", str(log), *options])
    assert done.exit_code == 0, done.output
    ours = td3.baselines(log, config=SMALL, preset="auto", network=False)
    assert without_times(json.loads(out.read_text())) == without_times([dict(row) for row in ours])


def test_without_a_file_nothing_is_written(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(app, ["baselines", str(log), "--no-network", *set_options()])
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []
    assert "rows:" not in done.output


def test_what_is_wrong_is_one_line(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "td3engine.api.baselines.fit_counting_models", lambda *_: pytest.fail("it counted")
    )
    there = tmp_path / "there.json"
    there.write_text("mine")
    text = tmp_path / "text.csv"
    text.write_text("nothing to be seen\n")
    for arguments, code, why in (
        ([str(tmp_path / "absent.csv")], 65, "absent.csv"),
        ([str(text)], 65, "column"),
        ([str(tmp_path)], 65, "text.csv: no user column"),
        ([str(log), "--json", str(there)], 65, "exists already"),
        ([str(log), "--json", str(tmp_path / "no" / "x.json")], 65, "no folder"),
        ([str(log), "--set", "teacher.epoch=3"], 2, "teacher.epoch"),
        ([str(log), "--set", "data.duplicates=some"], 2, "data.duplicates"),
        ([str(log), "--set", "data.min_user_interactions=999"], 65, "after the filter"),
        ([str(log), "--columns", "user"], 2, "NAME=VALUE"),
    ):
        done = runner.invoke(app, ["baselines", *arguments])
        assert done.exit_code == code, done.output
        assert why in done.output
        assert len(done.output.strip().splitlines()) == 1, done.output
        assert done.output.startswith("error: ")
    assert there.read_text() == "mine"


def test_what_was_dropped_and_what_is_absent_is_said(tmp_path: Path) -> None:
    """Of the small log with every row twice and repeats, as a run says it."""
    rows = write_small_log(tmp_path / "log.csv").read_text().splitlines()
    twice = tmp_path / "twice.csv"
    twice.write_text("\n".join([rows[0], *(row for row in rows[1:] for _ in range(2))]) + "\n")
    options = [*set_options(), "--set", "data.test_users=10"]
    done = runner.invoke(app, ["baselines", str(twice), "--no-network", *options])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert f"note: {len(rows) - 1:,} rows have the user, item and time of an earlier row" in said
    assert "note: test figures are of 10 of 40 users" in said
