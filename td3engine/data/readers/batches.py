"""Batches of rows that know where in their source they lie."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from td3engine.data.readers.collect import Collector
from td3engine.data.readers.values import BadRowError
from td3engine.data.types import Interactions, Limits, LogError

# Arrow arrays of users, items and times of the same rows.
Columns: TypeAlias = tuple[Any, Any, Any]


@dataclass
class Batch:
    """Rows of one source.

    Attributes:
        columns: three arrow arrays of one length.
        places: where each row starts, in one or more parts; counted from 1.
        names: of the three columns, as the source writes them.
        unit: what `places` counts.
    """

    columns: Columns
    places: Sequence[Sequence[int]]
    names: tuple[str, str, str]
    unit: Literal["line", "row"] = "line"

    def place_of(self, row: int) -> int:
        """Where a row of the batch, counted from 0, starts."""
        return next(islice(chain.from_iterable(self.places), row, None))


def collect_batches(
    batches: Iterable[Batch], limits: Limits, scratch: Path | None
) -> tuple[Interactions, int]:
    """The whole log, and how many rows its source has.

    Raises:
        LogError: a value that cannot be used, with its line or row and its column; too many rows,
            or none.
    """
    collector = Collector(limits, scratch)
    for batch in batches:
        try:
            collector.add(*batch.columns)
        except BadRowError as error:
            place, name = batch.place_of(error.row - collector.rows), batch.names[error.role]
            problem = f"{batch.unit} {place}, column {name!r} {error.problem}"
            raise LogError(error.code, problem, line=place, column=name) from error
    return collector.finish(), collector.rows
