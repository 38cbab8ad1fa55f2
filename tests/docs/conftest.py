"""Small presets for every test of the documents, and a service for those that talk to one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from td3engine.cli.main import app
from td3engine.config.presets import PRESETS
from tests.docs.kit import write_ratings
from tests.docs.small_presets import environment, shrunk


@pytest.fixture(autouse=True)
def small_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets whose distillation takes a second, in this process."""
    for name, preset in shrunk(PRESETS).items():
        monkeypatch.setitem(PRESETS, name, preset)
    for name in ("gru4rec", "narm", "bert4rec"):  # their learners have some hundred steps
        module = import_module(f"td3engine.models.backbones.{name}")
        monkeypatch.setattr(module, "BACKBONE", replace(module.BACKBONE, learner={}))


@pytest.fixture(scope="session")
def ready_summary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A summary of `ratings.csv`, by the real engine."""
    folder = tmp_path_factory.mktemp("ready")
    write_ratings(folder / "ratings.csv")
    arguments = ["distill", str(folder / "ratings.csv"), "--out", str(folder / "summary")]
    with pytest.MonkeyPatch.context() as patch:
        for name, preset in shrunk(PRESETS).items():
            patch.setitem(PRESETS, name, preset)
        done = CliRunner().invoke(app, [*arguments, "--preset", "fast"])
    assert done.exit_code == 0, done.output
    return folder / "summary"


@pytest.fixture(scope="session")
def service_url(tmp_path_factory: pytest.TempPathFactory, ready_summary: Path) -> Iterator[str]:
    """A whole service, `td3 serve`, for as long as the tests take. Its jobs end at once."""
    folder = tmp_path_factory.mktemp("service")
    command = [sys.executable, "-m", "td3engine.cli", "serve", "--data-dir", str(folder / "data")]
    engine = [sys.executable, "-m", "tests.docs.ready_engine", str(ready_summary)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", "0"],
            env=environment() | {"TD3_ENGINE_COMMAND": json.dumps(engine)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on "), (folder / "log").read_text()
    yield line.removeprefix("listening on ").strip()
    process.terminate()
    process.wait(60)
