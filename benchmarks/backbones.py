"""Which backbone is strongest on the whole log: each tuned by the same search, then measured.

    python -m benchmarks.backbones --data LOGS --json docs/results/backbones.json

Search: from the log's start point, one setting at a time (`GRID`), the value with the best
validation NDCG@10 is kept. Every training, of whichever backbone, ends by early stopping or when
it has used the log's seconds of processor time. Then the chosen point is trained from
three other seeds and measured on the test events. Nothing is chosen by a test figure.

Results are kept one by one: the same command goes on where it was stopped. `--markdown` prints the
table of a result file.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.datasets import DATASETS
from benchmarks.study_results import processor
from td3engine.config import BACKBONES, BackboneConfig, DataConfig, TeacherConfig
from td3engine.data.split import Split, split_log
from td3engine.data.windows import training_windows
from td3engine.models.recommender import Recommender
from td3engine.models.registry import build_backbone
from td3engine.ranking.holdout import Holdouts
from td3engine.ranking.metrics import evaluate_all
from td3engine.ranking.protocols import available_protocols
from td3engine.teacher.training import LogTraining, TrainedOnLog

CPU = torch.device("cpu")
HEAD_WIDTH = 32
VALIDATE_EVERY = 2  # epochs
PATIENCE = 10  # validations; pre-norm models stay at the start for some epochs
Result = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """Settings of one training."""

    width: int
    layers: int
    dropout: float
    lr: float


GRID: dict[str, Sequence[Any]] = {
    "lr": (0.001, 0.003),
    "dropout": (0.2, 0.35, 0.5),
    "layers": (1, 2),
    "width": (32, 64),
}


@dataclass(frozen=True)
class Plan:
    """How a log is searched.

    Attributes:
        start: first point, the same for all backbones.
        seconds: of processor time that a training may take, with its validations.
        searched: settings that are searched, in this order; the others stay as in `start`.
        teacher: settings of `TeacherConfig` over its defaults.
    """

    start: Point
    seconds: float
    searched: Sequence[str] = tuple(GRID)
    teacher: tuple[tuple[str, Any], ...] = ()


PLANS = {
    "ml-100k": Plan(Point(32, 1, 0.2, 0.003), 40, ("dropout", "layers", "width", "lr")),
    "amazon2018-magazine": Plan(Point(64, 2, 0.35, 0.001), 30),
    # Not searched: an epoch over all items takes three times as long as one over a sample of them.
    "amazon2014-beauty-5core": Plan(
        Point(64, 1, 0.5, 0.001),
        60,
        (),
        (("softmax", "sampled"), ("batch", 128)),
    ),
    "ml-1m": Plan(Point(64, 1, 0.2, 0.003), 300, ("dropout",), (("batch", 128),)),
}


class Trial:
    """Trainings of one backbone on one split log."""

    def __init__(self, split: Split, backbone: str, plan: Plan) -> None:
        self.split, self.backbone, self.plan = split, backbone, plan
        self.data = DataConfig()

    def train(self, point: Point, seed: int) -> tuple[Recommender, TrainedOnLog, Result]:
        """A model of this point, and its row without test figures."""
        model = self._model(point)
        config = TeacherConfig.model_validate(
            {"lr": point.lr, "validate_every": VALIDATE_EVERY, "patience": PATIENCE}
            | dict(self.plan.teacher)
        )
        history = self.data.max_history
        training = LogTraining(
            self.split,
            model,
            config,
            lambda rng: training_windows(self.split, history, rng),
            Holdouts(self.split, self.data).validation(history),
            seed=seed,
            device=CPU,
        )
        spent, began = 0.0, time.process_time()
        for _ in training.epochs():
            if training.epoch % VALIDATE_EVERY == 0:
                spent = time.process_time() - began
                if spent >= self.plan.seconds:
                    break
        trained = training.result()
        row = {
            "backbone": self.backbone,
            **vars(point),
            "seed": seed,
            "parameters": model.backbone.n_parameters,
            "validation": trained.validation,
            "epochs": training.epoch,
            "seconds": round(spent, 1),
            "ended": "early stopping" if training.finished else "budget",
        }
        return model, trained, row

    def measure(self, point: Point, seed: int) -> Result:
        """A row with test figures."""
        _, trained, row = self.train(point, seed)
        test = Holdouts(self.split, self.data).test(self.data.max_history)
        return row | {"test": evaluate_all(trained.model, test, available_protocols(test))}

    def _model(self, point: Point) -> Recommender:
        config = BackboneConfig(
            name=self.backbone,
            hidden=point.width,
            layers=point.layers,
            heads=point.width // HEAD_WIDTH,
            inner=2 * point.width,
            dropout=point.dropout,
        )
        backbone = build_backbone(config, self.data.max_history)
        return Recommender(backbone, self.split.n_items, point.width)


class ResultFile:
    """Rows of finished trainings: `search` those that choose, `test` those that are measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"search": [], "test": []}
        if path.exists():
            self.content |= json.loads(path.read_text())

    def find(self, part: str, **settings: Any) -> Result | None:
        """The row with these settings."""
        rows = (row for row in self.content[part] if settings.items() <= row.items())
        return next(rows, None)

    def add(self, part: str, row: Result) -> None:
        """Write the file with one more row."""
        self.content[part].append(row)
        self.content["machine"] = {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        }
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.content, indent=1) + "\n")
        unfinished.replace(self.path)


