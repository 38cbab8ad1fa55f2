"""The service must start fast and small: no torch, and nothing of the worker's."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "app.main",
        "app.standalone.serve",
        *(f"td3engine{part}" for part in ("", ".config.presets", ".data.reading", ".client")),
    ],
)
def test_no_torch_is_imported(module: str) -> None:
    program = (
        f"import {module}, sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert module.partition(".")[0] in found
    assert "torch" not in found
    if module.startswith("app"):
        assert "worker" not in found
    else:
        assert not {"app", "fastapi", "sqlalchemy", "celery"} & set(found)


def test_app_imports_of_the_engine_only_its_torch_free_contract() -> None:
    program = "import app.main, app.standalone.serve, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    rooms = {name.split(".")[1] for name in loaded if name.startswith("td3engine.")}
    assert rooms == {"config", "contract", "data", "errors"}
