"""Normalises one file: `python -m td3engine.data.normalise SOURCE TARGET`. Imports no torch.

The service's API runs this program for every upload, as a child process with limited memory.
"""

import argparse
import json
import sys
from pathlib import Path

from pydantic import ValidationError

from td3engine.config import DataConfig
from td3engine.contract import EXIT_UNUSABLE
from td3engine.data.normalised import write_normalised
from td3engine.data.reading import NO_MEMORY, format_of_name, read_log
from td3engine.data.split import filter_statistics
from td3engine.data.types import (
    ColumnNames,
    Limits,
    LogError,
    describe,
)


def main(arguments: list[str] | None = None) -> int:
    """Normalises one file; prints one JSON line and returns the exit code (0, or 65)."""
    parser = argparse.ArgumentParser(
        prog="python -m td3engine.data.normalise", description=main.__doc__
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--limits", default="{}", help="JSON: fields of Limits")
    parser.add_argument("--columns", default="{}", help="JSON: fields of ColumnNames")
    parser.add_argument("--name", help="what the file was called; tells its format")
    options = parser.parse_args(arguments)
    try:
        limits = Limits.model_validate_json(options.limits)
        columns = ColumnNames.model_validate_json(options.columns)
    except ValidationError as error:
        parser.error(str(error))
    try:
        log = read_log(
            options.source,
            columns=columns,
            limits=limits,
            format=format_of_name(options.name or options.source.name),
            scratch=options.target.parent,
        )
        usual = DataConfig()
        filtered = filter_statistics(
            log,
            min_user_interactions=usual.min_user_interactions,
            min_item_interactions=usual.min_item_interactions,
        )
        answer = {
            "sha256": write_normalised(log, options.target),
            "bytes": options.target.stat().st_size,
            "statistics": {**describe(log).model_dump(), "filter": filtered.model_dump()},
        }
    except MemoryError:
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
