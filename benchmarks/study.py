"""The cells of the quality tables: each trains something once, and is kept when done.

Models and summaries lie in a work folder, named by a hash of the settings that made them; rows lie
in the result file. Both are re-used: a study that was stopped goes on where it was.
"""

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.datasets import DATASETS
from benchmarks.hard_export import Way
from benchmarks.hard_export import train as train_on_samples
from td3engine.config import BackboneName, DistillConfig, Mode
from td3engine.counting.fitting import POPULARITY, fit_counting_models
from td3engine.data.split import Split
from td3engine.data.windows import WindowIndex, training_windows
from td3engine.evaluation.baselines import (
    learner_rows,
    random_user_rows,
    real_user_rows,
    summary_rows,
    zero_step_rows,
)
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.full_data import counting_rows, full_data_rows
from td3engine.evaluation.real_users import longest_histories, most_recent
from td3engine.evaluation.table import NUMBER, Cost, Row, make_row
from td3engine.export.sequences import COPIES
from td3engine.export.soft_targets import TOP_K
from td3engine.inner_loop.learner import TrainedLearner, learn_from, recommender
from td3engine.inner_loop.plan import plan_training
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.models.backbone import TargetPositions
from td3engine.models.recommender import Recommender, StepRandomness
from td3engine.models.registry import build_backbone
from td3engine.outer_loop.distillation import Distillation
from td3engine.outer_loop.initial_summary import initial_summary
from td3engine.ranking.holdout import Holdouts
from td3engine.ranking.metrics import CUTOFFS
from td3engine.runtime.seeding import Purpose, generator
from td3engine.summary.tucker import TuckerSummary, query
from td3engine.teacher.training import LogTraining, TrainedOnLog

Source = Literal[
    "full",
    "prefix",
    "popularity",
    "zero-steps",
    "random",
    "longest",
    "recent",
    "initial",
    "summary",
    "soft-export",
    "hard-export",
]
OF_LOG: tuple[Source, ...] = ("full", "prefix", "popularity")  # trained on the log, no summary
METRICS = [f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in CUTOFFS]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cell:
    """One question of the study: how good is a `backbone` trained on `source` in this mode?"""

    dataset: str
    source: Source
    distilled_with: BackboneName
    backbone: BackboneName
    mode: Mode
    seeds: int

    def matches(self, row: dict[str, Any]) -> bool:
        """Whether a kept row answers it."""
        return all(row[name] == value for name, value in vars(self).items())


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
        return DATASETS[self.dataset].read(self.logs, self.config("sasrec", "shared-items"))

    def config(self, backbone: BackboneName, mode: Mode, seed: int = 0) -> DistillConfig:
        return DATASETS[self.dataset].config(backbone, mode, seed)

    def rows(self, cell: Cell) -> list[dict[str, Any]]:
        """Answer a cell: one row a protocol."""
        if cell.source == "full":
            trained = [self.full(cell.backbone, seed) for seed in range(cell.seeds)]
            found = full_data_rows(self._benchmark(cell), trained)
        elif cell.source == "popularity":
            benchmark = self._benchmark(cell)
            models = fit_counting_models(self.split, benchmark.validation, ease_items=0)
            found = counting_rows(benchmark, [each for each in models if each.name == POPULARITY])
        elif cell.source == "prefix":
            trained = [self.prefix(cell.backbone, seed) for seed in range(cell.seeds)]
            found = full_data_rows(self._benchmark(cell), trained)
        else:
            found = self._learner_rows(cell)
        return [self._named(cell, row) for row in found]

    def full(self, backbone: BackboneName, seed: int) -> TrainedOnLog:
        """The model trained on the whole log; seed 0 is the teacher."""
        config = self.config(backbone, "shared-items", seed)
        history = config.data.max_history

        def train() -> LogTraining:
            return LogTraining(
                self.split,
                self._recommender(config),
                config.teacher,
                lambda rng: training_windows(self.split, history, rng),
                Holdouts(self.split, config.data).validation(history),
                seed=seed,
                device=self.device,
            )

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
                Holdouts(self.split, config.data).validation(config.data.max_history),
                seed=seed,
                device=self.device,
            )

        return self._trained(f"prefix-{backbone}-{seed}", config, train)

    def summary(self, backbone: BackboneName, mode: Mode, seed: int = 0) -> TuckerSummary:
        """The summary distilled with this backbone for this mode."""
        config = self.config(backbone, mode, seed)
        path = self.work / f"summary-{backbone}-{mode}-{seed}-{_hash(config)}.pt"
        teacher = self.full(backbone, seed)
        start = self.start(config, teacher)
        if not path.exists():
            distillation = Distillation(
                self.split,
                config,
                build_backbone(config.backbone, config.data.max_history),
                teacher,
                Holdouts(self.split, config.data).validation(config.learner_history),
                self.device,
            )
            for best in distillation.steps():
                if distillation.done % config.outer.validate_every == 0:
                    self.say(f"{path.stem}: step {distillation.done}, validation {best:.4f}")
            _save(path, list(distillation.result()[0].learned))
        return start.with_learned(*self._load(path))

    def start(self, config: DistillConfig, teacher: TrainedOnLog) -> TuckerSummary:
        """A summary before distilling."""
        return initial_summary(config, self.split, teacher)

    def _learner_rows(self, cell: Cell) -> list[Row]:
        """A learner a seed, each with the teacher and the summary of its replicate."""
        benchmark = self._benchmark(cell)
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
            case "initial":
                summary = self.start(config, teacher)
            case _:
                summary = self.summary(cell.distilled_with, cell.mode, replicate)
        if cell.source == "soft-export":
            return soft_export_rows(benchmark, summary, cell.mode, seed)
        if cell.source == "hard-export":
            return hard_export_rows(benchmark, summary, config, cell.mode, seed)
        return summary_rows(benchmark, cell.source, summary, cell.mode, [seed])

    def _benchmark(self, cell: Cell) -> Benchmark:
        return Benchmark.prepare(self.split, self.config(cell.backbone, cell.mode), self.device)

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
            _save(path, training.result().state())
        return TrainedOnLog.from_state(self._load(path), self._recommender(config).backbone)

    def _load(self, path: Path) -> Any:
        return torch.load(path, map_location=self.device, weights_only=True)

    def _named(self, cell: Cell, row: Row) -> dict[str, Any]:
        return {
            **vars(cell),
            **{k: v for k, v in row.items() if k not in ("name", "mode", "seeds")},
        }


