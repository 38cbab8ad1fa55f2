"""A summary in hand: its facts, its exports, its training data, against NumPy and the command."""

import csv
import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import td3engine as td3
from td3engine.api.summary import Summary
from td3engine.cli.main import app
from td3engine.errors import BundleError, OutputExistsError, UnusableError
from td3engine.summary.labelled import LabelledSummary
from td3engine.summary.tucker import TuckerSummary
from tests.td3engine.api.conftest import Made, bytes_of


def softmax(scores: Any) -> Any:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def queries(factors: TuckerSummary, time: torch.Tensor) -> Any:
    """C by its definition, float64 (mu, zeta, d)."""
    U, G = (each.double().numpy() for each in (factors.U, factors.G))
    C = np.zeros((len(U), len(time), G.shape[2]))
    for a in range(U.shape[1]):
        for b in range(time.shape[1]):
            C += U[:, a, None, None] * time.double().numpy()[None, :, b, None] * G[a, b]
    return C


def queries_of_items(factors: LabelledSummary) -> tuple[Any, Any]:
    """Of inputs and of targets: those of inputs have the directions of their items' centred rows
    and one length, at which they score log n + sharpness above the mean item, on average."""
    V = factors.V.double().numpy()
    rows = (V - V.mean(0))[factors.items.numpy()]
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    read = rows / lengths * (np.log(len(V)) + factors.sharpness) / lengths.mean()
    # Nothing precedes the first event, which stands there itself.
    return read, np.concatenate([read[:, :1], factors.labels.double().numpy()], 1)


def probabilities(summary: Summary) -> tuple[Any, Any]:
    """What is read and what is to be predicted at each position, float64 (mu, zeta, n)."""
    factors = summary.factors
    V = factors.V.double().numpy()
    if isinstance(factors, LabelledSummary):
        read, predicted = queries_of_items(factors)
        return softmax(read @ V.T), softmax(predicted @ V.T)
    assert factors.Y is not None
    # The last event is read for nothing and the first predicted from nothing (docs/method.md).
    time_read = torch.cat([factors.T[:-1], factors.Y[-1:]])
    time_predicted = torch.cat([factors.T[:1], factors.Y[1:]])
    read, predicted = (queries(factors, time) @ V.T for time in (time_read, time_predicted))
    return softmax(read), softmax(predicted)


@pytest.fixture(params=["items", "soft"])
def summary(made: Made, request: pytest.FixtureRequest) -> Summary:
    """The one that was made, and one of soft inputs of its size."""
    if request.param == "items":
        assert isinstance(made.summary.factors, LabelledSummary)
        return made.summary
    draw = torch.Generator().manual_seed(3)
    shapes = (4, 2), (8, 2), (2, 2, 8)
    U, T, G = (torch.randn(shape, generator=draw) for shape in shapes)
    Y = torch.randn(8, 2, generator=draw)
    return replace(made.summary, factors=TuckerSummary(U, T, G, made.summary.factors.V, Y))


def test_a_summary_says_how_large_and_how_good_it_is(made: Made) -> None:
    summary = made.summary
    manifest = json.loads((made.folder / "manifest.json").read_text())
    chosen_by = manifest["config"]["data"]["validate_by"]
    assert chosen_by == "unseen"
    rows = {row["name"]: row for row in manifest["results"] if row["protocol"] == chosen_by}
    ours, full = rows["TD3 summary"]["ndcg@10"], rows["full data"]["ndcg@10"]
    assert summary.quality == (ours, full, ours / full)
    assert (len(summary), summary.length, summary.n_items) == (4, 8, len(summary.item_ids))
    assert summary.bytes == (made.folder / "summary.safetensors").stat().st_size
    assert summary.config.seed == 5
    said = repr(summary)
    assert said.startswith("Summary(size: 4 sequences of 8, ")
    for fact in ("480 interactions", "shared-items", "sasrec", f"{ours:.4f}", f"{ours / full:.0%}"):
        assert fact in said
        assert fact in summary._repr_html_()


def without_results(summary: Summary, **changes: Any) -> Summary:
    manifest = summary.manifest.model_copy(update={"results": [], **changes})
    return replace(summary, manifest=manifest)


def test_what_was_not_measured_is_none_and_not_shown(made: Made) -> None:
    summary = without_results(made.summary)
    assert summary.quality is None
    assert "NDCG" not in repr(summary)
    assert "NDCG" not in summary._repr_html_()
    nothing = [row | {"ndcg@10": 0.0} for row in made.summary.manifest.results]
    assert without_results(made.summary, results=nothing).quality is None
    sampled = [row for row in made.summary.manifest.results if row["protocol"] != "unseen"]
    assert without_results(made.summary, results=sampled).quality is None


