"""The cells of the quality tables: each trains something once, and is kept when done.

Models and summaries lie in a work folder, named by a hash of the settings that made them; rows lie
in the result file. Both are re-used: a study that was stopped goes on where it was.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.datasets import DATASETS
from benchmarks.study_exports import hard_export_rows, soft_export_rows
from benchmarks.study_results import OF_LOG, Cell, Source, write_whole
from td3engine.config import BackboneName, DistillConfig, Mode
from td3engine.counting.fitting import FAMILIES, FittedCounting, fit_counting_models
from td3engine.data.normalised import write_normalised
from td3engine.data.split import Split, split_log
from td3engine.data.windows import WindowIndex, training_windows
from td3engine.evaluation.baselines import (
    random_user_rows,
    real_user_rows,
    summary_rows,
    zero_step_rows,
)
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.full_data import (
    Teacher,
    counting_rows,
    full_data_rows,
    make_teacher,
    teacher_rows,
)
from td3engine.evaluation.labelled import labelled_rows, labelled_users, users_of_bytes
from td3engine.evaluation.real_users import longest_histories, most_recent
from td3engine.evaluation.table import Cost, Row, make_row
from td3engine.models.backbone import TargetPositions
from td3engine.models.recommender import Recommender, StepRandomness
from td3engine.models.registry import build_backbone
from td3engine.outer_loop.distillation import Distillation
from td3engine.outer_loop.initial_summary import initial_summary
from td3engine.ranking.holdout import Holdouts
from td3engine.ranking.metrics import CUTOFFS, Metrics
from td3engine.summary.bundle import packed_bytes
from td3engine.summary.labelled import AnySummary
from td3engine.teacher.network import network_training
from td3engine.teacher.training import LogTraining, TrainedOnLog

METRICS = [f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in CUTOFFS]
CPU = torch.device("cpu")


COUNTING: dict[Source, str] = {
    "popularity": "popularity",
    "repeat-rule": "repeat rule",
    "markov": "Markov",
    "windowed-markov": "windowed Markov",
    "item-knn": "item-kNN",
    "ease": "EASE",
}
assert tuple(COUNTING.values()) == FAMILIES
MOST_LABELLED = 1000  # users, however long distilling took
TIMED = 100  # users whose labelling is timed


class PrefixTraining(LogTraining):
    """The paper's way: a row of its own for each target, and a loss on its last event only."""

    def randomness(self, lengths_B: Tensor, draw: torch.Generator) -> StepRandomness:
        rows = torch.arange(len(lengths_B), device=lengths_B.device)
        longest = int(lengths_B.max())
        dropout = self.model.backbone.dropout(len(lengths_B), longest, draw)
        return StepRandomness(TargetPositions(rows, lengths_B - 1), dropout)


def prefix_windows(split: Split, history: int) -> WindowIndex:
    """Every training event but a user's first, with the up to `history` events before it."""
    first = split.offsets[:-1]
    transitions = np.maximum(split.training_ends - first - 1, 0)
    owner = np.repeat(np.arange(len(first)), transitions)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(transitions) - transitions, transitions)
    target = first[owner] + 1 + nth
    return WindowIndex(np.maximum(first[owner], target - history), target + 1)