def search(trial: Trial, dataset: str, results: ResultFile) -> Point:
    """The point with the best validation that the plan's search meets."""

    def validation(point: Point) -> float:
        key = {"dataset": dataset, "backbone": trial.backbone, **vars(point)}
        row = results.find("search", **key)
        if row is None:
            row = {"dataset": dataset, **trial.train(point, seed=0)[2]}
            results.add("search", row)
            _print(row)
        return float(row["validation"])

    best = trial.plan.start
    for setting in trial.plan.searched:
        best = max((replace(best, **{setting: value}) for value in GRID[setting]), key=validation)
    return best


def measure(trial: Trial, dataset: str, results: ResultFile, seeds: int) -> None:
    """Search, then train the chosen point from each seed and measure it."""
    point = search(trial, dataset, results)
    for seed in range(1, seeds + 1):
        key = {"dataset": dataset, "backbone": trial.backbone, **vars(point), "seed": seed}
        if results.find("test", **key) is None:
            row = {"dataset": dataset, **trial.measure(point, seed)}
            results.add("test", row)
            _print(row)


def table(content: dict[str, Any]) -> Iterator[str]:
    """The figures of all measured points as lines of Markdown: mean over seeds +- deviation."""
    protocols = list(content["test"][0]["test"]) if content["test"] else []
    columns = ["log", "backbone", "width, layers, dropout, rate", "encoder", "validation"]
    columns += [f"{metric} {each}" for each in protocols for metric in ("NDCG@10", "HR@10")]
    columns.append("seconds")
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    cells = dict.fromkeys((row["dataset"], row["backbone"]) for row in content["test"])
    for dataset, backbone in cells:
        rows = [r for r in content["test"] if (r["dataset"], r["backbone"]) == (dataset, backbone)]
        first = rows[0]
        point = f"{first['width']}, {first['layers']}, {first['dropout']}, {first['lr']}"
        figures = [
            _with_deviation([row["test"][protocol][metric] for row in rows])
            for protocol in protocols
            for metric in ("ndcg@10", "hr@10")
        ]
        validation = _with_deviation([row["validation"] for row in rows])
        seconds = f"{mean(row['seconds'] for row in rows):.0f}"
        cells_of_row = [dataset, backbone, point, f"{first['parameters']:,}", validation]
        yield f"| {' | '.join([*cells_of_row, *figures, seconds])} |"


def _with_deviation(values: Sequence[float]) -> str:
    deviation = f" \u00b1 {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{deviation}"


def _print(row: Result) -> None:
    print(json.dumps(row), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search and measure what the options name; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the logs")
    parser.add_argument("--json", type=Path, required=True, help="result file")
    parser.add_argument("--dataset", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument(
        "--backbone", nargs="+", choices=BACKBONES, default=["sasrec", "esasrec", "hstu"]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true", help="print the table of the file")
    options = parser.parse_args(arguments)
    results = ResultFile(options.json)
    if options.markdown:
        print("\n".join(table(results.content)))
        return
    if options.data is None:
        parser.error("--data is needed")
    torch.set_num_threads(1)
    for dataset in options.dataset:
        split = split_log(DATASETS[dataset].read(options.data), DataConfig())
        for backbone in options.backbone:
            measure(Trial(split, backbone, PLANS[dataset]), dataset, results, options.seeds)


if __name__ == "__main__":
    main()
