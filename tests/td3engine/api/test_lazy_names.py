"""What `import td3engine` costs, and which names it offers."""

import subprocess
import sys

import pytest

import td3engine as td3

HEAVY = ("torch", "pyarrow", "pydantic", "numpy", "httpx", "rich", "safetensors")
TABLES = {"torch", "pyarrow", "numpy"}
NAMES = {
    "Client",
    "Summary",
    "TrainedModel",
    "baselines",
    "distill",
    "evaluate",
    "load_model",
    "load_summary",
    "read_log",
    "train",
}


def imported_by(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has after this."""
    script = f"import sys\n{code}\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import td3engine; dir(td3engine); td3engine.__version__", set(HEAVY)),
        ("import td3engine; td3engine.read_log", {"torch", "httpx"}),
        ("from td3engine import Client; Client('http://127.0.0.1:1').close()", {"torch"}),
        ("from td3engine import events, files; from td3engine.export import registry", TABLES),
    ],
)
def test_what_an_import_leaves_out(code: str, absent: set[str]) -> None:
    assert not imported_by(code) & absent


def test_the_public_names_are_there() -> None:
    assert set(td3.__all__) == NAMES
    assert set(dir(td3)) >= {*NAMES, "__version__"}
    for name in NAMES:
        assert callable(getattr(td3, name))
        assert name in vars(td3)  # the second time costs nothing
    assert td3.load_summary == td3.Summary.load
    assert td3.load_model == td3.TrainedModel.load


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'td3engine' has no attribute 'distil'"):
        td3.distil  # noqa: B018
    assert not hasattr(td3, "__wrapped__")
    with pytest.raises(ImportError, match="cannot import name 'loadmodel'"):
        from td3engine import loadmodel  # noqa: F401
