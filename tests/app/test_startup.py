"""Settings that cannot be used, and variables that are no settings."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.admin import gc, keys
from app.main import check_settings
from app.settings import Settings, SettingsError, read_settings
from app.standalone import serve
from app.startup import EXIT_SETTINGS, unknown_variables
from app.store import migrate

PROCESSES = (
    ("uvicorn", "app.main:app", "--port", "0"),
    ("celery", "-A", "worker.celery_app", "worker", "-P", "threads", "-c", "1"),
)
COMMANDS: tuple[tuple[Callable[[list[str]], int], str], ...] = (
    (serve.main, "--port=0"),
    (keys.main, "list"),
    (gc.main, "--jobs-days=1"),
)
WORDS = "TD3_BROKER_URL: amqp:// is not supported; it may be redis://"


@pytest.fixture
def _amqp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TD3_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TD3_BROKER_URL", "amqp://guest:swordfish@localhost//")


@pytest.mark.usefixtures("_amqp")
def test_every_process_names_the_setting() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in PROCESSES
    ]
    for process in processes:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == EXIT_SETTINGS, said
        assert WORDS in said
        assert "Traceback" not in said
        assert "swordfish" not in said


@pytest.mark.usefixtures("_amqp")
@pytest.mark.parametrize(("command", "argument"), COMMANDS, ids=["serve", "keys", "gc"])
def test_every_command_names_the_setting(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: Callable[[list[str]], int],
    argument: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        command([argument])
    assert ended.value.code == EXIT_SETTINGS
    said = capsys.readouterr().err
    assert WORDS in said
    assert "swordfish" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"TD3_PORT": "http"}, "TD3_PORT: Input should be a valid integer"),
        ({"TD3_QUOTAS": "{"}, "TD3_QUOTAS: not JSON"),
        ({"TD3_QUOTAS": '{"jobs": 1}'}, "TD3_QUOTAS: jobs: Extra inputs"),
        ({"TD3_UPLOAD_LIMITS": '{"max_rows": 0}'}, "TD3_UPLOAD_LIMITS: max_rows: "),
        ({"TD3_DATABASE_URL": "mysql://u:swordfish@h/x"}, "TD3_DATABASE_URL: mysql is not"),
        ({"TD3_BLOBS": "s3://bucket"}, "TD3_BLOBS: s3: is not supported; it may be sql:"),
        ({"TD3_HEARTBEAT_SECONDS": "60"}, "TD3_HEARTBEAT_SECONDS must be below TD3_LEASE"),
        (
            {"TD3_PORT": "-1", "TD3_BROKER_URL": ""},
            "TD3_BROKER_URL: this is no URL.*; TD3_PORT: Input should be greater",
        ),
    ],
)
def test_words(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], words: str) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=words) as refused:
        check_settings(read_settings())
    assert "swordfish" not in str(refused.value)


def test_pydantics_own_words_show_no_password() -> None:
    with pytest.raises(ValueError, match="amqp") as refused:
        Settings(broker_url="amqp://guest:swordfish@localhost//")
    assert "swordfish" not in str(refused.value)


def test_variables_that_are_no_settings() -> None:
    names = ["TD3_BROKER_UL", "td3_dataset_dir", "TD3_XYZZY", "PATH", "TD3_API_KEY", "td3_port"]
    assert unknown_variables(names) == [
        "TD3_BROKER_UL is no setting and has no effect; is TD3_BROKER_URL meant?",
        "TD3_XYZZY is no setting and has no effect (docs/operations.md has all settings)",
        "td3_dataset_dir is no setting and has no effect; is TD3_DATA_DIR meant?",
    ]


def test_a_typo_is_named_at_the_start(tmp_path: Path) -> None:
    environment = {**os.environ, "TD3_DATA_DIR": str(tmp_path), "TD3_BROKER_UL": "redis://h"}
    done = subprocess.run(
        [sys.executable, "-m", "app.store.migrate"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "TD3_BROKER_UL is no setting" in done.stderr


def test_a_migration_without_a_database_ends_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TD3_DATABASE_URL", "postgresql://td3:swordfish@127.0.0.1:1/td3")
    assert migrate.main() == os.EX_TEMPFAIL
    assert "Connection refused" in caplog.text
    assert "swordfish" not in caplog.text
