"""Finding the user, item and time columns among a file's column names."""

from dataclasses import dataclass

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
        "date", "event_time", "created_at", "rated_at", "interaction_time",
    ),
}  # fmt: skip
RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True)
class ColumnRoles:
    """Positions of the three columns, and their names for messages."""

    positions: tuple[int, int, int]
    names: tuple[str, str, str]

    def narrowed(self) -> "ColumnRoles":
        """The same columns, where only they are left, in the order user, item, time."""
        return ColumnRoles((0, 1, 2), self.names)


def find_columns(
    header: list[str], requested: ColumnNames, limits: Limits, *, line: int | None = None
) -> ColumnRoles:
    """Positions of user, item and time in a header.

    Args:
        header: names of all columns.
        requested: names that the caller chose.
        limits: of the log.
        line: of the header, for messages; None if it lies on no line.

    Raises:
        LogError: `too_many_columns`, `missing_column`, or `duplicate_column` (a name that occurs
            twice, or one column meant for two things).
    """
    if len(header) > limits.max_columns:
        raise LogError(
            "too_many_columns",
            f"there are {len(header):,} columns; at most {limits.max_columns:,} are allowed",
            line=line,
        )
    names = [_plain_name(raw) for raw in header]
    _refuse_duplicates(names, line)
    by_role = (("user", requested.user), ("item", requested.item), ("time", requested.time))
    positions = [_find(role, name, header, names, line) for role, name in by_role]
    if len(set(positions)) < 3:
        raise LogError(
            "duplicate_column", "user, item and time must be three different columns", line=line
        )
    user, item, time = positions
    return ColumnRoles((user, item, time), (names[user], names[item], names[time]))


def _find(
    role: str, requested: str | None, header: list[str], names: list[str], line: int | None
) -> int:
    if requested is not None:
        # RecBole's `name:type` may be requested with or without its type.
        for candidates in (names, header):
            if requested in candidates:
                return candidates.index(requested)
        raise _missing(role, f"a column named {requested!r}", names, line)
    simple = [_simplify(name) for name in names]
    for usual in USUAL_NAMES[role]:
        hits = [position for position, name in enumerate(simple) if name == _simplify(usual)]
        if len(hits) > 1:
            twins = " and ".join(repr(names[hit]) for hit in hits)
            raise LogError(
                "duplicate_column",
                f"columns {twins} could both be the {role}; say which one",
                line=line,
                column=names[hits[0]],
            )
        if hits:
            return hits[0]
    raise _missing(role, "any of " + ", ".join(USUAL_NAMES[role]), names, line)


def _missing(role: str, target: str, names: list[str], line: int | None) -> LogError:
    shown = ", ".join(repr(name[:60]) for name in names[:20]) + (", …" if len(names) > 20 else "")
    return LogError(
        "missing_column",
        f"no {role} column: looked for {target} among {shown or 'no columns'}",
        line=line,
        column=role,
    )


def _refuse_duplicates(names: list[str], line: int | None) -> None:
    seen: set[str] = set()
    for name in names:
        # A column without a name (an index that pandas wrote) cannot be requested.
        if name and name in seen:
            shown = name[:60]
            problem = f"column {shown!r} occurs twice"
            raise LogError("duplicate_column", problem, line=line, column=shown)
        seen.add(name)


def _plain_name(raw: str) -> str:
    name, colon, kind = raw.strip().rpartition(":")
    return name if colon and kind in RECBOLE_TYPES else raw.strip()


def _simplify(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")
