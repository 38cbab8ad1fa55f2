"""Whole small distillations with the backbones that have no golden history: stop, resume, train."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from td3engine.cli.main import app
from td3engine.config import MODES, BackboneName, Mode
from td3engine.contract import SUMMARY_FILES
from td3engine.data.reading import read_log
from td3engine.data.types import Interactions
from td3engine.errors import Interrupted
from td3engine.pipeline.run import Control, Run
from td3engine.summary.bundle import load_bundle
from tests.td3engine.small import small_config, write_small_log

OPTIONS: dict[BackboneName, dict[str, object]] = {
    "esasrec": {"feed_forward": "gelu"},
    "hstu": {"positions": "relative"},
}


@pytest.fixture(scope="module")
def log_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("log") / "log.csv")


@pytest.fixture(scope="module")
def log(log_path: Path) -> Interactions:
    return read_log(log_path)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_stopped_twice_goes_on_to_the_same_bytes(
    log: Interactions, log_path: Path, tmp_path: Path, name: BackboneName, mode: Mode
) -> None:
    backbone = {"name": name, "layers": 2, "heads": 2, "options": OPTIONS[name]}
    config = small_config(mode=mode, backbone=backbone)

    def run(folder: Path, stop_at: int | None = None) -> None:
        looks = iter(range(1, 1000))
        control = Control(listener=lambda _: None, stop=lambda: next(looks) == stop_at)
        Run(log, log.fingerprint(), config, folder, control).run()

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(whole)
    for stop_at in (2, 5):  # while the teacher trains, while the summary does
        with pytest.raises(Interrupted):
            run(resumed, stop_at)
    run(resumed)
    for file in SUMMARY_FILES:
        assert (resumed / file).read_bytes() == (whole / file).read_bytes(), file
    assert load_bundle(whole).manifest.config.backbone.options == OPTIONS[name]
    saved = tmp_path / "model.safetensors"
    command = ["train", str(whole), "--log", str(log_path), "--seeds", "1", "--mode", mode]
    done = CliRunner().invoke(app, [*command, "--save", str(saved)])
    assert (done.exit_code, saved.exists()) == (0, True), done.output
