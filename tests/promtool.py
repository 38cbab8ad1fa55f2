"""Prometheus' own opinion of what we tell it."""

import shutil
import subprocess

import pytest


def check_metrics(text: str) -> None:
    """Fail where `promtool check metrics` complains; skip where there is no promtool."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package: prometheus)")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
