"""`train` and `evaluate` against the rows that a run puts into its manifest, and the command."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

import td3engine as td3
from td3engine.cli.main import app
from td3engine.config import Mode
from td3engine.data.split import split_log
from td3engine.errors import DivergedError, UnusableError, WrongLogError
from td3engine.evaluation.baselines import summary_rows
from td3engine.evaluation.benchmark import benchmark_for
from td3engine.models.trained_model import TrainedModel
from tests.td3engine.api.conftest import Made
from tests.td3engine.small import write_small_log


def weights(model: TrainedModel) -> bytes:
    return model.parameters.numpy().tobytes() + model.table.numpy().tobytes()


def ndcg_by_hand(made: Made, model: TrainedModel, role: str) -> float:
    """NDCG@10 of new items among those that a user has not met; ties count as lost."""
    split = split_log(made.log, made.summary.config.data)
    gains = []
    for user in split.evaluated:
        history = split.history(user).tolist()
        end = len(history) - (1 if role == "test" else 2)
        before, target = history[:end], history[end]
        if target in before:
            continue
        recent = torch.tensor([before[-model.reads :]])
        state = model.states(recent, torch.tensor([recent.shape[1]]))[0].numpy()
        scores = model.table.numpy().astype(np.float64) @ state.astype(np.float64)
        rivals = [item for item in range(split.n_items) if item not in {*before, target}]
        place = 1 + sum(bool(scores[item] >= scores[target]) for item in rivals)
        gains.append(1 / np.log2(place + 1) if place <= 10 else 0.0)
    return float(np.mean(gains))


SIX_DECIMALS = 0.6e-6  # that a manifest's figures have


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_models_are_those_behind_the_manifest(made: Made, mode: Mode) -> None:
    """Three of them, measured one by one, have the mean and deviation of the run's own row."""
    models = [td3.train(made.summary, None, mode, log=made.log, seed=seed) for seed in (1, 2, 3)]
    if mode == made.summary.manifest.distilled_for:
        rows = [row for row in made.summary.manifest.results if row["name"] == "TD3 summary"]
    else:
        benchmark = benchmark_for(made.summary, made.log, torch.device("cpu"))
        measure = summary_rows(benchmark, "x", made.summary.factors, mode, (1, 2, 3))
        rows = [dict(row) for row in measure]
    measured = [td3.evaluate(model, made.log) for model in models]
    assert {row["protocol"] for row in rows} == set(measured[0]) == {"all", "unseen", "sampled-100"}
    for row in rows:
        for figure in ("hr@10", "ndcg@10", "mrr@20"):
            values = [each[row["protocol"]][figure] for each in measured]
            assert row[figure] == pytest.approx(np.mean(values), abs=SIX_DECIMALS)
        spread = np.std([each[row["protocol"]]["ndcg@10"] for each in measured], ddof=1)
        assert row["ndcg@10_std"] == pytest.approx(spread, abs=SIX_DECIMALS)
    by_hand = [ndcg_by_hand(made, model, "test") for model in models]
    assert [each["unseen"]["ndcg@10"] for each in measured] == pytest.approx(by_hand)


def test_a_log_chooses_the_best_state_and_without_one_it_is_the_last(made: Made) -> None:
    """A learner is looked at every few steps; what has a log is never worse on validation."""
    settings = {"steps": 120, "lr": 0.5, "schedule": "constant"}
    differ = 0
    for seed in range(1, 3):
        last = made.summary.fit(seed=seed, settings=settings)
        best = made.summary.fit(seed=seed, settings=settings, log=str(made.log_path))
        chosen, final = (ndcg_by_hand(made, model, "validation") for model in (best, last))
        assert chosen >= final
        differ += weights(best) != weights(last)
    assert differ


def test_same_seed_same_model_and_other_words_for_the_same_call(made: Made) -> None:
    model = td3.train(made.summary)
    again = td3.train(td3.load_summary(made.folder), "sasrec", "shared-items", seed=1, log=None)
    assert weights(model) == weights(again) == weights(made.summary.fit())
    assert weights(td3.train(made.summary, seed=2)) != weights(model)
    assert weights(td3.train(made.summary, settings={"steps": 9})) != weights(model)


