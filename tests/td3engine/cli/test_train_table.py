"""What `td3 train` compares its learners with: the rows of the summary's manifest."""

import json
import shutil
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from td3engine.cli.main import app
from td3engine.summary.bundle import load_bundle, save_bundle
from td3engine.summary.labelled import LabelledSummary
from tests.td3engine.small import LEARNER_ROWS, LOG_ROWS, learner_rows, set_options, write_small_log

runner = CliRunner()


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
        *of_learners, own = learner_rows(load_bundle(summary).manifest)
        assert list(rows) == [*LOG_ROWS, *of_learners, own]
        kept = {row["name"]: row for row in results if row["protocol"] == protocol}
        best = kept["teacher"]["ndcg@10"]
        for name in (*LOG_ROWS, *of_learners):  # the summary's own row is measured anew
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


def refused(summary: Path, log: Path, *more: str) -> str:
    arguments = ["train", str(summary), "--log", str(log), "--seeds", "1", *more]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 65, done.output
    assert len(done.output.strip().splitlines()) == 1
    return done.output


def test_another_snapshot_is_measured_only_when_asked_and_on_later_events(
    summary: Path, log: Path, tmp_path: Path
) -> None:
    """Of an older snapshot the test events were trained on; of a newer one the later are asked."""
    header, *lines = log.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    last = {user: max(float(t) for u, _, t in rows if u == user) for user, _, _ in rows}
    counts = Counter(item for _, item, _ in rows)
    ends = [row for row in rows if float(row[2]) == last[row[0]]]
    gone = max(ends, key=lambda row: counts[row[1]])  # its item stays in the catalogue
    older = tmp_path / "older.csv"
    kept = [line for line, row in zip(lines, rows, strict=True) if row is not gone]
    older.write_text("\n".join([header, *kept]))
    assert "this is not the log that the summary was made from" in refused(summary, older)
    # Users of another log whose events are all earlier are not asked about.
    until = json.loads((summary / "manifest.json").read_text())["statistics"]["trained_until"]
    assert until == max(
        float(time)
        for user in last
        for time in sorted(float(t) for u, _, t in rows if u == user)[:-1]
    )
    early = set(list(last)[::2])
    other = tmp_path / "other.csv"
    moved = (f"{u},{i},{float(t) - 1000 * (u in early)}" for u, i, t in rows)
    other.write_text("\n".join([header, *moved]))
    assert "--other-log" in refused(summary, other)
    output = trained(summary, other, "--other-log")
    asked = sum(end > until for user, end in last.items() if user not in early)
    assert "note: this log has other events than the one" in " ".join(output.split())
    assert f"test figures are of {asked} of {len(last)} users" in " ".join(output.split())
    assert "other events" not in trained(summary, log)
    measured = table(output)
    assert list(measured) == ["TD3 summary"]
    assert measured["TD3 summary"][3] == "-"


def test_another_log_without_later_events_has_no_question(
    summary: Path, log: Path, tmp_path: Path
) -> None:
    header, *lines = log.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    earlier = tmp_path / "earlier.csv"
    moved = (f"{user},{item},{float(time) - 1000}" for user, item, time in rows)
    earlier.write_text("\n".join([header, *moved]))
    assert "no test event of this log is later" in refused(summary, earlier, "--other-log")


def test_the_order_of_rows_does_not_matter(summary: Path, log: Path, tmp_path: Path) -> None:
    header, *lines = log.read_text().splitlines()
    backwards = tmp_path / "backwards.csv"
    backwards.write_text("\n".join([header, *reversed(lines)]))
    assert table(trained(summary, backwards)).keys() == table(trained(summary, log)).keys()


def test_a_summary_whose_items_have_another_order_is_measured(
    summary: Path, log: Path, tmp_path: Path
) -> None:
    """As earlier releases wrote them: by first appearance among users in the file's order."""
    bundle = load_bundle(summary)
    order = torch.arange(len(bundle.item_ids)).flip(0)
    factors = replace(bundle.factors, V=bundle.factors.V[order])
    if isinstance(factors, LabelledSummary):
        factors = replace(factors, items=order.argsort()[factors.items])
    ids = [bundle.item_ids[number] for number in order]
    save_bundle(tmp_path / "other", factors, ids, bundle.manifest)
    mine, theirs = (
        table(trained(each, log, "--set", "learner.steps=5"))["TD3 summary"]
        for each in (summary, tmp_path / "other")
    )
    assert mine[1:3] == theirs[1:3]


def test_the_zip_of_a_summary_is_read_everywhere(summary: Path, log: Path, tmp_path: Path) -> None:
    packed = tmp_path / "summary.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in summary.iterdir():
            archive.write(path, path.name)
    assert table(trained(packed, log)).keys() == table(trained(summary, log)).keys()
    out = tmp_path / "out.csv"
    done = runner.invoke(app, ["export", str(packed), "--out", str(out), "--copies", "1"])
    assert done.exit_code == 0, done.output
    assert out.exists()
    assert load_bundle(packed).item_ids == load_bundle(summary).item_ids
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "less.zip", "w") as archive:
        archive.writestr("manifest.json", "{}")
    for name, why in (("text.zip", "nor its zip"), ("less.zip", "lacks a file of a summary")):
        assert why in refused(tmp_path / name, log)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "Invalid JSON"),
        ("{}", "config: Field required (and"),
        ("[]", "manifest.json is broken"),
    ],
)
def test_a_broken_manifest_is_one_line(
    summary: Path, log: Path, tmp_path: Path, content: str, told: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(summary, broken)
    (broken / "manifest.json").write_text(content)
    output = refused(broken, log)
    assert "manifest.json is broken" in output
    assert told in output


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
