"""An outer step on a GPU: seconds by way of unrolling, kernels started, and how busy the GPU is.

    python -m benchmarks.gpu --dataset ml-1m [--json docs/results/gpu.json]

Settings are those of the quality study, with a random teacher, on which no time depends. Each way
is one line: inner steps started one by one, or recorded (`outer.cuda_graphs`). A trace of outer
steps is kept with it: when the GPU ran a kernel, and when the processor started one.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.datasets import DATASETS
from benchmarks.speed import LOGS, Clock
from benchmarks.work import Work, machine
from td3engine.config.presets import merge
from td3engine.data.split import split_log
from td3engine.outer_loop.distillation import Distillation
from td3engine.outer_loop.learner_pool import PooledLearner
from td3engine.runtime.torch_setup import configure

Figures = dict[str, Any]
STARTS = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
COPIES = ("cudaMemcpyAsync", "cudaMemsetAsync")
RECORDINGS = ("cudaGraphLaunch",)
WAYS: dict[str, Figures] = {
    "one by one, 1": {"learners": 1, "cuda_graphs": "off"},
    "recorded, 1": {"learners": 1, "cuda_graphs": "on"},
    "recorded, 4": {"learners": 4, "cuda_graphs": "on"},
}


def measured(work: Work, outer: Figures, steps: int) -> Figures:
    """Seconds of an outer step in this way, what the first ones cost, and what runs when."""
    settings = work.config.model_dump() | {"auto": ()}
    config = type(work.config).model_validate(merge(settings, {"outer": outer}))
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    distillation = work.engine(config)
    owe_nothing(distillation)
    seconds = []
    for _ in range(2):  # the first one traces and records
        _step(distillation)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    windows = []
    clock = Clock(work.device)
    for _ in range(steps):
        at = time.perf_counter()
        _step(distillation, clock.on_stage)
        torch.cuda.synchronize()
        windows.append(time.perf_counter() - at)
    began = time.perf_counter()
    distillation._validate()
    torch.cuda.synchronize()
    look = time.perf_counter() - began
    return {
        "outer": outer,
        "first_seconds": seconds,
        "seconds_per_outer_step": statistics.median(windows),
        "lowest_and_highest": [min(windows), max(windows)],
        "parts": {part: total / steps for part, total in clock.seconds.items()},
        "seconds_of_a_look": look,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "trace": traced(distillation),
    }


def owe_nothing(distillation: Distillation) -> None:
    """Have first learners be of the ages that they were to be brought to: no time depends on what
    they have learnt."""
    for pool in distillation.pools.by_learner.values():
        for nth, pooled in enumerate(pool):
            pool[nth] = PooledLearner(
                replace(pooled.state, age=pooled.warmup_steps), warmup_steps=0
            )


def _step(distillation: Distillation, on_stage: Any = lambda _part: None) -> None:
    distillation.step(on_stage)
    distillation.done += 1


def traced(distillation: Distillation, steps: int = 1) -> Figures:
    """What the profiler sees in some outer steps."""
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            _step(distillation)
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    kernels, starts, recordings, copies = [], 0, 0, 0
    names: dict[str, list[float]] = {}
    for event in profiler.events():
        if str(event.device_type) == "DeviceType.CUDA":
            kernels.append((event.time_range.start, event.time_range.end))
            count_and_us = names.setdefault(event.name[:80], [0, 0.0])
            count_and_us[0] += 1
            count_and_us[1] += event.time_range.end - event.time_range.start
        elif event.name in STARTS:
            starts += 1
        elif event.name in RECORDINGS:
            recordings += 1
        elif event.name in COPIES:
            copies += 1
    most = sorted(names.items(), key=lambda item: -item[1][1])[:12]
    return {
        "seconds_per_outer_step": wall / steps,
        "kernels": len(kernels) / steps,
        "busy_seconds": covered(kernels) / 1e6 / steps,
        "started_by_themselves": starts / steps,
        "copies_and_fills": copies / steps,
        "recordings_started": recordings / steps,
        "most_time": {name: [n / steps, us / 1e6 / steps] for name, (n, us) in most},
        "busy_by_part_of_a_step": shares(kernels, 240),
    }


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def shares(intervals: Sequence[tuple[float, float]], parts: int) -> list[float]:
    """How much of each of so many parts of the whole time the intervals cover."""
    if not intervals:
        return []
    first, last = min(start for start, _ in intervals), max(end for _, end in intervals)
    width = (last - first) / parts
    cut: list[list[tuple[float, float]]] = [[] for _ in range(parts)]
    for start, end in intervals:
        begin, stop = int((start - first) / width), int((end - first) / width)
        for part in range(begin, min(stop, parts - 1) + 1):
            low = first + part * width
            cut[part].append((max(start, low), min(end, low + width)))
    return [round(covered(each) / width, 3) for each in cut]


def told(name: str, found: Figures) -> str:
    """A line for a reader."""
    parts = ", ".join(f"{part} {1000 * s:.1f}" for part, s in found["parts"].items())
    trace = found["trace"]
    return (
        f"{name:26} {1000 * found['seconds_per_outer_step']:7.1f} ms a step ({parts}); first "
        f"{found['first_seconds'][0]:.1f} s, second at {found['first_seconds'][1]:.1f} s; "
        f"a look {found['seconds_of_a_look']:.2f} s; {found['peak_mib']:,.0f} MiB; traced "
        f"{1000 * trace['seconds_per_outer_step']:.1f} ms, busy {1000 * trace['busy_seconds']:.1f},"
        f" {trace['kernels']:.0f} kernels, {trace['started_by_themselves']:.0f} starts, "
        f"{trace['copies_and_fills']:.0f} copies, {trace['recordings_started']:.0f} recordings"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=list(DATASETS), default="ml-1m")
    parser.add_argument("--data", type=Path, default=LOGS, help="folder of the logs")
    parser.add_argument("--mode", choices=["shared-items", "from-scratch"], default="shared-items")
    parser.add_argument("--way", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--note", default="", help="kept with the figures: of which code, say")
    options = parser.parse_args()
    configure(torch.device("cuda"))
    config = DATASETS[options.dataset].config("sasrec", options.mode)
    split = split_log(DATASETS[options.dataset].read(options.data), config.data)
    work = Work.untrained(split, config, torch.device("cuda"))
    holdout = {"dataset": options.dataset, "mode": options.mode, "steps": options.steps}
    found: Figures = {"machine": machine(work.device), **holdout, "note": options.note, "ways": {}}
    for name in options.way:
        found["ways"][name] = measured(work, WAYS[name], options.steps)
        print(told(name, found["ways"][name]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
        gc.collect()  # recordings
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
