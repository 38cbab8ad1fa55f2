"""Fetching MovieLens-100k: what is cached, what is checked, how it fails."""

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from td3engine.data import movielens as ml100k
from td3engine.data.movielens import FetchError, fetch_ml100k


def test_what_is_there_is_not_fetched_again(
    ml100k_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ml100k, "_download", lambda _: pytest.fail("downloaded again"))
    assert fetch_ml100k(ml100k_path.parent) == ml100k_path


def pip_that(monkeypatch: pytest.MonkeyPatch, behave: Any) -> None:
    monkeypatch.setattr(subprocess, "run", behave)


def test_a_wheel_with_other_content_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bring(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        wheel = Path(command[command.index("--dest") + 1]) / "recbole-1.2.1.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(ml100k.MEMBER, "something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    pip_that(monkeypatch, bring)
    (tmp_path / "ml-100k.inter").write_text("half a file")
    with pytest.raises(FetchError, match="sha256"):
        fetch_ml100k(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ml-100k.inter"]


def test_no_network_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "retrying\nERROR: no route to host\n")

    pip_that(monkeypatch, fail)
    with pytest.raises(FetchError, match="ERROR: no route to host"):
        fetch_ml100k(tmp_path)
