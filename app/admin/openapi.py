"""Writes the OpenAPI document of this release: `python -m app.admin.openapi FILE`."""

import json
import sys
from pathlib import Path

from app.main import app


def document() -> str:
    """The text of docs/openapi.json."""
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
