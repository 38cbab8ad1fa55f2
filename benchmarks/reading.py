"""How fast a log is read into the normalised form, and in how much memory.

    python -m benchmarks.reading --log amazon-union8.csv.gz --repeats 5
    python -m benchmarks.reading --make 100000000 --log made-up.csv

Each repeat starts two programs, one after the other: Python's own `csv.reader` doing nothing but
walk the file (the yardstick), and `python -m td3engine.data.normalise`, which the API starts
for an upload: read, check, number, sort, count what a filter would do, write Parquet. Rows a second
and the peak of resident memory are of the whole program, its start included; `anonymous` is that
without pages of files, which the system takes back when it needs them.

`--make N` first makes up a log of N rows (20 a user, popular items more often, out of order).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from td3engine.data.types import Limits

YARDSTICK = """
import csv, gzip, sys
opened = gzip.open if sys.argv[1].endswith(".gz") else open
with opened(sys.argv[1], "rt", newline="") as file:
    print(sum(1 for row in csv.reader(file)) - 1)
"""
MIB = 2**20
MADE_AT_ONCE = 2**21
WATCH_SECONDS = 0.05
NORMALISE = [sys.executable, "-m", "td3engine.data.normalise"]


def make_log(path: Path, rows: int, seed: int = 0) -> None:
    """A made-up log: users in any order, items by a power law, times rising."""
    rng = np.random.default_rng(seed)
    users, items = max(1, rows // 20), max(1, rows // 200)
    header = pa_csv.WriteOptions(quoting_style="none")
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", "int64")])
    with pa_csv.CSVWriter(str(path), schema, write_options=header) as writer:
        for first in range(0, rows, MADE_AT_ONCE):
            count = min(MADE_AT_ONCE, rows - first)
            columns = {
                "user_id": _named("user", rng.integers(users, size=count)),
                "item_id": _named("item", (items * rng.random(count) ** 3).astype(np.int64)),
                "timestamp": pa.array(1_600_000_000 + (first + np.arange(count)) // 4),
            }
            writer.write_table(pa.table(columns, schema))


def _named(kind: str, numbers: Any) -> Any:
    texts = pa.array(numbers).cast(pa.string())
    prefix = pa.scalar(f"{kind}-")
    return pa.compute.binary_join_element_wise(prefix, texts, "")


def measure(command: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Run a program; what it printed, and its seconds and peak memory in MiB."""
    began = time.perf_counter()
    anonymous = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        status = Path(f"/proc/{process.pid}/status")
        while (waited := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            anonymous = max(anonymous, _anonymous(status))
            time.sleep(WATCH_SECONDS)
        seconds = time.perf_counter() - began
        _, exit_status, usage = waited
        printed = process.stdout.read()
        process.returncode = os.waitstatus_to_exitcode(exit_status)
    if process.returncode:
        raise SystemExit(f"{command} failed: {printed}")
    cpu = usage.ru_utime + usage.ru_stime
    memory = {"peak_mib": usage.ru_maxrss / 1024, "anonymous_peak_mib": anonymous}
    return printed, {"seconds": seconds, "cpu_seconds": cpu, **memory}


def _anonymous(status: Path) -> float:
    for line in status.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0  # it has ended just now


def compare(log: Path, repeats: int, limits: Limits, yardstick: bool) -> dict[str, Any]:
    """Both programs by turns; medians, the best, and their ratio."""
    runs: dict[str, list[dict[str, float]]] = {"reader": [], "yardstick": []}
    rows = 0
    with tempfile.TemporaryDirectory(dir=log.parent, prefix="reading-") as folder:
        given = ["--name", log.name, "--limits", limits.model_dump_json()]
        normalise = [*NORMALISE, str(log), str(Path(folder) / "normalised.parquet"), *given]
        for _ in range(repeats):
            if yardstick:
                runs["yardstick"].append(measure([sys.executable, "-c", YARDSTICK, str(log)])[1])
            printed, figures = measure(normalise)
            runs["reader"].append(figures)
            rows = json.loads(printed)["statistics"]["interactions"]
    found: dict[str, Any] = {"rows": rows, "repeats": repeats}
    for name, measured in runs.items():
        if measured:
            found[name] = {
                "rows_per_second": rows / median(run["seconds"] for run in measured),
                "best_rows_per_second": rows / min(run["seconds"] for run in measured),
                "rows_per_cpu_second": rows / median(run["cpu_seconds"] for run in measured),
                "peak_mib": max(run["peak_mib"] for run in measured),
                "anonymous_peak_mib": max(run["anonymous_peak_mib"] for run in measured),
            }
    if yardstick:
        pairs = zip(runs["reader"], runs["yardstick"], strict=True)
        found["ratio"] = median(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs)
    return found


def main() -> None:
    """Measure, print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--make", type=int, help="make a log of so many rows there first")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-yardstick", action="store_true")
    parser.add_argument("--limits", default="{}", help="JSON: fields of Limits")
    options = parser.parse_args()
    if options.make:
        make_log(options.log, options.make)
    limits = Limits.model_validate_json(options.limits)
    found = compare(options.log, options.repeats, limits, not options.without_yardstick)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
