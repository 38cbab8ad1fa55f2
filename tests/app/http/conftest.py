"""Fixtures: a running API on each database. What they give is in kit.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.http.kit import Service, running, settings_for


@pytest.fixture
def service(sqlite_url: str, broker_url: str, tmp_path: Path) -> Iterator[Service]:
    """The API over SQLite."""
    with running(settings_for(sqlite_url, broker_url, tmp_path)) as service:
        yield service


@pytest.fixture
def each_service(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Service]:
    """The API over SQLite, then over PostgreSQL."""
    with running(settings_for(database_url, broker_url, tmp_path)) as service:
        yield service
