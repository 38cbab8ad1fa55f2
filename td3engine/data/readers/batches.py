"""Batches of rows that know where in their source they lie."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from td3engine.data.readers.collect import Collector
from td3engine.data.readers.times import joined
from td3engine.data.readers.values import BadRowError, TimeKind, texts_of
from td3engine.data.types import Interactions, Limits, LogError

# Arrow arrays of users, items and times of the same rows. Times may be two: day and time of day.
Columns: TypeAlias = tuple[Any, ...]
PREVIEW_ROWS = 5


@dataclass
class Batch:
    """Rows of one source.

    Attributes:
        columns: arrow arrays of one length: users, items and times, or in place of times days and
            times of day.
        places: where each row starts, in one or more parts; counted from 1.
        names: of the three columns, as the source writes them.
        unit: what `places` counts.
        file: name of the file, if the log has several.
    """

    columns: Columns
    places: Sequence[Sequence[int]]
    names: tuple[str, str, str]
    unit: Literal["line", "row"] = "line"
    file: str = ""

    def place_of(self, row: int) -> int:
        """Where a row of the batch, counted from 0, starts."""
        return next(islice(chain.from_iterable(self.places), row, None))


@dataclass(frozen=True)
class Collected:
    """What was seen of a log while it was read.

    Attributes:
        first_rows: user, item and time of the first rows, as the source has them.
        times: what the values of the time column are.
    """

    first_rows: list[tuple[str, str, str]]
    times: TimeKind


def collect_batches(
    batches: Iterable[Batch],
    limits: Limits,
    scratch: Path | None = None,
    time_format: str | None = None,
) -> tuple[Interactions, Collected]:
    """The whole log, and what was seen of it.

    Raises:
        LogError: a value that cannot be used, with its line or row and its column; too many rows,
            or none; a wrong `time_format`.
    """
    collector = Collector(limits, scratch, time_format)
    first_rows: list[tuple[str, str, str]] = []
    for batch in batches:
        users, items, *times = batch.columns
        time = times[0] if len(times) == 1 else joined(*times, as_written=bool(time_format))
        try:
            collector.add(users, items, time)
        except BadRowError as error:
            place, name = batch.place_of(error.row - collector.rows), batch.names[error.role]
            where = f"{batch.file}: " if batch.file else ""
            problem = f"{where}{batch.unit} {place}, column {name!r} {error.problem}"
            raise LogError(error.code, problem, line=place, column=name) from error
        if len(first_rows) < PREVIEW_ROWS:
            some = (each.slice(0, PREVIEW_ROWS - len(first_rows)) for each in (users, items, time))
            first_rows += zip(*map(texts_of, some), strict=True)
    return collector.finish(), Collected(first_rows, collector.times.kind or "number")
