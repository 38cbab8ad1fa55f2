"""`distil`: when the log is read, and what a log is known by."""

from pathlib import Path

import numpy as np
import pytest

from td3engine.contract import MANIFEST_FILE
from td3engine.data.normalised import write_normalised
from td3engine.data.reading import read_log
from td3engine.data.types import Interactions, LogError
from td3engine.errors import OutputExistsError
from td3engine.pipeline.distil import distil, fingerprint_of
from td3engine.pipeline.run import Control
from tests.td3engine.small import small_config, write_small_log

CONTROL = Control(lambda _: None)


def test_a_taken_folder_is_refused_before_the_log_is_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text("{}")

    def read() -> Interactions:
        pytest.fail("it read the log")

    with pytest.raises(OutputExistsError, match="take another folder"):
        distil(read, small_config(), tmp_path, CONTROL)


def test_a_log_that_cannot_be_read_makes_no_folder(tmp_path: Path) -> None:
    def read() -> Interactions:
        raise LogError("bad_value", "no number", line=3)

    with pytest.raises(LogError):
        distil(read, small_config(), tmp_path / "out", CONTROL)
    assert not (tmp_path / "out").exists()


def test_a_log_is_known_by_its_normalised_file(tmp_path: Path) -> None:
    """However it was written; another event makes it another log."""
    path = write_small_log(tmp_path / "log.csv", users=5)
    log = read_log(path)
    assert fingerprint_of(log) == write_normalised(log, tmp_path / "log.parquet")
    header, *rows = path.read_text().splitlines()
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    # Users are numbered by first appearance: the first user's first row stays first.
    by_user = sorted(shuffled, key=lambda row: int(row.split(",")[0][1:]))
    (tmp_path / "log.tsv").write_text("\n".join([header, *by_user]).replace(",", "\t"))
    assert fingerprint_of(read_log(tmp_path / "log.tsv")) == fingerprint_of(log)
    (tmp_path / "more.csv").write_text("\n".join([header, *rows, "u0,i3,99"]))
    assert fingerprint_of(read_log(tmp_path / "more.csv")) != fingerprint_of(log)