def test_a_notebook_is_not_shown_hostile_markup(made: Made) -> None:
    hostile = "<script>alert('1')</script>&\""
    summary = without_results(made.summary, distilled_for=hostile)
    shown = summary._repr_html_()
    assert "<script" not in shown
    assert html.escape(hostile) in shown
    assert shown.count("<tr>") == shown.count("</tr>") == 5


def test_saved_and_loaded_it_has_the_same_bytes(made: Made, tmp_path: Path) -> None:
    made.summary.save(tmp_path / "new" / "folder")
    assert bytes_of(tmp_path / "new" / "folder") == bytes_of(made.folder)
    td3.load_summary(str(tmp_path / "new" / "folder")).save(str(tmp_path / "again"))
    assert bytes_of(tmp_path / "again") == bytes_of(made.folder)
    with pytest.raises(OutputExistsError, match="again"):
        made.summary.save(tmp_path / "again")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        td3.load_summary(tmp_path / "absent")


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"seed": 3}, ["--seed", "3"]),
        ({"copies": 2}, ["--copies", "2"]),
        (
            {"copies": 3, "guidance": None, "repeats": True, "temperature": 1.5},
            ["--copies", "3", "--sampling", "independent", "--repeats", "--temperature", "1.5"],
        ),
        ({"copies": 2, "guidance": 0.25}, ["--copies", "2", "--guidance", "0.25"]),
    ],
)
def test_sequences_are_those_of_the_command(
    made: Made, tmp_path: Path, options: dict[str, Any], arguments: list[str]
) -> None:
    out = tmp_path / "out.csv"
    done = CliRunner().invoke(app, ["export", str(made.folder), "--out", str(out), *arguments])
    assert done.exit_code == 0, done.output
    users: dict[str, list[str]] = {}
    with out.open(newline="") as file:
        for row in csv.DictReader(file):
            users.setdefault(row["user_id"], []).append(row["item_id"])
    assert made.summary.sequences(**options) == list(users.values())
    assert len(users) == 4 * options.get("copies", 20)


def test_top_items_are_those_of_the_softmax(summary: Summary) -> None:
    read, _ = probabilities(summary)
    for sequence in (0, 3, -1):
        positions = summary.top_items(sequence, 4)
        assert len(positions) == 8
        for expected, best in zip(read[sequence], positions, strict=True):
            order = np.argsort(-expected)[:4]
            assert [item for item, _ in best] == [summary.item_ids[item] for item in order]
            np.testing.assert_allclose([p for _, p in best], expected[order], rtol=1e-4)
    n = summary.n_items
    assert {len(best) for best in summary.top_items(0, n + 5)} == {n}
    with pytest.raises(IndexError):
        summary.top_items(4)
    with pytest.raises(UnusableError, match="positive, not 0"):
        summary.top_items(0, 0)


def test_the_dataset_is_what_the_method_says(summary: Summary) -> None:
    read, predicted = probabilities(summary)
    V = summary.factors.V.double().numpy()
    data = summary.torch_dataset()
    assert len(data) == 4
    for index, item in enumerate(data):
        assert item["inputs"].dtype == item["targets"].dtype == torch.float32
        np.testing.assert_allclose(item["inputs"], read[index] @ V, atol=1e-5)
        np.testing.assert_allclose(item["targets"], predicted[index], rtol=1e-4, atol=1e-7)
    assert torch.equal(data[-1]["inputs"], data[3]["inputs"])
    for outside in (4, -5, 10**9):
        with pytest.raises(IndexError, match=f"4 synthetic sequences, not one of index {outside}"):
            data[outside]


def test_a_data_loader_takes_the_dataset(summary: Summary) -> None:
    data = summary.torch_dataset()
    n = summary.n_items
    batches = list(DataLoader(data, batch_size=2))
    assert [tuple(batch["inputs"].shape) for batch in batches] == [(2, 8, 8)] * 2
    assert [tuple(batch["targets"].shape) for batch in batches] == [(2, 8, n)] * 2
    stacked = torch.cat([batch["targets"] for batch in batches])
    assert torch.equal(stacked, torch.stack([item["targets"] for item in data]))
    shuffled = DataLoader(data, batch_size=3, shuffle=True, generator=torch.Generator())
    assert sum(len(batch["inputs"]) for batch in shuffled) == 4


def test_a_file_is_no_summarys_folder(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,time")
    with pytest.raises(BundleError, match="neither a summary's folder nor its zip"):
        Summary.load(path)
