"""A folder with a small log for each document, and one service for those that talk to one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from td3engine.cli.main import app
from td3engine.config.presets import LEARNERS, PRESETS
from tests.docs.small_presets import environment, shrunk

USERS, ITEMS, EVENTS = 120, 150, 12


def write_ratings(path: Path) -> None:
    """Users who walk along a ring of items: 1,440 rows, `user_id,item_id,timestamp`."""
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(USERS):
        item = int(rng.integers(ITEMS))
        for time in range(EVENTS):
            lines.append(f"u{user},i{item},{time}")
            item = (item + int(rng.integers(1, 4))) % ITEMS
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(autouse=True)
def small_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets whose distillation takes a second, in this process."""
    for name, preset in shrunk(PRESETS).items():
        monkeypatch.setitem(PRESETS, name, preset)
    for backbone in LEARNERS:  # steps of their own: some hundreds
        monkeypatch.setitem(LEARNERS, backbone, {})


@pytest.fixture
def page_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a document's commands run in: `ratings.csv` is there."""
    write_ratings(tmp_path / "ratings.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
