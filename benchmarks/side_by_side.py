"""Outer steps of this tree and of an earlier commit, side by side.

    python -m benchmarks.side_by_side [--commit 9e28343] [--repeats 5] [--only NAME ...]

The commit is unpacked into a folder of its own. Each case has two processes, one a tree, which
build the same work (settings, a random log of that many items, a random table and teacher: no time
depends on what they learnt) and then take turns: while one takes its outer steps the other waits.
A repeat gives a ratio; the file has the medians, on the clock and of the processor, and the most
memory that each process ever held. Where the trees' random draws differ the numbers of learners
that are renewed differ too, so a turn is several steps where they are short.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.work import machine
from td3engine.config.presets import merge

RESULTS = Path("docs/results/side_by_side.json")
ROOT = Path(__file__).resolve().parents[1]
COMMIT = "9e28343"
Figures = dict[str, Any]

# Every setting that a step's time depends on is given, so that no default of either tree decides.
LEARNER = {"schedule": "linear", "lr": 0.02, "beta2": 0.95}
OUTER: Figures = {"steps": 1_000_000, "lr": 0.03, "normalise": True, "among": "all", "pool": 5}
PUBLISHED = {
    "backbone": {"hidden": 32, "layers": 1, "heads": 1, "inner": 64, "dropout": 0.2},
    "summary": {"users": 30, "length": 50, "user_rank": 8, "time_rank": 8, "targets": "next"},
    "learner": LEARNER
    | {"steps": 200, "batch": 15, "objective": "last-and-augmented", "augmented": 1},
    "outer": OUTER | {"window": 40, "feature_weight": 1.0},
}


@dataclass(frozen=True)
class Case:
    """What a step does.

    Attributes:
        name: of the case.
        items: of the random log.
        settings: over the preset `balanced`, in words that both trees know.
        today: over those, in words that the earlier tree does not know.
        steps: outer steps of a turn.
        first: outer steps before the first turn, which pay for page faults and bring the first
            learners to their ages.
        real_targets: real events that an outer step predicts.
    """

    name: str
    items: int
    settings: Figures
    steps: int
    today: Figures = field(default_factory=lambda: SAME_WORK)
    first: int = 2 * OUTER["pool"]
    real_targets: int = 4096


# The earlier tree knew no other way than this one.
SAME_WORK: Figures = {
    "summary": {"inputs": "soft"},
    "learner": {"loss": "cross-entropy", "dropout": 0.2},
}
OWN_WAY: Figures = {}


def _over(base: Figures, **parts: Figures) -> Figures:
    return base | {name: base.get(name, {}) | part for name, part in parts.items()}


CASES = [
    # As in the table of memory by catalogue (benchmarks/memory.py).
    Case(
        "1,000,000 items",
        1_000_000,
        _over(
            PUBLISHED,
            backbone={"hidden": 64},
            summary={"users": 100, "user_rank": 16, "time_rank": 16},
            learner={"batch": 50, "steps": 20},
            outer={"window": 20},
        ),
        steps=1,
        first=1,  # learners are as old as their first window leaves them
    ),
    # As in the table of speed (benchmarks/speed.py --items 20000).
    Case("20,000 items, published settings", 20_000, PUBLISHED, steps=5),
    # Sizes of the earlier tree's presets.
    Case(
        "20,000 items, all positions",
        20_000,
        _over(
            PUBLISHED,
            summary={"user_rank": 16, "time_rank": 16, "targets": "own"},
            learner={"objective": "all-positions", "batch": 15},
            outer={"window": 20, "feature_weight": 30.0},
        ),
        steps=3,
    ),
    # As benchmarks/datasets.py has them for ml-1m, which has this many items after its filter.
    Case(
        "ML-1M's settings",
        3_416,
        _over(
            PUBLISHED,
            backbone={"dropout": 0.1},
            summary={"users": 50, "user_rank": 50, "time_rank": 100, "targets": "own"},
            learner={"objective": "all-positions", "batch": 25, "steps": 800},
            outer={"window": 40, "feature_weight": 30.0, "lr": 0.003},
        ),
        steps=3,
        real_targets=6272,  # 128 windows of 49 events
    ),
]

# The same sizes by this tree's default way: inputs that are items, and a loss of scores.
CASES += [replace(case, name=f"{case.name}, by default", today=OWN_WAY) for case in CASES[2:]]

# Runs in either tree, which its working directory is: one line in a turn, one line out.
CHILD = """
import json, sys, time
import torch
case = json.loads(sys.argv[1])
torch.set_num_threads(case["threads"])
from benchmarks.work import Work, memory_mib, random_log
try:
    from td3engine.config.presets import build_config
    from td3engine.runtime.torch_setup import configure
