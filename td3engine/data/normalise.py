"""Normalises one log: `python -m td3engine.data.normalise SOURCE... TARGET`. Imports no torch.

The service's API runs this program for every upload, as a child process with limited memory.
"""

import argparse
import json
import sys
from pathlib import Path

import pyarrow as pa
from pydantic import ValidationError

from td3engine.config import DataConfig
from td3engine.contract import EXIT_UNUSABLE
from td3engine.data.normalised import write_normalised
from td3engine.data.reading import NO_MEMORY, format_of_name, read_files
from td3engine.data.statistics import statistics_of
from td3engine.data.types import (
    ColumnNames,
    Dialect,
    Limits,
    LogError,
)


def main(arguments: list[str] | None = None) -> int:
    """Normalises one log; prints one JSON line and returns the exit code (0, or 65)."""
    parser = argparse.ArgumentParser(
        prog="python -m td3engine.data.normalise", description=main.__doc__
    )
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE")
    parser.add_argument("target", type=Path)
    parser.add_argument("--limits", default="{}", help="JSON: fields of Limits")
    parser.add_argument("--columns", default="{}", help="JSON: fields of ColumnNames")
    parser.add_argument("--dialect", default="{}", help="JSON: fields of Dialect")
    parser.add_argument(
        "--name", action="append", help="what a file was called, which tells its format; in order"
    )
    options = parser.parse_args(arguments)
    try:
        limits = Limits.model_validate_json(options.limits)
        columns = ColumnNames.model_validate_json(options.columns)
        dialect = Dialect.model_validate_json(options.dialect)
    except ValidationError as error:
        parser.error(str(error))
    names = options.name or [source.name for source in options.sources]
    if len(names) != len(options.sources):
        parser.error("there must be as many names as files")
    try:
        log = read_files(
            options.sources,
            columns,
            dialect,
            limits,
            [format_of_name(name) for name in names],
            scratch=options.target.parent,
            labels=names,
        )
        answer = {
            "sha256": write_normalised(log, options.target),
            "bytes": options.target.stat().st_size,
            "statistics": statistics_of(log, DataConfig()),
        }
    except (MemoryError, pa.lib.ArrowCapacityError):
        return _refuse(LogError("too_large", NO_MEMORY))
    except LogError as error:
        return _refuse(error)
    _say(answer)
    return 0


def _refuse(error: LogError) -> int:
    fields = ("code", "message", "line", "column")
    _say({"error": {field: getattr(error, field) for field in fields}})
    return EXIT_UNUSABLE


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
