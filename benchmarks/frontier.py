"""What a summary's size buys: quality against sequences, bytes and seconds of making.

    python -m benchmarks.frontier --data ../shared/data --work work --dataset ml-100k

For each budget of sequences, and for learners of both modes:

- `labelled users`: real histories with the teacher's labels, never distilled;
- `distilled labels`: the same after outer steps (for the smaller budgets, which they help most);
- `soft, distilled`: the paper's form, in Tucker factors of rank 16, under its own loss;
- `random users`: as many real histories without labels;
- `hard export`: sequences drawn from the labelled users, for any trainer.

Every row has test metrics of several learners, each on users of its own, and the size of its file.
Networks are those of `benchmarks.quality`, from the same work folder.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets import DATASETS
from benchmarks.study import CPU, Study, merged
from benchmarks.study_exports import hard_export_rows
from benchmarks.study_results import write_whole
from td3engine.config import MODES, DistillConfig, Mode
from td3engine.config.presets import merge
from td3engine.evaluation.baselines import random_user_rows, summary_rows
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.full_data import full_data_rows
from td3engine.evaluation.labelled import labelled_rows, labelled_users
from td3engine.evaluation.table import Row
from td3engine.models.registry import build_backbone
from td3engine.outer_loop.distillation import Distillation

BUDGETS = (10, 30, 100, 200, 500)
DISTILLED = (10, 30)  # budgets whose labels are distilled
SEEDS = (1, 2)
ITEMS: dict[str, Any] = {"summary": {"inputs": "items"}}
LABELS: dict[str, Any] = merge(ITEMS, {"outer": {"steps": 60, "window": 40, "lr": 0.03}})
SOFT: dict[str, Any] = {
    "summary": {"inputs": "soft", "user_rank": 16, "time_rank": 16},
    "learner": {"loss": "cross-entropy", "steps": 200, "scratch_steps": 200},
    "outer": {"steps": 100, "window": 20, "lr": 0.06, "validation_learners": 2},
}


class Frontier:
    """The rows of one log.

    Args:
        study: its networks.
        say: told what is done.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.network = study.full("sasrec", 0)

    def rows(self, budgets: list[int], methods: list[str]) -> Iterator[dict[str, Any]]:
        """Every budget, mode and method; the full data first."""
        shared: Mode = "shared-items"
        benchmark = self._benchmark(self._config({}, 10, shared))
        yield from self._named(full_data_rows(benchmark, [self.network]), 0)
        for users in budgets:
            for mode in MODES:
                for method in methods:
                    found = self._method(method, users, mode)
                    yield from self._named(found, users)

    def _method(self, method: str, users: int, mode: Mode) -> list[Row]:
        """Rows of one method; none where it is not asked at this budget."""
        config = self._config(ITEMS, users, mode)
        benchmark = self._benchmark(config)
        if method == "labelled users":
            return labelled_rows(benchmark, method, self.network, users, mode, SEEDS)
        if method == "random users":
            V_ND = self.network.model.table[:, : config.backbone.hidden]
            return random_user_rows(benchmark, mode, V_ND, SEEDS)
        if method == "hard export":
            per_seed = [self._exported(benchmark, config, users, mode, seed) for seed in SEEDS]
            return [merged(rows) for rows in zip(*per_seed, strict=True)]
        if users not in DISTILLED:
            return []
        over = LABELS if method == "distilled labels" else SOFT
        per_seed = [self._distilled(method, over, users, mode, seed) for seed in SEEDS]
        return [merged(rows) for rows in zip(*per_seed, strict=True)]

    def _exported(
        self, benchmark: Benchmark, config: DistillConfig, users: int, mode: Mode, seed: int
    ) -> list[Row]:
        began = time.perf_counter()
        labelled = labelled_users(self.study.split, config.summary, self.network, users, seed)
        seconds = time.perf_counter() - began
        rows = hard_export_rows(benchmark, labelled, config, mode, seed)
        return [{**row, "name": "hard export", "making_seconds": seconds} for row in rows]

    def _distilled(
        self, name: str, over: dict[str, Any], users: int, mode: Mode, seed: int
    ) -> list[Row]:
        config = self._config(over, users, mode).model_copy(update={"seed": seed})
        benchmark = self._benchmark(config)
        began = time.perf_counter()
        distillation = Distillation(
            self.study.split,
            config,
            build_backbone(config.learner_backbone, config.data.max_history),
            self.network,
            benchmark.validation,
            CPU,
        )
        for _ in distillation.steps():
            pass
        seconds = time.perf_counter() - began
        summary, choice = distillation.result()
        self.study.say(f"{name}, {users} sequences, {mode}: step {choice['step']:.0f} chosen")
        return summary_rows(benchmark, name, summary, mode, [seed], seconds)

    def _config(self, over: dict[str, Any], users: int, mode: Mode) -> DistillConfig:
        base = self.study.config("sasrec", mode).model_dump()
        sizes = {"summary": {"users": users}, "learner": {"batch": min(users, 25)}}
        return DistillConfig.model_validate(merge(merge(base, over), sizes | {"mode": mode}))

    def _benchmark(self, config: DistillConfig) -> Benchmark:
        return Benchmark.prepare(self.study.split, config, CPU, holdouts=self.study.holdouts)

    def _named(self, rows: list[Row], users: int) -> list[dict[str, Any]]:
        of_log = {
            "dataset": self.study.dataset,
            "backbone": "sasrec",
            "budget": {"sequences": users},
            "teacher_seconds": self.network.seconds,
            "log_bytes": self.study.log_bytes,
        }
        named = [{**row, **of_log} for row in rows]
        for row in named:
            if row["protocol"] in ("unseen", "all"):
                score = f"{row['ndcg@10']:.4f} ± {row['ndcg@10_std']:.4f}"
                self.study.say(f"{row['name']}, {users}, {row['mode']}, {row['protocol']}: {score}")
        return named


METHODS = ["labelled users", "distilled labels", "soft, distilled", "random users", "hard export"]


def main() -> None:
    """Adds rows to the result file, log by log."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--work", type=Path, required=True, help="folder of models")
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--budget", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--json", type=Path, default=Path("docs/results/frontier.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for dataset in arguments.dataset:
        study = Study(dataset, arguments.data, arguments.work, lambda text: print(text, flush=True))
        for row in Frontier(study).rows(arguments.budget, arguments.method):
            add(arguments.json, row)


def add(path: Path, row: dict[str, Any]) -> None:
    """Write one row, in place of an earlier one of the same cell."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [each for each in rows if cell(each) != cell(row)] + [row]
    text = json.dumps({"rows": sorted(rows, key=cell)}, indent=1)
    write_whole(path, lambda part: part.write_text(f"{text}\n"))


def cell(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is of."""
    return (
        row["dataset"],
        row["mode"],
        row["budget"]["sequences"],
        row["name"],
        row["protocol"],
    )


if __name__ == "__main__":
    main()
