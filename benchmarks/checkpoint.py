"""What checkpoints cost: seconds to write one over seconds from one to the next.

    python -m benchmarks.checkpoint [--repeats 5] [--json]

Two catalogues: MovieLens-100k's (1,349 items, width 32) and a large one (159 thousand, width 64),
with random numbers in place of what training would give; a checkpoint is as large with them. What a
run holds in each phase is written as a run writes it, into the current folder's file system.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.work import PUBLISHED, Work, random_log
from td3engine.config import DistillConfig, Mode
from td3engine.config.presets import build_config, merge
from td3engine.contract import CHECKPOINT_FILE
from td3engine.data.split import Split
from td3engine.data.types import Interactions
from td3engine.data.windows import training_windows
from td3engine.models.recommender import Recommender
from td3engine.outer_loop.distillation import Distillation
from td3engine.pipeline.checkpoint import CHECKPOINT_SHARE
from td3engine.pipeline.run import Control, Run
from td3engine.ranking.holdout import holdout_set
from td3engine.teacher.training import FullSteps, LogTraining

CPU = torch.device("cpu")
CATALOGUES = ((1_349, 32), (159_000, 64))
NOTHING = Interactions(
    user_codes=np.empty(0, np.int32),
    item_codes=np.empty(0, np.int32),
    times=np.empty(0, np.int64),
    user_ids=[],
    item_ids=[],
)
DEFAULT_SECONDS = Control(listener=lambda _: None).checkpoint_seconds


def teacher_state(split: Split, config: DistillConfig) -> dict[str, Any]:
    """A teacher in training, with Adam's moments and a best model."""
    history = config.data.max_history
    work = Work.untrained(split, config, CPU)
    training = LogTraining(
        split,
        Recommender(work.backbone, split.n_items, config.backbone.hidden),
        config.teacher,
        lambda rng: training_windows(split, history, rng),
        holdout_set(split, "validation", history, 1),
        seed=0,
        device=CPU,
    )
    if isinstance(training.steps, FullSteps):  # sampled ones have their moments from the start
        training.theta.grad = torch.zeros_like(training.theta)
        training.steps.optimizer.step()
    encoder_P = work.teacher.model.parameters
    training.early = [encoder_P.clone() for _ in range(30)]
    training.best = {**vars(work.teacher), "early": None}
    return {"teacher": training.state()}


def distilling_state(split: Split, config: DistillConfig) -> dict[str, Any]:
    """A distillation under way, each learner with moments of its own."""
    work = Work.untrained(split, config, CPU)
    distillation: Distillation = work.engine(config)
    for factor in distillation.factors:
        factor.grad = torch.zeros_like(factor)
    distillation.optimizer.step()
    state = distillation.state()
    for kept in (kept for pool in state["pools"].values() for kept in pool):
        kept["second"] = kept["second"].clone()  # fresh ones share their zeros
    return {"trained": vars(work.teacher), "distillation": state}


def configured(width: int, mode: Mode) -> DistillConfig:
    own = {"mode": mode, "backbone": {"hidden": width}, "outer": {"shared_steps": 0}}
    return build_config("balanced", merge(PUBLISHED, own))


def measured(state: dict[str, Any], config: DistillConfig, repeats: int) -> dict[str, float]:
    """Median seconds of a checkpoint, its size, and its share of the time between two."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        run = Run(NOTHING, "f" * 64, config, Path(folder), Control(listener=lambda _: None))
        seconds = []
        for step in range(repeats):
            began = time.perf_counter()
            run._write_checkpoint(step, lambda: state)
            seconds.append(time.perf_counter() - began)
        size = (Path(folder) / CHECKPOINT_FILE).stat().st_size
    median = statistics.median(seconds)
    on_step = max(DEFAULT_SECONDS, median / CHECKPOINT_SHARE)
    return {
        "mib": size / 2**20,
        "seconds": median,
        "least": min(seconds),
        "most": max(seconds),
        "share_at_default": median / DEFAULT_SECONDS,
        "seconds_between": on_step,
        "share": median / on_step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What checkpoints cost.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {}
    for n_items, width in CATALOGUES:
        split = random_log(n_items)
        shared, scratch = configured(width, "shared-items"), configured(width, "from-scratch")
        training = teacher_state(split, shared)
        distilling = distilling_state(split, shared)
        states = {
            "teacher": (training, shared),
            "shared-items": (distilling, shared),
            "shared-items, as before": ({**training, **distilling, "trained": None}, shared),
            "from-scratch": (distilling_state(split, scratch), scratch),
        }
        for name, (state, config) in states.items():
            found[f"{n_items} x {width}, {name}"] = measured(state, config, options.repeats)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, row in found.items():
        print(
            f"{name}: {row['mib']:.1f} MiB, {row['seconds'] * 1e3:.0f} ms "
            f"({row['least'] * 1e3:.0f} to {row['most'] * 1e3:.0f}), every "
            f"{row['seconds_between']:.0f} s: {row['share']:.2%} "
            f"({row['share_at_default']:.2%} at every {DEFAULT_SECONDS:.0f} s)"
        )


if __name__ == "__main__":
    main()
