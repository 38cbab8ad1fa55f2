"""What is lost by training on a summary: the quality tables, one command a table.

    python -m benchmarks.quality --data LOGS --dataset ml-100k --json docs/results/quality.json

trains the full-data models, distils, trains learners on the summary and on everything that it must
beat, and measures all of them on the test events. Finished cells are kept: the same command goes on
where it was stopped. `python -m benchmarks.quality_report` makes tables and plots of the file.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import torch

from benchmarks.datasets import DATASETS
from benchmarks.study import COUNTING, Study
from benchmarks.study_results import OF_LOG, Cell, Results, Source
from td3engine.config import BACKBONES, MODES, Mode
from td3engine.runtime.torch_setup import configure

SOURCES: tuple[Source, ...] = get_args(Source)
PREFIX_ON = ("ml-100k", "amazon2018-magazine")  # elsewhere an epoch of prefix rows takes too long


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer all cells that the options name; see the module's docstring."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    configure(device)
    results = Results(options.json)
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - began:7.0f} s  {text}", flush=True)

    for dataset in options.dataset:
        study = Study(dataset, options.data, options.work, say, device)
        for cell in cells(dataset, options):
            if results.has(cell):
                continue
            say(f"{dataset}: {cell.source}, {cell.backbone}, {cell.mode}")
            rows = study.rows(cell)
            if not rows:  # EASE of a large catalogue
                continue
            for row in rows:
                say(f"  {row['protocol']}: NDCG@10 {row['ndcg@10']:.4f} ± {row['ndcg@10_std']:.4f}")
            results.add(rows, study.config(cell.distilled_with, cell.mode))


def cells(dataset: str, options: argparse.Namespace) -> Iterator[Cell]:
    """The cells that the options ask for, in the order of their use."""
    for backbone in options.backbone:
        for source in options.source:
            if source == "prefix" and (dataset not in PREFIX_ON or backbone != "sasrec"):
                continue
            if source in COUNTING and backbone != "sasrec":  # they have no backbone
                continue
            of_log = source in OF_LOG
            modes: list[Mode] = options.mode
            if of_log:  # a model of the whole log owns its table
                modes = ["from-scratch"]
            elif source == "zero-steps":
                modes = ["shared-items"]
            seeds = 1 if source == "prefix" or source in COUNTING else options.seeds
            distilled_with = backbone if of_log else options.distilled_with
            for mode in modes:
                yield Cell(dataset, source, distilled_with, backbone, mode, seeds)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=["ml-100k"])
    parser.add_argument("--backbone", nargs="+", choices=BACKBONES, default=["sasrec"])
    parser.add_argument("--distilled-with", choices=BACKBONES, default="sasrec")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seeds", type=int, default=3, help="models or learners a row")
    parser.add_argument("--json", type=Path, default=Path("docs/results/quality.json"))
    parser.add_argument("--work", type=Path, default=Path("quality-work"))
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