@pytest.mark.parametrize("backbone", ["gru4rec", "bert4rec"])
def test_a_model_knows_its_items_and_its_configuration(made: Made, backbone: Any) -> None:
    model = made.summary.fit(backbone, settings={"steps": 8})
    assert model.backbone.config.name == backbone
    assert list(model.item_ids) == made.summary.item_ids
    assert model.data == made.summary.config.data
    assert model.reads == made.summary.length - 1
    assert model.table.device.type == "cpu"
    assert torch.equal(model.table[:, :8], made.summary.factors.V)
    scratch = made.summary.fit(backbone, "from-scratch", settings={"scratch_steps": 8})
    assert not torch.equal(scratch.table[:, :8], made.summary.factors.V)


def test_the_command_saves_the_model_that_train_gives(made: Made, tmp_path: Path) -> None:
    for name, backbone in (("own", None), ("other", "narm")):
        path = tmp_path / name
        arguments = ["train", str(made.folder), "--log", str(made.log_path), "--seeds", "1"]
        arguments += ["--set", "learner.steps=9", "--set", "learner.scratch_steps=9"]
        arguments += ["--backbone", backbone] if backbone else []
        done = CliRunner().invoke(app, [*arguments, "--save", str(path)])
        assert done.exit_code == 0, done.output
        ours = made.summary.fit(
            backbone,
            log=made.log,
            settings={"steps": 9, "scratch_steps": 9},
        )
        ours.save(tmp_path / "ours")
        assert path.read_bytes() == (tmp_path / "ours").read_bytes()
        assert td3.load_model(path).recommend([["i3"]]) == ours.recommend([["i3"]])


def test_a_loaded_model_is_measured_as_the_one_in_hand(made: Made, tmp_path: Path) -> None:
    model = made.summary.fit("bert4rec", settings={"steps": 8})
    model.save(tmp_path / "model")
    assert td3.evaluate(td3.load_model(tmp_path / "model"), made.log_path) == (
        td3.evaluate(model, made.log)
    )


def test_the_old_name_of_a_protocol_is_answered_with_a_warning(made: Made) -> None:
    figures = td3.evaluate(made.summary.fit(settings={"steps": 8}), made.log)
    with pytest.warns(DeprecationWarning, match="`full` is now `unseen`"):
        old = figures["full"]  # type: ignore[index]
    assert old == figures["unseen"]
    assert set(figures) == {"all", "unseen", "sampled-100"}
    with pytest.raises(KeyError, match="ful"):
        figures["ful"]  # type: ignore[index]


def test_another_log_is_refused(made: Made, tmp_path: Path) -> None:
    other = write_small_log(tmp_path / "other.csv", users=12)
    with pytest.raises(WrongLogError, match="not the log it was made from"):
        td3.evaluate(td3.train(made.summary), other)
    with pytest.raises(WrongLogError, match="not the log it was made from"):
        td3.train(made.summary, log=other)
    content = made.log_path.read_text()
    user, item, _ = content.splitlines()[1].split(",")
    more = tmp_path / "more.csv"
    more.write_text(f"{content}{user},{item},999\n")
    with pytest.raises(WrongLogError, match="other events"):
        td3.train(made.summary, log=more)
    td3.train(made.summary, log=more, other_log=True, settings={"steps": 8})
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(made.log_path.read_text().replace(",i3,", ",j3,"))
    with pytest.raises(WrongLogError, match="their ids differ"):
        td3.evaluate(td3.train(made.summary), renamed)


def test_settings_that_cannot_work_are_named(made: Made) -> None:
    with pytest.raises(ValidationError, match="stepps"):
        td3.train(made.summary, settings={"stepps": 3})
    with pytest.raises(ValidationError, match="steps"):
        td3.train(made.summary, settings={"steps": 0})
    with pytest.raises(ValidationError, match="mlp"):
        td3.train(made.summary, "mlp")
    with pytest.raises(UnusableError, match="shared-items, from-scratch, not 'shared'"):
        td3.train(made.summary, mode="shared")  # type: ignore[arg-type]
    with pytest.raises(DivergedError, match="diverged"):
        td3.train(made.summary, settings={"lr": 1e30})
