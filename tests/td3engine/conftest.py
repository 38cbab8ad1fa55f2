"""Real logs for the engine's tests. Each test that needs one skips, with the reason, without it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from td3engine.data.movielens import FetchError, cache_folder, fetch_ml100k

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def ml100k_path() -> Path:
    """MovieLens-100k as RecBole writes it; fetched once and kept in the user's cache."""
    try:
        return fetch_ml100k(cache_folder())
    except FetchError as error:
        pytest.skip(f"MovieLens-100k is not to be had: {error}")


@pytest.fixture(scope="session")
def shared_log() -> Callable[[str], Path]:
    """Path of a log in the project's shared data, by name."""

    def find(name: str) -> Path:
        path = SHARED_DATA / f"{name}.csv.gz"
        if not path.exists():
            pytest.skip(f"{path} is absent")
        return path

    return find
