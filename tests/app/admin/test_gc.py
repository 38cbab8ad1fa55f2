"""The command `td3 gc`."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.admin import gc
from app.settings import Settings
from app.store.engine import Store
from tests.app.store.kit import finished_job, make_dataset


def test_the_command(
    store: Store,
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        gc, "start_command", lambda: Settings(database_url=database_url, retain_jobs_days=30)
    )
    finished_job(store, make_dataset(store, tmp_path, b"a log"), days_ago=9)

    def run(*arguments: str) -> dict[str, Any]:
        assert gc.main(list(arguments)) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    nothing = {"jobs": 0, "events": 0, "datasets": 0}
    one = {"jobs": 1, "events": 2, "datasets": 0}
    assert run() == {"dry_run": False, **nothing}
    assert run("--jobs-days", "7", "--dry-run") == {"dry_run": True, **one}
    assert run("--jobs-days", "7") == {"dry_run": False, **one}
    with pytest.raises(SystemExit):
        gc.main(["--jobs-days", "-1"])
    monkeypatch.setattr(gc, "start_command", lambda: Settings(database_url=database_url))
    with pytest.raises(SystemExit):
        gc.main([])
    assert "nothing is to go" in capsys.readouterr().err


def test_a_database_that_no_service_has_used_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'none.db'}"
    monkeypatch.setattr(gc, "start_command", lambda: Settings(database_url=url))
    assert gc.main(["--jobs-days", "1"]) == 1
    assert capsys.readouterr().err == f"td3 gc: no service has used {url} yet\n"
