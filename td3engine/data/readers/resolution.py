"""What the first values of a column tell about it as a time: its unit, and whether it is a day."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

DAY = 86_400
AGREEING = 0.9  # of the sampled rows, for two columns to say the same days
# Numbers that are moments since 1970 lie between 1973 and 2128, by their unit.
EARLIEST, LATEST = 1e8, 5e9
UNITS = (("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9))


def unit_of(smallest: float, largest: float) -> str | None:
    """What numbers between these count as times; None: nothing that can be told."""
    if smallest == int(smallest) and largest == int(largest):
        ends = (_written_day(int(smallest)), _written_day(int(largest)))
        if None not in ends:
            return "days written YYYYMMDD"
    for name, per_second in UNITS:
        if EARLIEST * per_second <= smallest and largest <= LATEST * per_second:
            return f"{name} since 1970"
    return None


def _written_day(number: int) -> date | None:
    try:
        return date(number // 10_000, number // 100 % 100, number % 100)
    except (ValueError, OverflowError):
        return None


def seconds_of(text: str) -> float | None:
    """Seconds since 1970 that a text most likely means; None if it is no absolute time."""
    try:
        number = float(text)
    except ValueError:
        return _iso_seconds(text)
    if not EARLIEST / 100 <= number <= LATEST * 10**9:
        return None
    if len(text.strip()) == 8 and (day := _written_day(int(number))):
        return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
    for _, per_second in UNITS:
        if EARLIEST * per_second <= number <= LATEST * per_second:
            return number / per_second
    return None


def _iso_seconds(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True)
class SampledTime:
    """The first values of a column.

    Attributes:
        seconds: what each most likely means.
        distinct: how many different values there are.
    """

    seconds: list[float | None]
    distinct: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> "SampledTime":
        """Of the values as text."""
        return cls([seconds_of(text) for text in texts], len(set(texts)))

    @property
    def are_days(self) -> bool:
        """Whether all values are days without a time of day."""
        return bool(self.seconds) and all(
            value is not None and value % DAY == 0 for value in self.seconds
        )

    def refines(self, coarse: "SampledTime") -> bool:
        """Whether these are moments of the days of `coarse` (in whatever zone), more of them."""
        if not coarse.are_days or self.are_days or self.distinct <= coarse.distinct:
            return False
        pairs = zip(self.seconds, coarse.seconds, strict=True)
        same = sum(
            fine is not None and day is not None and -DAY <= fine - day < 2 * DAY
            for fine, day in pairs
        )
        return same >= AGREEING * len(self.seconds)
