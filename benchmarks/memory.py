"""Peak memory of an outer step, by catalogue size and by window: python -m benchmarks.memory

Each point is a process of its own, which builds everything on a random log, takes outer steps and
reports the most memory it ever held (VmHWM, so Python and torch are in it). Learners are as old as
they get with the window, so no step is a warm-up. Points are kept in the file: a run that was
stopped goes on with those that are missing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import keep_memory
from benchmarks.work import REAL_TARGETS, Work, machine, memory_mib, published, random_log
from td3engine.config import MODES, Mode
from td3engine.outer_loop.distillation import Distillation
from td3engine.runtime.torch_setup import configure

RESULTS = Path("docs/results/memory.json")
CPU = torch.device("cpu")
CATALOGUES = [1_000, 3_000, 10_000, 30_000, 80_000, 100_000, 300_000, 1_000_000]
WINDOWS = [10, 20, 40, 100, 200]
WINDOW, WINDOWS_ITEMS = 20, 1_349
# Beyond this an outer step takes minutes, and one tells as much as several.
ONE_STEP_FROM = 300_000


@dataclass(frozen=True)
class Point:
    """What is measured. `large` is d = 64 and 100 x 50 sequences in batches of 50; else the
    published ML-100k settings, d = 32 and 30 x 50 sequences in batches of 15."""

    family: str
    items: int
    window: int
    recompute: bool
    mode: Mode
    large: bool

    def work(self) -> Work:
        over: dict[str, Any] = {
            "mode": self.mode,
            "learner": {"steps": self.window, "scratch_steps": self.window},
            "outer": {"window": self.window, "recompute": self.recompute, "shared_steps": 0},
        }
        if self.large:
            over["backbone"] = {"hidden": 64}
            over["summary"] = {"users": 100, "user_rank": 16, "time_rank": 16}
            over["learner"]["batch"] = 50
        return Work.untrained(random_log(self.items), published("ml-100k", over), CPU)


def points() -> Iterator[Point]:
    for items in CATALOGUES:
        yield Point("catalogue", items, WINDOW, False, "shared-items", large=True)
    for items in CATALOGUES[:4]:
        yield Point("catalogue", items, WINDOW, False, "from-scratch", large=True)
    for mode in MODES:
        for window in WINDOWS:
            for recompute in (False, True):
                yield Point("window", WINDOWS_ITEMS, window, recompute, mode, large=False)


def peak(point: Point) -> dict[str, Any]:
    """Memory before the first outer step and the most until the last, MiB; seconds of the last,
    on the clock and of the processor."""
    configure()  # as a run of the engine has it
    distillation = point.work().engine()
    before = memory_mib("VmRSS")
    if point.items < ONE_STEP_FROM:
        step(distillation)
    began = time.process_time()
    seconds = step(distillation)
    return {
        "before_mib": before,
        "peak_mib": memory_mib("VmHWM"),
        "seconds": seconds,
        "processor_seconds": time.process_time() - began,
    }


def price(point: Point, repeats: int) -> dict[str, Any]:
    """What re-computing costs in time: the two kinds of outer step take turns."""
    keep_memory()
    kept, again = (
        Point(point.family, point.items, point.window, recompute, point.mode, point.large)
        .work()
        .engine()
        for recompute in (False, True)
    )
    step(kept)
    step(again)
    ratios = [step(again) / step(kept) for _ in range(repeats)]
    return {"time_ratio": statistics.median(ratios), "time_ratios": ratios}


def step(distillation: Distillation) -> float:
    """Seconds of an outer step."""
    began = time.perf_counter()
    distillation.step()
    distillation.done += 1
    return time.perf_counter() - began


def in_child(measure: str, point: Point, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--threads", str(options.threads)]
    command += ["--repeats", str(options.repeats), "--measure", measure, json.dumps(asdict(point))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(options: argparse.Namespace) -> None:
    """Measure what is missing, and write the file after each point."""
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    kept = {json.dumps({name: row[name] for name in asdict(next(points()))}) for row in rows}
    for point in points():
        if json.dumps(asdict(point)) in kept or point.items > options.largest:
            continue
        row = asdict(point) | in_child("peak", point, options)
        if point.recompute:
            row |= in_child("price", point, options)
        rows.append(row)
        print(json.dumps(row), flush=True)
        content = {"machine": machine(CPU), "real_targets": REAL_TARGETS, "rows": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Measure all points, or one as a child."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="of steps whose time is compared")
    parser.add_argument("--largest", type=int, default=CATALOGUES[-1], help="no more items")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where points are kept")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "POINT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure is None:
        run(options)
        return
    what, point = options.measure[0], Point(**json.loads(options.measure[1]))
    found = peak(point) if what == "peak" else price(point, options.repeats)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
