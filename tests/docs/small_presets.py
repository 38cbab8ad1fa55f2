"""Presets that distil in about a second, for the commands that the documents show as they stand.

The documents name presets (`fast`), whose real sizes take half a minute on the smallest log. Tests
of the documents run the same commands with these sizes laid over every preset: in the test process
by `monkeypatch`, in the service's processes by `small_site/sitecustomize.py` on `PYTHONPATH`.
"""

import os
import sys
from pathlib import Path
from typing import Any

from td3engine.config.presets import merge

SMALL: dict[str, Any] = {
    "data": {"validation_users": 30, "test_users": 30},
    "teacher": {"max_epochs": 2, "validate_every": 1},
    "summary": {"users": 8, "length": 12, "user_rank": 4, "time_rank": 4},
    "learner": {"steps": 10, "scratch_steps": 10, "batch": 4},
    "outer": {
        "steps": 4,
        "window": 4,
        "batch": 16,
        "pool": 2,
        "validate_every": 2,
        "validation_learners": 1,
    },
    "threads": 1,
    "device": "cpu",
}


def shrunk(presets: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The presets with `SMALL` laid over each; knobs of `auto` that it sets are no longer sized."""
    fixed = {
        f"{part}.{name}"
        for part, values in SMALL.items()
        if isinstance(values, dict)
        for name in values
    }
    result = {}
    for name, preset in presets.items():
        small = merge(preset, SMALL)
        small["auto"] = [knob for knob in preset.get("auto", ()) if knob not in fixed]
        result[name] = small
    return result


def environment() -> dict[str, str]:
    """Environment of a child process: its presets are small, and `td3` is this interpreter's."""
    here = Path(__file__).resolve()
    paths = [
        str(here.parent / "small_site"),
        str(here.parents[2]),
        os.environ.get("PYTHONPATH", ""),
    ]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }
