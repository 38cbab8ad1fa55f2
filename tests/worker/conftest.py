"""Fixtures: a service of workers on each database. What they give is in kit.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.kit import Service


@pytest.fixture
def service(sqlite_url: str, broker_url: str, tmp_path: Path) -> Iterator[Service]:
    """A service on SQLite."""
    service = Service(sqlite_url, broker_url, tmp_path)
    yield service
    service.close()


@pytest.fixture
def any_service(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Service]:
    """A service on each kind of database."""
    service = Service(database_url, broker_url, tmp_path)
    yield service
    service.close()
