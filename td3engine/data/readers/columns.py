"""Finding the user, item and time columns among a file's column names."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from td3engine.data.readers.resolution import SampledTime
from td3engine.data.types import ColumnNames, Limits, LogError

# The usual names, the more telling first: a file with `user` and `user_id` means `user_id`.
# Compared in lower case and without `_`, `-` and blanks: `userId` and `User ID` are `user_id`.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "user": (
        "user_id", "user", "uid", "reviewer_id", "customer_id", "visitor_id", "session_id",
        "username", "user_index", "user_idx",
    ),
    "item": (
        "item_id", "item", "iid", "asin", "parent_asin", "movie_id", "product_id", "book_id",
        "business_id", "track_id", "artist_id", "song_id", "video_id", "article_id", "news_id",
        "game_id", "app_id", "poi_id", "item_index", "item_idx",
    ),
    "time": (
        "timestamp", "time", "ts", "unix_review_time", "unix_time", "datetime", "date_time",
        "date", "event_time", "created_at", "rated_at", "interaction_time", "time_ms",
        "timestamp_ms", "event_timestamp", "event_date",
    ),
}  # fmt: skip
RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_TIME_WORD = re.compile(r"^(time|date|ts$)|(time|date|timestamp)$")

Sample = Callable[[Sequence[int]], list[list[str]]]
"""The first values of columns, by position, as text; for telling a day from a time."""


@dataclass(frozen=True)
class ColumnRoles:
    """Which columns are user, item and time.

    Attributes:
        positions: of user, item and time; of a time in two columns, day and time of day; of items
            in lists without times, user and item only.
        names: of user, item and time, for messages.
        time_reason: why this column is the time.
        other_times: names of columns that could be the time as well.
    """

    positions: tuple[int, ...]
    names: tuple[str, str, str]
    time_reason: str = "asked for"
    other_times: tuple[str, ...] = ()

    def narrowed(self) -> "ColumnRoles":
        """The same columns, where only they are left, in this order."""
        positions = tuple(range(len(self.positions)))
        return ColumnRoles(positions, self.names, self.time_reason, self.other_times)


def find_columns(
    header: list[str],
    requested: ColumnNames,
    limits: Limits,
    *,
    line: int | None = None,
    sample: Sample | None = None,
    lists: Collection[int] = (),
) -> ColumnRoles:
    """Positions of user, item and time in a header.

    Args:
        header: names of all columns.
        requested: names, or positions from 1, that the caller chose.
        limits: of the log.
        line: of the header, for messages; None if it lies on no line.
        sample: gives first values; None: the time is found by names alone.
        lists: positions of columns of lists. Where items are one, so are times, or the order of
            the list stands for them.

    Raises:
        LogError: `too_many_columns`, `missing_column`, or `duplicate_column` (a needed name that
            occurs twice, or one column meant for two things).
    """
    if len(header) > limits.max_columns:
        raise LogError(
            "too_many_columns",
            f"there are {len(header):,} columns; at most {limits.max_columns:,} are allowed",
            line=line,
        )
    found = _Header(header, [_plain_name(raw) for raw in header], line)
    user = found.position("user", requested.user)
    item = found.position("item", requested.item)
    times: tuple[int, ...]
    reason, others = "asked for", [each for each in found.times() if each not in (user, item)]
    if item in lists:
        others = [each for each in others if each in lists]
    if requested.time is None and not others and item in lists:
        times, name, reason = (), "position", "the order of each list, as no column has a time"
    elif requested.time is None:
        chosen, reason = found.time(others, sample)
        times, name = (chosen,), found.names[chosen]
    else:
        times = found.requested_times(requested.time)
        name = "+".join(found.names[position] for position in times)
    if len({user, item, *times}) < 2 + len(times):
        raise LogError(
            "duplicate_column", "user, item and time must be three different columns", line=line
        )
    rest = tuple(found.names[position] for position in others if position not in times)
    names = (found.names[user], found.names[item], name)
    return ColumnRoles((user, item, *times), names, reason, rest)


def is_time_name(name: str) -> bool:
    """Whether a column of this name could be a time, such as `play_time` or `eventDate`."""
    usual = {_simplify(each) for each in USUAL_NAMES["time"]}
    words = (word.lower() for word in _WORDS.findall(name))
    return _simplify(name) in usual or any(_TIME_WORD.search(word) for word in words)


@dataclass(frozen=True)
class _Header:
    """Column names, as they are written and without RecBole's types."""

    raw: list[str]
    names: list[str]
    line: int | None

    def position(self, role: str, requested: str | None) -> int:
        return self._usual(role) if requested is None else self._requested(role, requested)

    def requested_times(self, requested: str) -> tuple[int, ...]:
        """One column, or the two of `date+clock`."""
        day, plus, clock = requested.partition("+")
        if requested in (*self.names, *self.raw) or not (plus and day and clock):
            return (self._requested("time", requested),)
        return self._requested("time", day), self._requested("time", clock)

    def times(self) -> list[int]:
        """Columns that could be the time by their names: the usual ones first."""
        named = [nth for nth, name in enumerate(self.names) if is_time_name(name)]
        simple = [_simplify(each) for each in USUAL_NAMES["time"]]
        ranks = {name: rank for rank, name in enumerate(simple)}
        return sorted(named, key=lambda nth: ranks.get(_simplify(self.names[nth]), len(ranks)))

    def time(self, candidates: list[int], sample: Sample | None) -> tuple[int, str]:
        """The time column and why it is: the first by its name, or one that says the same finer."""
        preferred = self._usual("time")
        rest = [position for position in candidates if position != preferred]
        if rest and sample is not None:
            values = sample([preferred, *rest])
            day, *finer = (SampledTime.of(each) for each in values)
            better = [
                (-each.distinct, nth)
                for nth, each in zip(rest, finer, strict=True)
                if each.refines(day)
            ]
            if better:
                says = f"it says the same days as {self.names[preferred]!r}, and more"
                return min(better)[1], says
        return preferred, "the first of the usual names"

    def _requested(self, role: str, requested: str) -> int:
        # RecBole's `name:type` may be requested with or without its type.
        for candidates in (self.names, self.raw):
            if requested in candidates:
                return self._only(role, candidates.index(requested))
        if requested.isdecimal() and 1 <= int(requested) <= len(self.names):
            return int(requested) - 1
        if requested.isdecimal():
            raise self._missing(role, f"column {requested} of {len(self.names)}")
        raise self._missing(role, f"a column named {requested!r}")

    def _usual(self, role: str) -> int:
        simple = [_simplify(name) for name in self.names]
        for usual in USUAL_NAMES[role]:
            hits = [nth for nth, name in enumerate(simple) if name == _simplify(usual)]
            if hits:
                return self._only(role, hits[0], hits)
        raise self._missing(role, "any of " + ", ".join(USUAL_NAMES[role]))

    def _only(self, role: str, position: int, hits: list[int] | None = None) -> int:
        """The position, where no other column could be meant."""
        name = self.names[position]
        if hits is None:
            hits = [nth for nth, each in enumerate(self.names) if each == name]
        if len(hits) == 1:
            return position
        twins = dict.fromkeys(self.names[hit][:60] for hit in hits)
        shown = " and ".join(map(repr, twins))
        problem = (
            f"columns {shown} could both be the {role}; say which one"
            if len(twins) > 1
            else f"column {shown} occurs twice"
        )
        raise LogError("duplicate_column", problem, line=self.line, column=name[:60])

    def _missing(self, role: str, target: str) -> LogError:
        shown = ", ".join(repr(name[:60]) for name in self.names[:20])
        shown += ", …" if len(self.names) > 20 else ""
        return LogError(
            "missing_column",
            f"no {role} column: looked for {target} among {shown or 'no columns'}",
            line=self.line,
            column=role,
        )


def _plain_name(raw: str) -> str:
    name, colon, kind = raw.strip().rpartition(":")
    return name if colon and kind in RECBOLE_TYPES else raw.strip()


def _simplify(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")
