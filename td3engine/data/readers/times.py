"""Times that are written as people write them: by a format, or as a day and a time of day.

A format has strptime's directives. They become one regular expression, which arrow applies to whole
columns: Python's strptime takes ten microseconds a value, and knows the months of one locale.
"""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TWO = r"\d{1,2}"
_MONTH = "(?i:" + "|".join(f"{month}[a-z]*" for month in _MONTHS) + ")"
# What each directive matches, and which part of a time it is. %h is %b; %e is %d.
_DIRECTIVES = {
    "Y": ("year", r"\d{4}"), "y": ("short_year", r"\d{2}"),
    "m": ("month", _TWO), "b": ("month_name", _MONTH), "B": ("month_name", _MONTH),
    "h": ("month_name", _MONTH), "d": ("day", _TWO), "e": ("day", _TWO),
    "H": ("hour", _TWO), "I": ("hour12", _TWO), "p": ("half", r"(?i:[ap]\.?m\.?)"),
    "M": ("minute", _TWO), "S": ("second", _TWO), "f": ("fraction", r"\d{1,9}"),
    "z": ("zone", r"(?:Z|UTC|GMT|[+-]\d{2}:?\d{2})"), "Z": ("zone", r"(?:Z|UTC|GMT)"),
    "a": (None, "[A-Za-z]+"), "A": (None, "[A-Za-z]+"),
}  # fmt: skip
_SHORTHANDS = {"T": "%H:%M:%S", "R": "%H:%M", "F": "%Y-%m-%d", "D": "%m/%d/%y"}
# What public logs have, for refusals that name the option that would read a file.
KNOWN_FORMATS = (
    "%a %b %d %H:%M:%S %z %Y",
    "%m/%d/%Y %I:%M:%S %p",
    "%d/%m/%Y %I:%M:%S %p",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%a, %d %b %Y %H:%M:%S %z",
    "%a %b %d %H:%M:%S %Y",
    "%d/%b/%Y:%H:%M:%S %z",
    "%d %b %Y %H:%M:%S",
    "%d %b %Y",
    "%b %d, %Y",
    "%d-%b-%y",
)
_JOINED = (
    # Eight digits are a day; three or four a time of day, five or six one with seconds. An hour
    # has lost its zero where the column was one of numbers.
    (r"^(\d{4})(\d{2})(\d{2}) ", r"\1-\2-\3 "),
    (r" (\d{2}:?\d{2}(:?\d{2})?)$", r" \1"),
    (r" (\d)$", r" 000\1"),
    (r" (\d\d)$", r" 00\1"),
    (r" (\d{3}|\d{5})$", r" 0\1"),
    (r" (\d):", r" 0\1:"),
    (r" (\d{2})(\d{2})$", r" \1:\2:00"),
    (r" (\d{2})(\d{2})(\d{2})$", r" \1:\2:\3"),
)


