"""What a full trainer reaches on sequences that were sampled from a summary.

    python -m benchmarks.hard_export --bundle SUMMARY --data LOG --json OUT [--only WAY] [--test]

An early-stopped model of the summary's own backbone trains on the sampled sequences alone, all
positions at once, as the full-data model does on the log: with a table of its own, and with the
summary's, frozen. Each way of sampling is a row for each of the two; figures are NDCG@10 (`unseen`)
on the real log's questions. Early stopping looks at the real validation events, as it does for
every row of the project's tables, and only `--test` looks at test. Rows in OUT are kept, so an
interrupted run goes on with what is missing.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from td3engine.config import MODES, DistillConfig, Mode, TeacherConfig
from td3engine.data.reading import read_log
from td3engine.data.split import Split
from td3engine.data.windows import WindowIndex, training_windows
from td3engine.evaluation.benchmark import Benchmark, benchmark_for
from td3engine.export.sequences import COPIES, GUIDANCE, TEMPERATURE, sample_sequences, train_guide
from td3engine.inner_loop.learner import recommender
from td3engine.summary.bundle import Bundle, load_bundle
from td3engine.summary.labelled import AnySummary
from td3engine.teacher.training import LogTraining, TrainedOnLog

Row = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """How sequences are sampled and trained on.

    Attributes:
        guidance: weight of the learner that guides; None samples every position by itself.
        whole: train on whole sequences; else on windows with a random first cut, so that early
            positions of a model see later parts of a sequence too.
    """

    guidance: float | None = GUIDANCE
    temperature: float = TEMPERATURE
    repeats: bool = False
    copies: int = COPIES
    whole: bool = True
    # Smaller steps than on a whole log: a few hundred sequences are soon learnt by heart.
    batch: int = 16
    lr: float = 0.001


WAYS: dict[str, Way] = {
    "default": Way(),
    "independent, temperature 1": Way(guidance=None, temperature=1.0),
    "independent": Way(guidance=None),
    "temperature 1": Way(temperature=1.0),
    "temperature 0.8": Way(temperature=0.8),
    "temperature 0.5": Way(temperature=0.5),
    "temperature 0.4": Way(temperature=0.4),
    "guidance 0.5": Way(guidance=0.5),
    "guidance 0.8": Way(guidance=0.8),
    "repeats": Way(repeats=True),
    "random cuts": Way(whole=False),
    "5 copies": Way(copies=5),
    "batch 64, lr 0.003": Way(batch=64, lr=0.003),
}


def sample(summary: AnySummary, config: DistillConfig, way: Way, seed: int) -> Tensor:
    """Item sequences, int64 (users * copies, zeta)."""
    guide = None
    if way.guidance is not None:
        guide = train_guide(summary, config, weight=way.guidance, seed=seed)
    return sample_sequences(
        summary,
        copies=way.copies,
        temperature=way.temperature,
        guide=guide,
        repeats=way.repeats,
        seed=seed,
    )


def train(
    benchmark: Benchmark,
    summary: AnySummary,
    config: DistillConfig,
    way: Way,
    mode: Mode,
    seed: int,
) -> TrainedOnLog:
    """A model trained on nothing but sampled sequences, early-stopped on the real validation."""
    sequences = sample(summary, config, way, seed)
    rows, length = sequences.shape
    # Two events are held out of every history of a split; padding brings the sampled ones back.
    padded = np.pad(sequences.numpy().astype(np.int32), ((0, 0), (0, 2)))
    sampled = Split(
        histories=padded.reshape(-1),
        offsets=np.arange(rows + 1, dtype=np.int64) * (length + 2),
        times=np.tile(np.arange(length + 2), rows),
        item_ids=benchmark.split.item_ids,
        user_ids=[str(row) for row in range(rows)],
    )

    def windows(rng: Generator) -> WindowIndex:
        if way.whole:
            return WindowIndex(sampled.offsets[:-1], sampled.training_ends)
        return training_windows(sampled, config.learner_history, rng)

    training = LogTraining(
        sampled,
        recommender(benchmark.backbone, summary.V, mode),
        TeacherConfig(batch=way.batch, lr=way.lr),
        windows,
        benchmark.validation,
        seed=seed,
        device=torch.device("cpu"),
    )
    for _ in training.epochs():
        pass
    return training.result()


def row(benchmark: Benchmark, bundle: Bundle, name: str, mode: Mode, seed: int, test: bool) -> Row:
    """Train once and measure."""
    began = time.perf_counter()
    config = bundle.manifest.config
    trained = train(benchmark, bundle.factors, config, WAYS[name], mode, seed)
    found: Row = {
        "way": name,
        "mode": mode,
        "seed": seed,
        "settings": asdict(WAYS[name]),
        "validation": trained.validation,
        "train_seconds": trained.seconds,
        "seconds": time.perf_counter() - began,
    }
    if test:
        found["test"] = benchmark.measure(trained.model)
    return found


def main() -> None:
    """Measure every way that is asked for and not in the file yet."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of a summary")
    parser.add_argument("--data", type=Path, required=True, help="the log that it was made from")
    parser.add_argument("--json", type=Path, required=True, help="rows are kept here")
    parser.add_argument("--only", action="append", choices=list(WAYS), help="ways, by name")
    parser.add_argument("--mode", action="append", choices=MODES, help="default: both")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--test", action="store_true", help="look at the test events as well")
    options = parser.parse_args()

    torch.set_num_threads(1)
    bundle = load_bundle(options.bundle)
    benchmark = benchmark_for(bundle, read_log(options.data), torch.device("cpu"))
    rows: list[Row] = json.loads(options.json.read_text()) if options.json.exists() else []
    done = {(r["way"], r["mode"], r["seed"]) for r in rows if "test" in r or not options.test}
    for name in options.only or WAYS:
        for mode in options.mode or MODES:
            for seed in range(1, options.seeds + 1):
                if (name, mode, seed) in done:
                    continue
                found = row(benchmark, bundle, name, mode, seed, options.test)
                rows = [r for r in rows if (r["way"], r["mode"], r["seed"]) != (name, mode, seed)]
                rows.append(found)
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
                tested = f"  test {found['test']['unseen']['ndcg@10']:.4f}" if options.test else ""
                print(f"{name:32} {mode:12} {seed}  {found['validation']:.4f}{tested}", flush=True)


if __name__ == "__main__":
    main()
