"""The result file of the quality study, and how its files are written."""

import fcntl
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from td3engine.config import BackboneName, DistillConfig, Mode

LogSource = Literal[
    "full",
    "prefix",
    "teacher",
    "popularity",
    "repeat-rule",
    "markov",
    "windowed-markov",
    "item-knn",
    "ease",
]
"""What is trained on the log, without a summary."""

Source = Literal[
    LogSource,
    "zero-steps",
    "random",
    "longest",
    "recent",
    "labelled",
    "labelled-bytes",
    "labelled-seconds",
    "initial",
    "summary",
    "soft-export",
    "hard-export",
]
OF_LOG: tuple[Source, ...] = get_args(LogSource)


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
            write_whole(
                self.path, lambda part: part.write_text(json.dumps(content, indent=1) + "\n")
            )


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` write a file, which appears under this name when it is whole."""
    part = path.with_suffix(f".part-{os.getpid()}")
    write(part)
    part.replace(path)
