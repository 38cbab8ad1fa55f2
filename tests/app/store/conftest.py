"""A fixture: a dataset to create jobs on."""

from pathlib import Path

import pytest

from app.store.engine import Store
from tests.app.store.kit import make_dataset


@pytest.fixture
def dataset_id(store: Store, tmp_path: Path) -> str:
    """A dataset with bytes."""
    return make_dataset(store, tmp_path, b"a log")