def merged(rows: Sequence[Row]) -> Row:
    """One row of several that have one learner each."""
    first = rows[0]
    figures = ("questions", *METRICS)
    measured = [{figure: row[figure] for figure in figures} for row in rows]  # type: ignore[literal-required]
    return make_row(
        first["name"],
        first["mode"],
        first["protocol"],
        measured,
        Cost(
            train_seconds=float(np.mean([row["train_seconds"] for row in rows])),
            numbers_stored=round(np.mean([row["numbers_stored"] for row in rows])),
            bytes=round(np.mean([row["bytes"] for row in rows])),
            sequences=max(row["sequences"] for row in rows),
            making_seconds=float(np.mean([row["making_seconds"] for row in rows])),
        ),
    )


def soft_export_rows(
    benchmark: Benchmark, summary: TuckerSummary, mode: Mode, seed: int
) -> list[Row]:
    """A learner that knows only the most probable items of a position, as exported."""
    learner = benchmark.config.learner
    model = recommender(benchmark.backbone, summary.V, mode)
    # No queries are read: the probabilities are made here.
    plan = plan_training(benchmark.backbone, mode, len(summary.V), positions=0)
    training = InnerLoopTrainer(
        model, learner, learner.steps_in(mode), plan.embed(summary.V), len(summary.T), plan
    )
    scores_UTN = query(*summary.learned) @ summary.V.T
    top = scores_UTN.softmax(-1).topk(min(TOP_K, scores_UTN.shape[-1]))
    synthetic = torch.zeros_like(scores_UTN).scatter(-1, top.indices, top.values)
    synthetic = synthetic / synthetic.sum(-1, keepdim=True)
    if plan.soft_embedding == "precomputed":
        synthetic = synthetic @ summary.V

    def train_one(nth: int) -> TrainedLearner:
        return learn_from(
            training,
            synthetic,
            generator(nth, Purpose.LEARNER, device=benchmark.device.type),
            benchmark.validate,
        )

    stored = 2 * top.values.numel() + (summary.V.numel() if mode == "shared-items" else 0)
    return learner_rows(
        benchmark,
        "soft-export",
        mode,
        train_one,
        [seed],
        Cost(0.0, stored, NUMBER * stored, sequences=len(synthetic)),
    )


def hard_export_rows(
    benchmark: Benchmark, summary: TuckerSummary, config: DistillConfig, mode: Mode, seed: int
) -> list[Row]:
    """A full training on sampled sequences, with the exporter's defaults."""

    def train_one(nth: int) -> TrainedLearner:
        found = train_on_samples(benchmark, summary, config, Way(), mode, nth)
        return TrainedLearner(found.model, found.seconds)

    sequences = COPIES * len(summary.U)
    stored = sequences * len(summary.T) + (summary.V.numel() if mode == "shared-items" else 0)
    return learner_rows(
        benchmark,
        "hard-export",
        mode,
        train_one,
        [seed],
        Cost(0.0, stored, NUMBER * stored, sequences=sequences),
    )


class Results:
    """The result file: rows, their settings, and on what they were measured.

    Several studies may write to one file at the same time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, Any]:
        """What is in the file."""
        if not self.path.exists():
            return {"configs": {}, "rows": []}
        content: dict[str, Any] = json.loads(self.path.read_text())
        return content

    def has(self, cell: Cell) -> bool:
        """Whether a cell has been answered."""
        return any(cell.matches(row) for row in self.read()["rows"])

    def add(self, rows: Sequence[dict[str, Any]], config: DistillConfig) -> None:
        """Keep rows, with the settings of their summary."""
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = self.read()
            row = rows[0]
            # Rows of the log are listed under a mode, but have nothing of its summary's settings.
            of = "log" if row["source"] in OF_LOG else row["mode"]
            name = f"{row['dataset']} {row['distilled_with']} {of}"
            content = {
                "machine": {
                    "processor": processor(),
                    "threads": torch.get_num_threads(),
                    "torch": str(torch.__version__),
                    "python": platform.python_version(),
                },
                "configs": kept["configs"] | {name: config.model_dump(mode="json")},
                "rows": [*kept["rows"], *rows],
            }
            _write(self.path, lambda part: part.write_text(json.dumps(content, indent=1) + "\n"))


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _hash(*parts: Any) -> str:
    text = "".join(part.model_dump_json() for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _save(path: Path, content: Any) -> None:
    _write(path, lambda part: torch.save(content, part))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_suffix(f".part-{os.getpid()}")
    write(part)
    part.replace(path)
