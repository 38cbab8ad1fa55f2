"""The yardstick: seconds, memory and parts of an outer step, the engine against the textbook.

    python -m benchmarks.speed [--dataset ml-100k | --items 20000] [--threads 1] [--json]
    python -m benchmarks.speed --end-to-end --budget 1800

Both do the same work: same summary, same learners, same window, as many inner and as many real
targets. They take turns in one process, and each repeat gives a ratio; memory is the peak of a
process of its own each. With several learners an outer step, the textbook's is as many of its
outer steps (one Adam step on the factors more for each). Table and teacher are random, because no
time depends on them; only `--end-to-end` trains a teacher.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.arithmetic import matmul_rate, outer_step
from benchmarks.datasets import DATASETS
from benchmarks.end_to_end import end_to_end
from benchmarks.work import REAL_TARGETS, Work, machine, memory_mib, published, random_log
from td3engine.config import DistillConfig
from td3engine.config.presets import merge
from td3engine.data.split import split_log
from td3engine.outer_loop.distillation import StageHook
from td3engine.runtime.torch_setup import configure, use_fast_matmul

Figures = dict[str, Any]
Step = Callable[[StageHook], None]
RESULTS = Path("docs/results/speed.json")
LOGS = Path(__file__).resolve().parents[2] / "shared" / "data"
ENGINE_STEPS = 5  # to one of the textbook's: they are short, and not all have learners to warm up


class Clock:
    """Seconds of the parts of outer steps."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = self._now()

    def on_stage(self, part: str) -> None:
        now = self._now()
        self.seconds[part] += now - self._last
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def keep_memory() -> None:
    """Have the C library keep what is freed, for the next outer step to use.

    By default glibc gives large blocks back, and every outer step pays for the page faults of new
    ones: on a virtual machine more than half of a textbook's time, and little of the engine's. A
    ratio that rested on it would flatter the engine.
    """
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    if not (mallopt(trim_threshold, -1) and mallopt(mmap_max, 0)):
        raise OSError("mallopt refused")


@dataclass(frozen=True)
class LearnerWindow:
    """An outer step's seconds by part, and the processor's seconds (of all threads)."""

    parts: dict[str, float]
    processor: float

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def turn(step: Step, count: int, device: torch.device) -> LearnerWindow:
    """The mean of `count` outer steps."""
    began = time.process_time()
    clock = Clock(device)
    for _ in range(count):
        step(clock.on_stage)
    parts = {part: seconds / count for part, seconds in clock.seconds.items()}
    return LearnerWindow(parts, (time.process_time() - began) / count)


def engine_step(work: Work) -> Step:
    """The engine's outer step, past the start in which first learners are brought to their ages."""
    distillation = work.engine()

    def step(on_stage: StageHook) -> None:
        distillation.step(on_stage)
        distillation.done += 1

    for _ in range(2 * work.config.outer.pool):
        step(lambda _part: None)
    return step


def textbook_step(work: Work) -> Step:
    rng = np.random.default_rng(0)
    textbook = work.textbook(work.engine().summary.learned)
    torch.manual_seed(0)

    def step(on_stage: StageHook) -> None:
        for _ in range(work.config.outer.learners):
            textbook.step(work.real_rows(rng), on_stage)

    step(lambda _part: None)  # the first one pays for page faults
    textbook.done = 0
    return step


STEPS: dict[str, Callable[[Work], Step]] = {"engine": engine_step, "textbook": textbook_step}


