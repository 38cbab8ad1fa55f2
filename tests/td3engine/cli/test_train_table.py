"""What `td3 train` compares its learners with: the rows of the summary's manifest."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from td3engine.cli.main import app
from tests.td3engine.small import LEARNER_ROWS, LOG_ROWS, set_options, write_small_log

runner = CliRunner()
OF_LEARNERS = LEARNER_ROWS[:-1]  # the summary's own row is measured anew


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("log") / "log.csv")


@pytest.fixture(scope="module")
def summary(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("summary") / "out"
    done = runner.invoke(app, ["distill", str(log), "--out", str(out), *set_options()])
    assert done.exit_code == 0, done.output
    return out


def trained(summary: Path, log: Path, *more: str) -> str:
    arguments = ["train", str(summary), "--log", str(log), "--seeds", "1", *more]
    done = runner.invoke(app, [*arguments, "--mode", "shared-items"])
    assert done.exit_code == 0, done.output
    return done.output


def table(output: str, protocol: str = "all") -> dict[str, list[str]]:
    """Rows of one protocol's table in order: name, and the words after it."""
    parts = output.split("On the test events, ")
    (part,) = (each for each in parts if each.startswith(f"protocol `{protocol}`"))
    known = (*LOG_ROWS, *LEARNER_ROWS)
    return {
        name: line.removeprefix(name).split()
        for line in part.splitlines()
        for name in known
        if line.startswith(f"{name} ")
    }


def test_what_the_summary_must_beat_comes_first(summary: Path, log: Path) -> None:
    output = trained(summary, log)
    results = json.loads((summary / "manifest.json").read_text())["results"]
    for protocol in ("all", "unseen", "sampled-100"):
        rows = table(output, protocol)
        assert list(rows) == [*LOG_ROWS, *LEARNER_ROWS]
        kept = {row["name"]: row for row in results if row["protocol"] == protocol}
        best = kept["teacher"]["ndcg@10"]
        for name in (*LOG_ROWS, *OF_LEARNERS):
            mode, hits, ndcg, *_, share, _kib = rows[name]
            assert mode == ("scratch" if name in LOG_ROWS else "shared")
            assert float(hits) == pytest.approx(kept[name]["hr@10"], abs=1e-4)
            assert float(ndcg) == pytest.approx(kept[name]["ndcg@10"], abs=1e-4)
            assert share == f"{kept[name]['ndcg@10'] / best:.0%}"
        *_, ndcg, share, seconds, _kib = rows["TD3 summary"]
        assert float(share.rstrip("%")) == pytest.approx(100 * float(ndcg) / best, abs=0.6)
        assert float(seconds) >= 0


@pytest.mark.parametrize("other", [["--backbone", "narm"], ["--set", "learner.steps=5"]])
def test_other_learners_are_not_compared_with_those_of_the_run(
    summary: Path, log: Path, other: list[str]
) -> None:
    assert list(table(trained(summary, log, *other))) == [*LOG_ROWS, "TD3 summary"]


def test_other_events_of_the_same_items_have_other_questions(
    summary: Path, log: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more.csv"
    content = log.read_text()
    user, item, _ = content.splitlines()[1].split(",")
    more.write_text(f"{content}{user},{item},99\n")
    output = trained(summary, more)
    assert "note: this log has other events than the one" in " ".join(output.split())
    assert "other events" not in trained(summary, log)
    rows = table(output)
    assert list(rows) == ["TD3 summary"]
    assert rows["TD3 summary"][3] == "-"


def test_rows_of_an_earlier_release_are_left_out(summary: Path, log: Path, tmp_path: Path) -> None:
    old = shutil.copytree(summary, tmp_path / "old")
    manifest = json.loads((old / "manifest.json").read_text())
    for row in manifest["results"]:
        row["protocol"] = {"unseen": "full"}.get(row["protocol"], row["protocol"])
        del row["questions"], row["bytes"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    output = trained(old, log)
    assert list(table(output)) == ["TD3 summary"]
    assert "`full`" not in output


def test_it_says_which_questions_a_protocol_leaves_out(tmp_path: Path) -> None:
    lines = [f"u{user},i{(user + n) % 20},{n}" for user in range(20) for n in range(8)]
    log = tmp_path / "tiny.csv"
    log.write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    out = tmp_path / "out"
    done = runner.invoke(app, ["distill", str(log), "--out", str(out), *set_options()])
    assert done.exit_code == 0, done.output
    said = " ".join(trained(out, log).split())
    assert "note: too few items for 100 negatives a user: no `sampled-100` figures" in said
