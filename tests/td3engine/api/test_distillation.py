"""`distill`: the command's bytes, resumed by folder, watched by a function."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

import td3engine as td3
from td3engine.cli.main import app
from td3engine.contract import CHECKPOINT_FILE, SUMMARY_FILES
from td3engine.data.types import LogError
from td3engine.errors import CheckpointMismatchError, Interrupted, OutputExistsError
from td3engine.events import Event, PhaseStarted, Progress
from tests.td3engine.api.conftest import Made, bytes_of
from tests.td3engine.small import SMALL, write_small_log


def as_options(parts: dict[str, Any], above: str = "") -> list[str]:
    options = []
    for key, value in parts.items():
        if isinstance(value, dict):
            options += as_options(value, f"{above}{key}.")
        else:
            options += ["--set", f"{above}{key}={value}"]
    return options


def test_the_eight_lines(made: Made, tmp_path: Path) -> None:
    """ARCHITECTURE's example, from a log to a model that recommends."""
    log = td3.read_log(made.log_path)
    summary = td3.distill(log, preset="fast", config=SMALL, progress=True)
    summary.save(tmp_path / "summary")
    summary = td3.load_summary(tmp_path / "summary")
    model = td3.train(summary, backbone="gru4rec", settings={"steps": 8})
    (best,) = model.recommend([["i3", "i5"]], k=10)
    model.save(tmp_path / "m")
    assert td3.load_model(tmp_path / "m").recommend([["i3", "i5"]], k=10) == [best]
    assert len(set(best)) == 10
    assert set(best) <= set(log.item_ids) - {"i3", "i5"}
    figures = td3.evaluate(model, log)
    assert set(figures) == {"all", "unseen", "sampled-100"}
    for metrics in figures.values():
        named = {f"{m}@{k}" for m in ("hr", "ndcg", "mrr") for k in (5, 10, 20)}
        assert set(metrics) == named | {"questions"}
    batches = list(summary.torch_dataset())
    assert len(batches) == len(summary) == 4


def test_the_command_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    options = [str(made.log_path), "--out", str(tmp_path / "cli"), "--seed", "5"]
    done = CliRunner().invoke(app, ["distill", *options, *as_options(SMALL)])
    assert done.exit_code == 0, done.output
    assert bytes_of(tmp_path / "cli") == bytes_of(made.folder)
    assert {path.name for path in made.folder.iterdir()} == set(SUMMARY_FILES)


def test_without_a_folder_a_read_log_gives_the_same_summary(made: Made, tmp_path: Path) -> None:
    """No folder, no listener, a log that has been read; and from a thread, which has no signals."""
    results: list[td3.Summary] = []

    def work() -> None:
        results.append(td3.distill(made.log, config=SMALL | {"seed": 3}, seed=5))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    results[0].save(tmp_path)
    assert bytes_of(tmp_path) == bytes_of(made.folder)


def test_a_function_is_called_with_every_event(made: Made) -> None:
    phases = [event.phase for event in made.events if isinstance(event, PhaseStarted)]
    assert phases == ["preparing", "pretraining", "distilling", "evaluating"]
    steps = [e.step for e in made.events if isinstance(e, Progress) and e.phase == "distilling"]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("phase", "step"), [("pretraining", 2), ("distilling", 3)])
def test_a_stopped_run_goes_on_from_its_folder(
    made: Made, tmp_path: Path, phase: str, step: int
) -> None:
    """Ctrl-C: the signal asks for a checkpoint, and the same call ends with the same bytes."""
    events: list[Event] = []

    def stop_there(event: Event) -> None:
        if isinstance(event, Progress) and (event.phase, event.step) == (phase, step):
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        td3.distill(made.log, config=SMALL, seed=5, folder=tmp_path, progress=stop_there)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(CheckpointMismatchError):
        td3.distill(made.log, config=SMALL, seed=6, folder=tmp_path)
    td3.distill(made.log, config=SMALL, seed=5, folder=tmp_path, progress=events.append)
    assert bytes_of(tmp_path) == bytes_of(made.folder)
    assert not (tmp_path / CHECKPOINT_FILE).exists()
    first = next(e for e in events if isinstance(e, Progress) and e.phase == phase)
    assert first.step == step + 1


def test_a_listener_may_end_the_run(made: Made, tmp_path: Path) -> None:
    def give_up(event: Event) -> None:
        if isinstance(event, Progress):
            raise Interrupted("by the listener")

    with pytest.raises(Interrupted, match="by the listener"):
        td3.distill(made.log, config=SMALL, folder=tmp_path, progress=give_up)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_a_summary_is_refused_before_the_log_is_read(made: Made) -> None:
    with pytest.raises(OutputExistsError, match="summary"):
        td3.distill("no such log.csv", config=SMALL, folder=made.folder)


def test_what_cannot_work_is_named(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"outer\.stepps"):
        td3.distill(made.log, config={"outer": {"stepps": 3}})
    with pytest.raises(FileNotFoundError, match="absent"):
        td3.distill(tmp_path / "absent.csv", config=SMALL)
    few = write_small_log(tmp_path / "few.csv", users=2)
    with pytest.raises(LogError) as refused:
        td3.distill(few, config=SMALL | {"data": {"min_item_interactions": 9}})
    assert refused.value.code == "too_little_data"


def test_the_settings_handed_in_are_not_changed(made: Made) -> None:
    config = {"outer": {"stepps": 3}}
    with pytest.raises(ValidationError):
        td3.distill(made.log, config=config, seed=4)
    assert config == {"outer": {"stepps": 3}}