def compare(work: Work, options: argparse.Namespace) -> Figures:
    """Let the two take turns."""
    counts = {"engine": options.steps * ENGINE_STEPS, "textbook": options.steps}
    sides = ["engine"] if options.engine_only else list(counts)
    peaks = {side: peak_in_child(side) for side in sides}
    keep_memory()
    steps = {side: STEPS[side](work) for side in sides}
    windows: dict[str, list[LearnerWindow]] = {side: [] for side in sides}
    rates = []
    for _ in range(options.repeats):
        rates.append(matmul_rate(work.device))
        for side in sides:
            windows[side].append(turn(steps[side], counts[side], work.device))
    found: Figures = {side: summed_up(windows[side]) | peaks[side] for side in sides}
    found["arithmetic"] = limit(work, [t.seconds for t in windows["engine"]], rates)
    if options.engine_only:
        return {"ratio": None, **found}
    pairs = list(zip(windows["engine"], windows["textbook"], strict=True))
    ratios = [textbook.seconds / engine.seconds for engine, textbook in pairs]
    of_processor = [textbook.processor / engine.processor for engine, textbook in pairs]
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ratio_of_processor_seconds": statistics.median(of_processor),
        **found,
    }


def limit(work: Work, seconds: list[float], rates: list[float]) -> Figures:
    """How near the engine's outer steps are to the machine's own arithmetic.

    Args:
        work: the work.
        seconds: of an outer step, by turn.
        rates: what large products reached just before each turn, operations a second. What
            products of an inner step's size reach by themselves is told too.
    """
    config = work.engine_config
    operations = outer_step(config, work.split.n_items, work.real_targets)
    layer = config.learner.batch * (config.summary.length - 1), config.backbone.hidden
    shares = [operations.total / r / s for r, s in zip(rates, seconds, strict=True)]
    return {
        "operations": vars(operations),
        "gflops": statistics.median(rates) / 1e9,
        "gflops_of_a_layer": matmul_rate(work.device, *layer) / 1e9,
        "seconds_at_the_limit": operations.total / statistics.median(rates),
        "share_of_the_limit": statistics.median(shares),
    }


def summed_up(windows: list[LearnerWindow]) -> Figures:
    """Median over turns, and lowest and highest; parts as medians of their own."""
    seconds = [each.seconds for each in windows]
    return {
        "seconds_per_outer_step": statistics.median(seconds),
        "lowest_and_highest": [min(seconds), max(seconds)],
        "processor_seconds_per_outer_step": statistics.median(each.processor for each in windows),
        "parts": {
            part: statistics.median(each.parts[part] for each in windows)
            for part in windows[0].parts
        },
    }


