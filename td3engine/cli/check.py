"""`td3 check`: how a log is read, and what is worth knowing of it, before anything is computed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from td3engine.cli.options import (
    ColumnsOption,
    DelimiterOption,
    HeaderOption,
    LimitsOption,
    LogArgument,
    TimeFormatOption,
    console,
    exit_on_error,
    log_reader,
)
from td3engine.config import DataConfig
from td3engine.data.statistics import statistics_of
from td3engine.data.types import Reading


def check(
    log: LogArgument,
    columns: ColumnsOption = None,
    delimiter: DelimiterOption = None,
    header: HeaderOption = None,
    time_format: TimeFormatOption = None,
    limits: LimitsOption = None,
    out: Annotated[
        Path | None, typer.Option("--json", help="Write all that is known here as well.")
    ] = None,
) -> None:
    """Show how LOG is read: its columns, first rows and times, and what is worth knowing of it.

    The whole log is read, and nothing is computed or kept.
    """
    read = log_reader(columns, limits, delimiter, header, time_format)

    def work() -> None:
        from td3engine.files import atomic_file, refuse_unwritable

        if out is not None:
            refuse_unwritable(out)
        with console.status("reading"):
            interactions = read(log)
            statistics = statistics_of(interactions, DataConfig())
        assert interactions.reading is not None
        _show(interactions.reading, statistics)
        if out is not None:
            with atomic_file(out) as file:
                file.write(f"{json.dumps(statistics, indent=2)}\n".encode())
            console.print(f"statistics: {out}", soft_wrap=True)

    exit_on_error(work)


def _show(reading: Reading, statistics: dict[str, Any]) -> None:
    files = f", {reading.files} files" if reading.files > 1 else ""
    facts = [f"format: {reading.format}{files}"]
    if reading.delimiter is not None:
        shown = {"\t": "tab", " ": "blank"}.get(reading.delimiter, reading.delimiter)
        facts.append(f"delimiter: {shown}")
        facts.append(f"header: {'yes' if reading.header else 'no'}")
    facts.append(f"time: {reading.columns[2]} ({reading.time_reason})")
    facts.append(f"times: {reading.times}")
    for fact in facts:
        console.print(fact, highlight=False, markup=False, soft_wrap=True)
    roles = ("user", "item", "time")
    table = Table(*(f"{role}: {name}" for role, name in zip(roles, reading.columns, strict=True)))
    for row in reading.first_rows:
        table.add_row(*row)
    console.print(table, markup=False)
    kept = statistics["filter"]
    for what, counts in (("the log", statistics), ("after the filter", kept)):
        numbers = (f"{counts[name]:,} {name}" for name in ("users", "items", "interactions"))
        console.print(f"{what}: {', '.join(numbers)}", highlight=False)
    for note in statistics["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
