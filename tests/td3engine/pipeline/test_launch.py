"""`distil`: when the log is read, and what a log is known by."""

from pathlib import Path

import pytest

from td3engine.contract import MANIFEST_FILE
from td3engine.data.reading import read_log
from td3engine.data.types import Interactions, LogError
from td3engine.errors import CheckpointMismatchError, Interrupted, OutputExistsError
from td3engine.pipeline.launch import launch
from td3engine.pipeline.run import Control
from tests.td3engine.small import small_config, write_small_log

CONTROL = Control(lambda _: None)


def test_a_taken_folder_is_refused_before_the_log_is_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text("{}")

    def read() -> Interactions:
        pytest.fail("it read the log")

    with pytest.raises(OutputExistsError, match="take another folder"):
        launch(read, small_config(), tmp_path, CONTROL)


def test_a_log_that_cannot_be_read_makes_no_folder(tmp_path: Path) -> None:
    def read() -> Interactions:
        raise LogError("bad_value", "no number", line=3)

    with pytest.raises(LogError):
        launch(read, small_config(), tmp_path / "out", CONTROL)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_run_is_refused_with_a_remedy(tmp_path: Path) -> None:
    log = read_log(write_small_log(tmp_path / "log.csv", users=20))
    with pytest.raises(Interrupted):
        stopped = Control(listener=lambda _: None, stop=lambda: True)
        launch(lambda: log, small_config(), tmp_path / "out", stopped)
    with pytest.raises(CheckpointMismatchError, match="or release: delete it to begin anew"):
        launch(lambda: log, small_config(seed=1), tmp_path / "out", CONTROL)