def peak_in_child(side: str) -> Figures:
    """Peak memory of one side's outer step, in a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.speed", *sys.argv[1:], "--peak-of", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Figures = json.loads(done.stdout)
    return found


def peak(side: str, work: Work) -> Figures:
    """Memory before the first outer step, and the most during two of them, in MiB."""
    if side == "engine":
        distillation = work.engine()
        step: Step = distillation.step
    else:
        textbook = work.textbook(work.engine().summary.learned)
        textbook.starts = np.zeros(1, np.int64)  # a warm-up holds no more than a window does
        rows = work.real_rows(np.random.default_rng(0))

        def step(on_stage: StageHook) -> None:
            textbook.step(rows, on_stage)

    configure()  # as a run of the engine has it
    before = memory_mib("VmRSS")
    for _ in range(2):
        step(lambda _part: None)
    if work.device.type == "cuda":
        return {"peak_mib": torch.cuda.max_memory_allocated(work.device) / 2**20}
    return {"peak_mib": memory_mib("VmHWM"), "before_mib": before}


def prepare(options: argparse.Namespace) -> Work:
    """Log, settings and a random teacher."""
    knobs = ("recompute", "learners")
    over: dict[str, Any] = {"outer": {knob: getattr(options, knob) for knob in knobs}}
    if options.window:
        over = merge(over, {"outer": {"window": options.window}})
    config = published(options.dataset, over)
    if options.items:
        split = random_log(options.items)
    else:
        split = split_log(DATASETS[options.dataset].read(options.data), config.data)
    return Work.untrained(split, config, torch.device(options.device))


def settings(work: Work, options: argparse.Namespace) -> Figures:
    config = work.engine_config
    learners = config.outer.learners
    return {
        "dataset": None if options.items else options.dataset,
        "items": work.split.n_items,
        "repeats": options.repeats,
        "steps_a_repeat": {"textbook": options.steps, "engine": options.steps * ENGINE_STEPS},
        "targets_an_outer_step": {
            "inner, each": learners * 2 * config.learner.batch * config.outer.window,
            "real, engine (mean)": learners * config.outer.batch * work.targets_per_window,
            "real, textbook": learners * REAL_TARGETS,
        },
        **_shown(config),
    }


def _shown(config: DistillConfig) -> Figures:
    shown = config.model_dump(mode="json", include={"backbone", "summary", "learner", "outer"})
    shown["outer"].pop("steps")  # never reached here
    return shown


def told(found: Figures) -> str:
    """The figures for a reader."""
    lines = []
    for side in ("engine", "textbook"):
        if side not in found:
            continue
        own = found[side]
        low, high = own["lowest_and_highest"]
        parts = ", ".join(f"{part} {1000 * seconds:.0f}" for part, seconds in own["parts"].items())
        lines.append(
            f"{side:9}{own['seconds_per_outer_step']:8.3f} s a step ({low:.3f} to {high:.3f}), "
            f"peak {own['peak_mib']:,.0f} MiB; ms: {parts}"
        )
    bound = found["arithmetic"]
    lines.append(
        f"engine at {100 * bound['share_of_the_limit']:.0f}% of the arithmetic limit "
        f"({bound['seconds_at_the_limit']:.3f} s at {bound['gflops']:.0f} Gflop/s; "
        f"a layer's products alone reach {bound['gflops_of_a_layer']:.0f})"
    )
    if found["ratio"] is not None:
        each = ", ".join(f"{ratio:.1f}" for ratio in found["ratios"])
        lines.append(
            f"ratio    {found['ratio']:8.1f} ({each}); "
            f"of processor seconds {found['ratio_of_processor_seconds']:.1f}"
        )
    return "\n".join(lines)


def keep(found: Figures) -> None:
    """Put the figures under this command's name into `RESULTS`."""
    arguments = " ".join(part for part in sys.argv[1:] if part not in ("--keep", "--json"))
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[f"python -m benchmarks.speed {arguments}".strip()] = found
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    told_by = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = told_by.add_argument
    add("--dataset", choices=list(DATASETS), default="ml-100k", help="log and summary size")
    add("--data", type=Path, default=LOGS, help="folder of the logs")
    add("--items", type=int, help="a random log over so many items, with the data set's sizes")
    add("--threads", type=int, default=1, help="CPU threads; 0 leaves torch's own choice")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--steps", type=int, default=4, help="a turn, of the textbook; the engine: 5 times")
    add("--repeats", type=int, default=5, help="turns of each")
    add("--window", type=int, help="W, in place of 40")
    add("--recompute", action="store_true", help="the engine's outer.recompute")
    add("--learners", type=int, default=1, help="an outer step, of the textbook one by one")
    add("--engine-only", action="store_true")
    add("--end-to-end", action="store_true", help="a log in, a summary of equal quality out")
    add("--budget", type=float, default=1800, help="seconds of distilling, of each, end to end")
    add("--json", action="store_true", help="print the figures as JSON")
    add("--keep", action="store_true", help=f"put the figures into {RESULTS} too")
    add("--peak-of", choices=list(STEPS), help=argparse.SUPPRESS)
    return told_by


def main() -> None:
    """Measure and print."""
    options = parser().parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    use_fast_matmul()  # for both
    work = prepare(options)
    if options.peak_of:
        print(json.dumps(peak(options.peak_of, work)))
        return
    if options.end_to_end:
        keep_memory()
        found = end_to_end(options.dataset, work.split, work.device, options.budget, _say)
    else:
        found = compare(work, options) | {"settings": settings(work, options)}
    found["machine"] = machine(work.device)
    if options.keep:
        keep(found)
    as_json = options.json or options.end_to_end
    print(json.dumps(found, indent=1) if as_json else told(found))


if __name__ == "__main__":
    main()
