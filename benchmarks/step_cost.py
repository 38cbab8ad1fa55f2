"""What a step costs as the log grows: drawing a real batch, and a whole outer step.

    python -m benchmarks.step_cost --out docs/results/step_cost.json

Logs of 10 thousand to 10 million users (10 events each, 5,000 items) are made as arrays; the model
is small and the same for all. Sizes take turns, so that a slow minute of the machine meets all of
them. Ratios are of medians of this one run, to the smallest log.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, overload

import numpy as np
import torch

from benchmarks.work import machine
from td3engine.config import DistillConfig
from td3engine.config.presets import build_config
from td3engine.data.split import Split
from td3engine.data.windows import WindowSampler, training_windows
from td3engine.models.registry import build_backbone
from td3engine.models.trained_model import TrainedModel
from td3engine.outer_loop.distillation import Distillation
from td3engine.ranking.holdout import holdout_set
from td3engine.teacher.training import TrainedOnLog

USERS = (10_000, 100_000, 1_000_000, 10_000_000)
ITEMS, EVENTS = 5_000, 10
SETTINGS: dict[str, Any] = {
    "data": {"max_history": 20},
    "backbone": {"hidden": 16, "inner": 16},
    "summary": {"users": 10, "length": 12},
    "learner": {"steps": 40, "batch": 10},
    "outer": {"steps": 1000, "window": 10, "pool": 2, "batch": 128},
    "device": "cpu",
}


class Numbered(Sequence[str]):
    """Ids of so many users, each made when it is read: a list of 10 million takes a while."""

    def __init__(self, count: int) -> None:
        self._numbers = range(count)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        part = self._numbers[at]
        return str(part) if isinstance(part, int) else [str(number) for number in part]


def make_split(users: int) -> Split:
    """A log of random items as a split."""
    rng = np.random.default_rng(0)
    return Split(
        histories=rng.integers(ITEMS, size=users * EVENTS, dtype=np.int32),
        offsets=np.arange(users + 1, dtype=np.int64) * EVENTS,
        times=np.zeros(0, np.int64),
        item_ids=[str(item) for item in range(ITEMS)],
        user_ids=Numbered(users),
    )


def make_distillation(split: Split, config: DistillConfig) -> Distillation:
    """With a random teacher: a step costs what it costs with a trained one."""
    backbone = build_backbone(config.learner_backbone, config.data.max_history)
    draw = torch.Generator().manual_seed(0)
    parameters = 0.02 * torch.randn(backbone.n_parameters, generator=draw)
    table = 0.02 * torch.randn(ITEMS, config.backbone.hidden, generator=draw)
    teacher = TrainedOnLog(
        model=TrainedModel(backbone, parameters, table),
        early=0.02 * torch.randn(2, backbone.n_parameters, generator=draw),
        validation=0.0,
        seconds=0.0,
    )
    # Validation is no part of a step: its set is of a small log.
    holdout = holdout_set(make_split(100), "validation", config.learner_history)
    return Distillation(split, config, backbone, teacher, holdout, torch.device("cpu"))


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(sizes: tuple[int, ...], repeats: int, draws: int) -> list[dict[str, Any]]:
    """Seconds of all repeats, one row a size."""
    config = build_config("fast", SETTINGS)
    made = []
    for users in sizes:
        split = make_split(users)
        building = timed(partial(WindowSampler, split, config.learner_history))
        distillation = make_distillation(split, config)
        distillation.step()
        distillation.done += 1
        made.append((distillation, {"users": users, "build_seconds": building}))
    seconds: list[tuple[list[float], list[float]]] = [([], []) for _ in made]
    for _ in range(repeats):
        for (distillation, _), (drawing, stepping) in zip(made, seconds, strict=True):
            rng = np.random.default_rng(distillation.done)
            draw = partial(distillation.windows.draw, config.outer.batch, rng)
            drawing += [timed(draw) for _ in range(draws)]
            stepping.append(timed(distillation.step))
            distillation.done += 1
    rows = []
    for (distillation, row), (drawing, stepping) in zip(made, seconds, strict=True):
        rows.append(row | {"draw_ms": 1e3 * median(drawing), "step_ms": 1e3 * median(stepping)})
        if row["users"] <= 1_000_000:
            rng = np.random.default_rng(0)
            cut = partial(training_windows, distillation.split, config.learner_history, rng)
            rows[-1]["whole_cut_ms"] = 1e3 * timed(cut)
    for row in rows:
        for name in ("draw", "step"):
            row[f"{name}_ratio"] = row[f"{name}_ms"] / rows[0][f"{name}_ms"]
    return rows


def main() -> None:
    """Measure; print a table, and write JSON if wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, nargs="+", default=USERS)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--draws", type=int, default=20, help="draws a repeat")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(tuple(options.users), options.repeats, options.draws)
    print("| users | draw, ms | ratio | outer step, ms | ratio | cut of the whole log, ms |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cut = f"{row['whole_cut_ms']:.0f}" if "whole_cut_ms" in row else ""
        print(
            f"| {row['users']:,} | {row['draw_ms']:.2f} | {row['draw_ratio']:.2f} "
            f"| {row['step_ms']:.1f} | {row['step_ratio']:.2f} | {cut} |"
        )
    if options.out:
        found = {
            "machine": machine(torch.device("cpu")),
            "load_average": os.getloadavg()[0],
            "items": ITEMS,
            "events_per_user": EVENTS,
            "batch": SETTINGS["outer"]["batch"],
            "repeats": options.repeats,
            "rows": rows,
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