class Study:
    """All cells of one data set.

    Args:
        dataset: its name in `DATASETS`.
        logs: folder of the logs.
        work: folder where models and summaries are kept.
        say: told what is being done.
        device: where to compute.
    """

    def __init__(
        self,
        dataset: str,
        logs: Path,
        work: Path,
        say: Callable[[str], None],
        device: torch.device = CPU,
    ) -> None:
        self.dataset, self.logs, self.say, self.device = dataset, logs, say, device
        self.work = work / dataset
        self.work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def split(self) -> Split:
        data = self.config("sasrec", "shared-items").data
        return split_log(DATASETS[self.dataset].read(self.logs), data)

    @cached_property
    def holdouts(self) -> Holdouts:
        return Holdouts(self.split, self.config("sasrec", "shared-items").data)

    def config(self, backbone: BackboneName, mode: Mode, seed: int = 0) -> DistillConfig:
        return DATASETS[self.dataset].config(backbone, mode, seed)

    def rows(self, cell: Cell) -> list[dict[str, Any]]:
        """Answer a cell: one row a protocol."""
        benchmark, seeds = self._benchmark(cell), range(cell.seeds)
        if cell.source in ("full", "prefix"):
            train = self.full if cell.source == "full" else self.prefix
            found = full_data_rows(benchmark, [train(cell.backbone, seed) for seed in seeds])
        elif cell.source == "teacher":
            found = teacher_rows(benchmark, [self.teacher(cell.backbone, seed) for seed in seeds])
        elif cell.source in COUNTING:
            name = COUNTING[cell.source]
            found = counting_rows(benchmark, [each for each in self.counting if each.name == name])
        else:
            found = self._learner_rows(cell, benchmark)
        return [self._named(cell, row) for row in found]

    @cached_property
    def counting(self) -> list[FittedCounting]:
        """The counting models of the log."""
        config = self.config("sasrec", "shared-items")
        validation = self.holdouts.validation(config.data.max_history)
        return fit_counting_models(self.split, validation, config.teacher.ease_items)

    def teacher(self, backbone: BackboneName, seed: int) -> Teacher:
        """The teacher: this model trained on the log, mixed with the counting models."""
        config = self.config(backbone, "shared-items", seed)
        network = self.full(backbone, seed)
        validation = self.holdouts.validation(config.data.max_history)
        return make_teacher(network, self.counting, validation, self.split.repeat_share)

    @cached_property
    def log_bytes(self) -> int:
        """Size of the log as the normalised Parquet file that the service stores."""
        path = self.work / "log.parquet"
        if not path.exists():
            log = DATASETS[self.dataset].read(self.logs)
            write_whole(path, lambda part: write_normalised(log, part))
        return path.stat().st_size

    def full(self, backbone: BackboneName, seed: int) -> TrainedOnLog:
        """The model trained on the whole log; seed 0 is the teacher."""
        config = self.config(backbone, "shared-items", seed)

        def train() -> LogTraining:
            validation = self.holdouts.validation(config.data.max_history)
            return network_training(self.split, config, self.counting, validation, self.device)

        return self._trained(f"full-{backbone}-{seed}", config, train)

    def prefix(self, backbone: BackboneName, seed: int) -> TrainedOnLog:
        """The model trained on the whole log the paper's way."""
        config = self.config(backbone, "shared-items", seed)
        windows = prefix_windows(self.split, config.data.max_history)
        # As many targets a step as the fast trainer has on average, and so as many steps an epoch.
        per_window = len(windows) / len(
            training_windows(self.split, config.data.max_history, np.random.default_rng(0))
        )
        teacher = config.teacher.model_copy(
            update={"batch": round(config.teacher.batch * per_window)}
        )

        def train() -> LogTraining:
            return PrefixTraining(
                self.split,
                self._recommender(config),
                teacher,
                lambda _: windows,
                self.holdouts.validation(config.data.max_history),
                seed=seed,
                device=self.device,
            )

        return self._trained(f"prefix-{backbone}-{seed}", config, train)

    def summary(
        self, backbone: BackboneName, mode: Mode, seed: int = 0
    ) -> tuple[AnySummary, float]:
        """The summary distilled with this backbone for this mode, and the seconds that took."""
        config = self.config(backbone, mode, seed)
        path = self.work / f"summary-{backbone}-{mode}-{seed}-{_hash(config)}.pt"
        teacher = self.full(backbone, seed)
        start = self.start(config, teacher)
        if not path.exists():
            distillation = Distillation(
                self.split,
                config,
                build_backbone(config.learner_backbone, config.data.max_history),
                teacher,
                self.holdouts.validation(config.learner_history),
                self.device,
            )
            began = time.perf_counter()
            for best in distillation.steps():
                if distillation.done % config.outer.validate_every == 0:
                    self.say(f"{path.stem}: step {distillation.done}, validation {best:.4f}")
            seconds = time.perf_counter() - began
            made = {"learned": list(distillation.result()[0].learned), "seconds": seconds}
            write_whole(path, lambda part: torch.save(made, part))
        kept = self._load(path)
        return start.with_learned(*kept["learned"]), kept["seconds"]

    def start(self, config: DistillConfig, teacher: TrainedOnLog) -> AnySummary:
        """A summary before distilling."""
        return initial_summary(config, self.split, teacher)

    def _learner_rows(self, cell: Cell, benchmark: Benchmark) -> list[Row]:
        """A learner a seed, each with the teacher and the summary of its replicate."""
        replicates = DATASETS[self.dataset].replicates
        found = [
            self._learner_row(cell, benchmark, seed, (seed - 1) % replicates)
            for seed in range(1, cell.seeds + 1)
        ]
        return [merged(rows) for rows in zip(*found, strict=True)]

    def _learner_row(
        self, cell: Cell, benchmark: Benchmark, seed: int, replicate: int
    ) -> list[Row]:
        config = self.config(cell.distilled_with, cell.mode, replicate)
        teacher = self.full(cell.distilled_with, replicate)
        V_ND = teacher.model.table[:, : config.backbone.hidden]
        match cell.source:
            case "zero-steps":
                return zero_step_rows(benchmark, V_ND, [seed])
            case "random":
                return random_user_rows(benchmark, cell.mode, V_ND, [seed])
            case "longest" | "recent":
                pick = longest_histories if cell.source == "longest" else most_recent
                chosen = {seed: pick(self.split, benchmark.config)}
                return real_user_rows(benchmark, cell.source, cell.mode, V_ND, chosen)
            case "labelled" | "labelled-bytes" | "labelled-seconds":
                users, making = self._labelled(cell, config, teacher, replicate)
                rows = labelled_rows(benchmark, cell.source, teacher, users, cell.mode, [seed])
                return [{**row, "making_seconds": making} for row in rows]
            case "initial":
                summary, making = self.start(config, teacher), 0.0
            case _:
                summary, making = self.summary(cell.distilled_with, cell.mode, replicate)
        if cell.source in ("soft-export", "hard-export"):
            export_rows = soft_export_rows if cell.source == "soft-export" else hard_export_rows
            rows = export_rows(benchmark, summary, config, cell.mode, seed)
            return [{**row, "making_seconds": making} for row in rows]
        return summary_rows(benchmark, cell.source, summary, cell.mode, [seed], making)

    def _labelled(
        self, cell: Cell, config: DistillConfig, teacher: TrainedOnLog, replicate: int
    ) -> tuple[int, float]:
        """How many labelled users a row has, and the seconds of labelling them."""
        began = time.perf_counter()
        labelled_users(self.split, config.summary, teacher, TIMED, seed=0)
        each = (time.perf_counter() - began) / TIMED
        users = config.summary.users
        if cell.source != "labelled":
            summary, seconds = self.summary(cell.distilled_with, cell.mode, replicate)
            if cell.source == "labelled-bytes":
                made = self.split, config.summary, teacher, self.split.n_users
                users = users_of_bytes(packed_bytes(summary), *made)
            else:
                users = min(int(seconds / each), MOST_LABELLED, self.split.n_users)
        return users, users * each

    def _benchmark(self, cell: Cell) -> Benchmark:
        config = self.config(cell.backbone, cell.mode)
        return Benchmark.prepare(self.split, config, self.device, holdouts=self.holdouts)

    def _recommender(self, config: DistillConfig) -> Recommender:
        backbone = build_backbone(config.teacher_backbone, config.data.max_history)
        return Recommender(backbone, self.split.n_items, config.backbone.hidden)

    def _trained(
        self, name: str, config: DistillConfig, start: Callable[[], LogTraining]
    ) -> TrainedOnLog:
        key = [config.teacher_backbone, config.teacher, config.data]
        path = self.work / f"{name}-{_hash(*key)}.pt"
        if not path.exists():
            training = start()
            for best in training.epochs():
                if training.epoch % config.teacher.validate_every == 0:
                    spent = f"{training.seconds:.0f} s"
                    self.say(f"{name}: epoch {training.epoch}, validation {best:.4f}, {spent}")
            state = training.result().state()
            write_whole(path, lambda part: torch.save(state, part))
        return TrainedOnLog.from_state(self._load(path), self._recommender(config).backbone)

    def _load(self, path: Path) -> Any:
        return torch.load(path, map_location=self.device, weights_only=True)

    def _named(self, cell: Cell, row: Row) -> dict[str, Any]:
        seconds = 0.0 if cell.source in OF_LOG else self.full(cell.distilled_with, 0).seconds
        return {
            **vars(cell),
            **{key: value for key, value in row.items() if key not in ("name", "mode", "seeds")},
            "teacher_seconds": seconds,
            "log_bytes": self.log_bytes,
        }


def merged(rows: Sequence[Row]) -> Row:
    """One row of several that have one learner each."""
    first = rows[0]
    figures = ("questions", *METRICS)
    measured = [
        cast(Metrics, {name: value for name, value in row.items() if name in figures})
        for row in rows
    ]
    cost = Cost(
        train_seconds=float(np.mean([row["train_seconds"] for row in rows])),
        numbers_stored=round(np.mean([row["numbers_stored"] for row in rows])),
        bytes=round(np.mean([row["bytes"] for row in rows])),
        sequences=max(row["sequences"] for row in rows),
        making_seconds=float(np.mean([row["making_seconds"] for row in rows])),
    )
    return make_row(first["name"], first["mode"], first["protocol"], measured, cost)


def _hash(*parts: Any) -> str:
    text = "".join(part.model_dump_json() for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
