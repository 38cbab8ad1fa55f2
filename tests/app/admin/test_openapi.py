"""The committed OpenAPI document is the one that the service has."""

import json
from pathlib import Path

from app.admin.openapi import document

COMMITTED = Path(__file__).parents[3] / "docs" / "openapi.json"


def test_the_document_has_not_drifted() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == document(), "run: make openapi"


def test_operation_ids_are_names_of_calls() -> None:
    """Clients are generated from them: one that changes breaks its users."""
    paths = json.loads(document())["paths"]
    names = [call["operationId"] for calls in paths.values() for call in calls.values()]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name[0].islower() for name in names)