class TimeFormat:
    """How times are written, in strptime's directives.

    Args:
        written: e.g. `%d/%m/%Y %H:%M`.

    Raises:
        ValueError: an unknown directive, one that occurs twice, or no year, month and day.
    """

    def __init__(self, written: str) -> None:
        self.written = written
        for short, long in _SHORTHANDS.items():
            written = written.replace(f"%{short}", long)
        parts: list[str] = []
        pattern = ""
        for piece in re.findall(r"%.?|\s+|[^%\s]+", written):
            if piece == "%%":
                pattern += "%"
            elif piece.startswith("%"):
                if piece[1:] not in _DIRECTIVES:
                    raise ValueError(f"there is no directive {piece!r} in {self.written!r}")
                part, matched = _DIRECTIVES[piece[1:]]
                pattern += f"(?P<{part}>{matched})" if part else matched
                parts += [part] if part else []
            else:
                pattern += r"\s+" if piece.isspace() else re.escape(piece)
        if len(set(parts)) < len(parts):
            raise ValueError(f"a directive occurs twice in {self.written!r}")
        years, months = {"year", "short_year"}, {"month", "month_name"}
        if not (years & set(parts) and months & set(parts) and "day" in parts):
            raise ValueError(f"{self.written!r} must have a year, a month and a day")
        if ("hour12" in parts) != ("half" in parts):
            raise ValueError(f"{self.written!r} must have %I and %p together")
        self._pattern = f"^{pattern}$"

    def read(self, texts: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Microseconds since 1970 in UTC, int64[N], and whether each text is such a time, bool[N].

        Args:
            texts: arrow array of text, without nulls or blanks around.
        """
        found = pc.extract_regex(texts, self._pattern)
        good = found.is_valid().to_numpy(zero_copy_only=False).copy()
        fields = {
            field.name: pc.fill_null(part, "").cast(pa.string())
            for field, part in zip(found.type, found.flatten(), strict=True)
        }
        months, days = _month_of(fields), _number(fields, "day", 1)
        year = _number(fields, "year", 1970)
        if "short_year" in fields:
            short = _number(fields, "short_year", 70)
            year = np.where(short < 69, 2000, 1900) + short  # as POSIX has it
        hours, minutes = _hour_of(fields, good), _number(fields, "minute", 0)
        seconds = _number(fields, "second", 0)
        good &= (months >= 1) & (months <= 12) & (minutes < 60) & (seconds < 61) & (hours < 24)
        month = ((year - 1970) * 12 + np.where(good, months, 1) - 1).astype("M8[M]")
        day = month.astype("M8[D]") + (days - 1)
        good &= (days >= 1) & (day.astype("M8[M]") == month)
        total = (day.astype(np.int64) * 24 + hours) * 60 + minutes - _zone_minutes(fields)
        ticks: NDArray[np.int64] = (total * 60 + seconds) * 10**6 + _microseconds(fields)
        return ticks, good


def formats_of(texts: list[str]) -> list[str]:
    """The known formats that read all of these texts."""
    column = pc.utf8_trim_whitespace(pa.array(texts, pa.string()))
    return [each for each in KNOWN_FORMATS if texts and TimeFormat(each).read(column)[1].all()]


def joined(day: Any, clock: Any, *, as_written: bool = False) -> Any:
    """A column of days and one of times of day as one column of text.

    Days may be `20220408`, times of day `2100` or `905`: they become `2022-04-08 21:00:00`.

    Args:
        day, clock: arrow arrays of one length, of any type that casts to text.
        as_written: only put a blank between them.

    Returns:
        Text; null where either is.
    """
    days, clocks = (pc.utf8_trim_whitespace(_plain_text(column)) for column in (day, clock))
    if as_written:
        return pc.binary_join_element_wise(days, clocks, " ")
    # A day that is a moment at midnight has a time of day of its own, which says nothing.
    days = pc.replace_substring_regex(days, r"[ T]00:00(:00(\.0+)?)?Z?$", "")
    whole = pc.binary_join_element_wise(days, clocks, " ")
    for pattern, replacement in _JOINED:
        whole = pc.replace_substring_regex(whole, pattern, replacement)
    return whole


def _plain_text(column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string())


def _number(fields: dict[str, Any], name: str, absent: int) -> Any:
    if name not in fields:
        return absent
    texts = fields[name]
    numbers = pc.if_else(pc.equal(texts, ""), str(absent), texts).cast(pa.int64())
    return numbers.to_numpy(zero_copy_only=False)


def _month_of(fields: dict[str, Any]) -> Any:
    if "month_name" not in fields:
        return _number(fields, "month", 1)
    names = pc.utf8_lower(pc.utf8_slice_codeunits(fields["month_name"], 0, 3))
    return pc.index_in(names, pa.array(_MONTHS)).fill_null(0).to_numpy(zero_copy_only=False) + 1


def _hour_of(fields: dict[str, Any], good: NDArray[np.bool_]) -> Any:
    if "hour12" not in fields:
        return _number(fields, "hour", 0)
    hours = _number(fields, "hour12", 12)
    good &= (hours >= 1) & (hours <= 12)
    after_noon = pc.starts_with(pc.utf8_lower(fields["half"]), "p")
    return hours % 12 + 12 * after_noon.to_numpy(zero_copy_only=False)


def _zone_minutes(fields: dict[str, Any]) -> Any:
    """How far each time is ahead of UTC."""
    if "zone" not in fields:
        return 0
    zones = pc.replace_substring(fields["zone"], ":", "")
    zones = pc.if_else(pc.match_substring_regex(zones, r"^[+-]"), zones, "+0000")
    part = {
        name: pc.utf8_slice_codeunits(zones, first, first + 2).cast(pa.int64())
        for name, first in (("hours", 1), ("minutes", 3))
    }
    ahead = part["hours"].to_numpy() * 60 + part["minutes"].to_numpy()
    return np.where(pc.starts_with(zones, "-").to_numpy(zero_copy_only=False), -ahead, ahead)


def _microseconds(fields: dict[str, Any]) -> Any:
    if "fraction" not in fields:
        return 0
    padded = pc.utf8_rpad(fields["fraction"], 6, "0")
    return pc.utf8_slice_codeunits(padded, 0, 6).cast(pa.int64()).to_numpy(zero_copy_only=False)
