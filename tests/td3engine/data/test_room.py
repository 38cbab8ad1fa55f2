"""The names that the room offers."""

import subprocess
import sys

import pytest

import td3engine.data


def test_every_public_name_is_there() -> None:
    assert set(td3engine.data.__all__) <= set(dir(td3engine.data))
    for name in td3engine.data.__all__:
        assert getattr(td3engine.data, name).__name__ == name or name == "LogErrorCode"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        td3engine.data.nothing  # noqa: B018


def test_types_and_limits_come_without_pyarrow() -> None:
    script = "import sys; from td3engine.data import Limits, LogError; print('pyarrow' in sys.modules)"  # noqa: E501  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