except ImportError:
    from td3engine.presets import build_config
    from td3engine.processor import settle as configure
configure()
config = build_config("balanced", case["settings"])
work = Work.untrained(random_log(case["items"]), config, torch.device("cpu"))
work = Work(work.split, config, work.teacher, work.device, case["real_targets"])
began = time.perf_counter()
distillation = work.engine()
def turn(count):
    parts, last = {}, [time.perf_counter()]
    def mark(part):
        now = time.perf_counter()
        parts[part] = parts.get(part, 0.0) + (now - last[0]) / count
        last[0] = now
    processor, clock = time.process_time(), time.perf_counter()
    for _ in range(count):
        distillation.step(mark)
        distillation.done += 1
    return {
        "seconds": (time.perf_counter() - clock) / count,
        "processor_seconds": (time.process_time() - processor) / count,
        "parts": parts,
        "peak_mib": memory_mib("VmHWM"),
    }
started = time.perf_counter() - began
for line in sys.stdin:
    print(json.dumps(turn(int(line)) | {"start_seconds": started}), flush=True)
"""


class Side:
    """A process that takes outer steps of one tree when it is told to."""

    def __init__(self, tree: Path, case: Case, settings: Figures, threads: int) -> None:
        told = {
            "items": case.items,
            "settings": settings,
            "real_targets": case.real_targets,
            "threads": threads,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(told)],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def turn(self, steps: int) -> Figures:
        """Take so many outer steps; the mean of their seconds.

        Raises:
            RuntimeError: the process has ended.
        """
        told, answers = _pipe(self.process.stdin), _pipe(self.process.stdout)
        told.write(f"{steps}\n")
        told.flush()
        line = answers.readline()
        if not line:
            raise RuntimeError(f"a side ended with exit status {self.process.wait()}")
        found: Figures = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        _pipe(self.process.stdin).close()
        self.process.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None  # both were asked for
    return pipe


def compare(case: Case, before: Path, repeats: int, threads: int) -> Figures:
    """The row of a case, from turns that alternate.

    Args:
        case: what a step does.
        before: the unpacked earlier commit.
        repeats: turns of each side; which of the two begins alternates.
        threads: of each side.
    """
    trees = {"today": ROOT, "before": before}
    settings = {"today": merge(case.settings, case.today), "before": case.settings}
    sides = {name: Side(tree, case, settings[name], threads) for name, tree in trees.items()}
    turns: dict[str, list[Figures]] = {name: [] for name in sides}
    try:
        for side in sides.values():
            side.turn(case.first)
        for nth in range(repeats):
            for name in list(sides)[:: 1 if nth % 2 else -1]:
                turns[name].append(sides[name].turn(case.steps))
    finally:
        for side in sides.values():
            side.close()
    row: Figures = {"name": case.name, "items": case.items, "repeats": repeats}
    row["steps_a_turn"] = case.steps
    for name, found in turns.items():
        row[f"{name}_seconds"] = statistics.median(each["seconds"] for each in found)
        row[f"{name}_processor_seconds"] = statistics.median(
            each["processor_seconds"] for each in found
        )
        row[f"{name}_peak_mib"] = found[-1]["peak_mib"]
        row[f"{name}_start_seconds"] = found[-1]["start_seconds"]
        row[f"{name}_parts"] = {
            part: statistics.median(each["parts"].get(part, 0.0) for each in found)
            for part in found[0]["parts"]
        }
    pairs = list(zip(turns["today"], turns["before"], strict=True))
    for of, kind in (("", "seconds"), ("_of_processor", "processor_seconds")):
        ratios = [before[kind] / today[kind] for today, before in pairs]
        row[f"ratio{of}"], row[f"ratios{of}"] = statistics.median(ratios), ratios
    return row


def unpack(commit: str, folder: Path) -> None:
    """The tree of a commit of this repository, in an empty folder."""
    command = ["git", "archive", "--format=tar", commit]
    packed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def main() -> None:
    """Compare all cases, and write the file after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commit", default=COMMIT)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--out", type=Path, default=RESULTS, help="rows are replaced by name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = {row["name"]: row for row in kept}
    with tempfile.TemporaryDirectory() as folder:
        unpack(options.commit, Path(folder))
        for case in CASES:
            if case.name not in options.only:
                continue
            row = compare(case, Path(folder), options.repeats, options.threads)
            rows[case.name] = row | {"load_average": os.getloadavg()[0]}
            print(json.dumps(rows[case.name], indent=1), flush=True)
            content = {
                "commit": options.commit,
                "machine": machine(torch.device("cpu")),
                "rows": [rows[each.name] for each in CASES if each.name in rows],
            }
            options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
