"""The choice of a blob store, and what child processes learn of it."""

import pytest

from app.blobs import registry
from app.blobs.sql import SqlBlobStore
from app.processes.environment import environment_without_secrets
from app.settings import Settings
from app.store.engine import Store


def test_the_default_is_the_database(store: Store) -> None:
    assert isinstance(registry.open_blob_store(Settings(), store), SqlBlobStore)


def test_unknown_kinds_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="TD3_BLOBS: s4: is not supported; it may be sql:"):
        registry.open_blob_store(Settings(blobs="s4://bucket"), store)


def test_children_do_not_inherit_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TD3_BLOBS", "TD3_DATABASE_URL", "CLOUD_KEY", "PLAIN"):
        monkeypatch.setenv(name, "value")
    monkeypatch.setattr(
        "app.processes.environment.secret_variables", lambda: frozenset({"CLOUD_KEY"})
    )
    environment = environment_without_secrets()
    assert environment["PLAIN"] == "value"
    assert not {"TD3_BLOBS", "TD3_DATABASE_URL", "CLOUD_KEY"} & environment.keys()
