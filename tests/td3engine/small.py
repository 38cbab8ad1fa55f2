"""A small made-up log and settings that distil in about a second, for tests of whole runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from td3engine.config import DistillConfig
from td3engine.config.presets import build_config, merge
from td3engine.summary.bundle import Manifest

USERS, ITEMS, EVENTS = 40, 150, 12
# Rows of a run's result, in order: of models of the whole log, and of learners.
LOG_ROWS = (
    "teacher",
    "full data",
    "popularity",
    "repeat rule",
    "Markov",
    "windowed Markov",
    "item-kNN",
    "EASE",
)
LEARNER_ROWS = ("labelled users", "initial summary", "TD3 summary")
# Of soft inputs, whose bytes would hold another number of labelled users.
SOFT_LEARNER_ROWS = ("labelled users", "labelled, same bytes", "initial summary", "TD3 summary")


def learner_rows(manifest: Manifest, rows: tuple[str, ...] = LEARNER_ROWS) -> list[str]:
    """Of the rows those of this run: a summary that is its own start has no row of that."""
    distilled = manifest.validation["outer_step"] > 0
    return [name for name in rows if distilled or name != "initial summary"]


def as_written(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of results as a manifest has it: without wall times, figures to six decimals."""
    return {
        key: round(value, 6) if isinstance(value, float) else value
        for key, value in row.items()
        if not key.endswith("_seconds")
    }


def write_small_log(path: Path, *, users: int = USERS) -> Path:
    """Users walk along a ring of items with noise, so that there is an order to learn."""
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(users):
        item = int(rng.integers(ITEMS))
        for time in range(EVENTS):
            lines.append(f"u{user},i{item},{time}")
            item = (item + int(rng.integers(1, 4))) % ITEMS
    path.write_text("\n".join(lines) + "\n")
    return path


SMALL: dict[str, Any] = {
    "data": {"min_user_interactions": 1, "min_item_interactions": 1, "max_history": 8},
    "backbone": {"hidden": 8, "inner": 8},
    "teacher": {"max_epochs": 4, "validate_every": 1, "batch": 16},
    "summary": {"users": 4, "length": 8, "user_rank": 2, "time_rank": 2},
    "learner": {
        "steps": 8,
        "scratch_steps": 8,
        "batch": 4,
        "objective": "last-and-augmented",
        "augmented": 2,
    },
    "outer": {
        "lr": 0.1,  # high enough that steps do better than a start on this log
        "steps": 6,
        "shared_steps": 2,
        "window": 3,
        "batch": 8,
        "pool": 2,
        "validate_every": 2,
    },
    "threads": 1,
    # Bytes are compared, and a GPU has its own: tests that are about one ask for it.
    "device": "cpu",
}


def small_config(**over: Any) -> DistillConfig:
    """`SMALL` with parts laid over it: `small_config(outer={"steps": 9})`."""
    return build_config("balanced", merge(SMALL, over))


# The paper's summary and inner loop: factors that nothing rounds, cross-entropies, dropout.
PAPER: dict[str, Any] = {
    "summary": {"inputs": "soft", "table_step": 0, "label_step": 0},
    "learner": {"loss": "cross-entropy", "dropout": 0.2},
}


def paper_config(**over: Any) -> DistillConfig:
    """`small_config` of the paper's method."""
    return small_config(**merge(PAPER, over))


def set_options(parts: dict[str, Any] = SMALL, above: str = "") -> list[str]:
    """`SMALL` as `--set` arguments."""
    options = []
    for key, value in parts.items():
        if isinstance(value, dict):
            options += set_options(value, f"{above}{key}.")
        else:
            options += ["--set", f"{above}{key}={value}"]
    return options
