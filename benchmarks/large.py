"""The whole job on a large log, by phase, and the rows that its summary must beat.

    python -m benchmarks.large --log amazon-union8.csv.gz --work large-work --json large.json

Reading, teacher, distilling and measuring as `td3 distill` does them, then zero steps and learners
on random users, as `td3 demo` has them. Stopped, it goes on from its last checkpoint.
Wall time depends on what else the machine does, so time on the processor is given beside it.
"""

import argparse
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from td3engine.config.presets import build_config, merge
from td3engine.data.normalised import read_normalised, write_normalised
from td3engine.data.reading import read_log
from td3engine.data.types import Interactions
from td3engine.evaluation.baselines import random_user_rows, zero_step_rows
from td3engine.evaluation.benchmark import benchmark_for
from td3engine.evaluation.table import Row
from td3engine.events import Event, PhaseStarted
from td3engine.pipeline.run import RESULT_SEEDS, Control, Run
from td3engine.runtime.torch_setup import configure
from td3engine.summary.bundle import load_bundle


class Clock:
    """Seconds by phase, on the wall and on the processor, kept from one start to the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, dict[str, float]] = (
            json.loads(path.read_text()) if path.exists() else {}
        )
        self.phase = "starting"
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def enter(self, phase: str) -> None:
        self.tick()
        self.phase = phase

    def tick(self) -> None:
        """Put what has passed to the phase, in the file too."""
        wall, cpu = time.perf_counter(), time.process_time()
        spent = self.seconds.setdefault(self.phase, {"wall": 0.0, "cpu": 0.0})
        spent["wall"] += wall - self.wall
        spent["cpu"] += cpu - self.cpu
        self.wall, self.cpu = wall, cpu
        self.path.write_text(json.dumps(self.seconds, indent=1) + "\n")


def run_job(options: argparse.Namespace, clock: Clock) -> list[Row]:
    """Read and distil into the work folder, or go on with it; the job's own rows."""
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)

    def listen(event: Event) -> None:
        if isinstance(event, PhaseStarted):
            clock.enter(event.phase)
        clock.tick()
        spent = {name: round(value) for name, value in clock.seconds[clock.phase].items()}
        print(f"{time.strftime('%H:%M:%S')} {event} {spent}", flush=True)

    log, fingerprint = _normalised(options, clock)
    config = build_config(options.preset, merge({"threads": options.threads}, options.set))
    control = Control(listen, stop=lambda: stopped, checkpoint_seconds=60)
    outcome = Run(log, fingerprint, config, options.work / "summary", control).run()
    return outcome.rows


def _normalised(options: argparse.Namespace, clock: Clock) -> tuple[Interactions, str]:
    """The log by way of its normalised file, as a job of the service has it."""
    kept, name = options.work / "log.parquet", options.work / "fingerprint"
    if not name.exists():
        clock.enter("reading")
        name.write_text(write_normalised(read_log(options.log), kept))
        clock.enter("starting")
    return read_normalised(kept), name.read_text()


def baselines(options: argparse.Namespace, clock: Clock) -> list[Row]:
    """Learners on what the summary must beat; rows are kept as they come."""
    configure()  # the job itself may be from an earlier start
    device = torch.device("cpu")
    bundle = load_bundle(options.work / "summary")
    benchmark = benchmark_for(bundle, read_normalised(options.work / "log.parquet"), device)
    V_ND = bundle.factors.V
    made: dict[str, Callable[[], list[Row]]] = {
        "zero steps": lambda: zero_step_rows(benchmark, V_ND, RESULT_SEEDS),
        "random users": lambda: random_user_rows(benchmark, "shared-items", V_ND, RESULT_SEEDS),
    }
    rows: list[Row] = []
    for name, make in made.items():
        kept = options.work / f"{name}.json"
        clock.enter(f"row: {name}")
        if not kept.exists():
            kept.write_text(json.dumps(make()))
        clock.tick()
        rows += json.loads(kept.read_text())
    return rows


def main() -> None:
    """Run what is left, write one JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--set", type=json.loads, default={}, help="JSON: settings over the preset")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    clock = Clock(options.work / "seconds.json")
    job = options.work / "job.json"
    if not job.exists():
        job.write_text(json.dumps(run_job(options, clock)))
    rows = json.loads(job.read_text()) + baselines(options, clock)
    manifest = load_bundle(options.work / "summary").manifest
    content = {
        "log": {"name": options.log.name, **manifest.statistics},
        "config": manifest.config.model_dump(mode="json"),
        "machine": {"threads": options.threads, "cores": os.cpu_count()},
        "seconds": clock.seconds,
        "validation": manifest.validation,
        "rows": rows,
    }
    options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
