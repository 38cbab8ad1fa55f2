"""The options that would read a text file whose columns were not found."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from td3engine.data.readers.resolution import seconds_of
from td3engine.data.readers.times import formats_of
from td3engine.data.types import ColumnNames, Dialect

SNIFFED_ROWS = 1000
SHOWN_DELIMITERS = ("\t", ",", ";", "|", "::")


@dataclass(frozen=True)
class _Column:
    """A column of the first rows.

    Attributes:
        values: of the first rows.
        time_format: what reads the values as times; empty: they are numbers or ISO dates; None:
            they are no times.
    """

    values: list[str]
    time_format: str | None

    @classmethod
    def of(cls, values: list[str]) -> "_Column":
        if all(seconds_of(value) is not None for value in values):
            return cls(values, "")
        return cls(values, next(iter(formats_of(values)), None))

    @property
    def may_be_ids(self) -> bool:
        """Whether these may be ids: no times, fractions or texts."""
        return self.time_format is None and not any(map(_is_no_id, self.values))


def reading_options(lines: Sequence[str], *, asked: ColumnNames, dialect: Dialect) -> str | None:
    """Options of the command line that would read a file; None where nothing is likely.

    Args:
        lines: the first lines of the file.
        asked: columns that are named already.
        dialect: what else is given already.
    """
    whole = [line for line in lines if line.strip()]
    delimiter = dialect.delimiter or _delimiter_of(whole)
    rows = [_fields(line, delimiter) for line in whole]
    width = len(rows[0]) if rows else 0
    rows = [row for row in rows if len(row) == width]
    if width < 3 or not rows:
        return None
    header = _header_of(rows, dialect)
    columns = [_Column.of([row[nth] for row in rows[bool(header) :]]) for nth in range(width)]
    times = [nth for nth, column in enumerate(columns) if column.time_format is not None]
    if not times or len(rows) <= bool(header):
        return None
    time = max(times, key=lambda nth: len(set(columns[nth].values)))
    ids = [nth for nth, column in enumerate(columns) if column.may_be_ids]
    if len(ids) < 2:
        return None
    names = header or [str(nth + 1) for nth in range(width)]
    chosen = {
        "user": asked.user or names[ids[0]],
        "item": asked.item or names[ids[1]],
        "time": asked.time or names[time],
    }
    options = [f"--columns {role}={shlex.quote(name)}" for role, name in chosen.items()]
    if delimiter in ("::", "blanks"):
        options.append(f"--delimiter {shlex.quote(delimiter)}")
    if columns[time].time_format and not dialect.time_format:
        options.append(f"--time-format {shlex.quote(columns[time].time_format or '')}")
    return " ".join(options)


def _delimiter_of(lines: Sequence[str]) -> str:
    """The delimiter that most lines have equally often."""
    first = lines[0] if lines else ""
    counts = {each: first.count(each) for each in SHOWN_DELIMITERS}
    even = {
        each: count
        for each, count in counts.items()
        if count and sum(line.count(each) == count for line in lines) > len(lines) / 2
    }
    return max(even, key=even.__getitem__) if even else "blanks"


def _fields(line: str, delimiter: str) -> list[str]:
    parts = line.split() if delimiter == "blanks" else line.split(delimiter)
    return [part.strip().strip('"') for part in parts]


def _header_of(rows: list[list[str]], dialect: Dialect) -> list[str] | None:
    """The first row, if it is a header: no number and no time is in it, and it names all."""
    if dialect.header is not None:
        return rows[0] if dialect.header else None
    told = any(_is_number(each) or seconds_of(each) is not None for each in rows[0])
    dated = any(formats_of([each]) for each in rows[0])
    return None if told or dated or len(set(rows[0])) < len(rows[0]) else rows[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_no_id(text: str) -> bool:
    """Whether this is a fraction, or several words."""
    return (
        not text or len(text.split()) > 1 or (_is_number(text) and not text.lstrip("-").isdigit())
    )
