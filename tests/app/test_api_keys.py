"""What a key looks like, and how the server's secret is kept."""

import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.api_keys import digest, ensure_secret, key_id_of, make_key, read_secret
from app.http.schemas.keys import EXAMPLE_KEY
from app.settings import Settings
from app.store.ids import new_id


def test_a_key_names_its_id_and_no_two_are_alike() -> None:
    key_id = new_id("key")
    made = {make_key(key_id) for _ in range(50)}
    assert len(made) == 50
    assert {key_id_of(key) for key in made} == {key_id}
    assert len(EXAMPLE_KEY) == len(made.pop())


def test_any_changed_character_is_noticed() -> None:
    key = make_key(new_id("key"))
    for place in range(len(key)):
        other = "b" if key[place] != "b" else "c"
        assert key_id_of(key[:place] + other + key[place + 1 :]) is None
    for odd in ("", "td3_", key[:-1], key + "0", f" {key}", key.upper(), EXAMPLE_KEY, "\0", "é"):
        assert key_id_of(odd) is None


def test_the_digest_depends_on_all_of_the_key_and_on_the_secret() -> None:
    key, secret = make_key(new_id("key")), b"s" * 32
    assert re.fullmatch("[0-9a-f]{64}", digest(key, secret))
    assert digest(key, secret) == digest(key, secret)
    assert digest(key, secret) != digest(key, b"t" * 32)
    assert digest(key, secret) != digest(key[:-1], secret)


def test_the_secret_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    assert read_secret(settings) is None
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(ensure_secret, [settings] * 8))
    assert made == {read_secret(settings)}
    [path] = (tmp_path / "data").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_given_secret_goes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TD3_KEY_SECRET", "x" * 32)
    settings = Settings(data_dir=tmp_path / "data")
    assert ensure_secret(settings) == b"x" * 32
    assert "x" * 32 not in repr(settings)
    assert not (tmp_path / "data").exists()
    monkeypatch.setenv("TD3_KEY_SECRET", "short")
    with pytest.raises(ValidationError):
        Settings()
    monkeypatch.setenv("TD3_KEY_SECRET", "")  # as Compose passes on what is not set
    assert Settings().key_secret is None
