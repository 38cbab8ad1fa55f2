"""What a log is like, where that changes what its figures mean; and the note that says so.

`NOTES` is the table of all facts that are worth a warning, with their thresholds. Upload, `td3
check`, a run's events and the manifest's statistics all go by it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from td3engine.data.missing import looks_missing
from td3engine.data.repeats import (
    ROWS_AT_ONCE,
    blocks_of_users,
    duplicate_rows,
    occurred_before,
    offsets_of_users,
)
from td3engine.data.types import Codes, Interactions, Reading, Times

Positions = NDArray[np.int64]
# Train, validation, test: a user with fewer events cannot be evaluated.
EVALUATED_FROM = 3
LARGEST_K = 20  # of HR@k and its kin
_WHOLE_WITH_FRACTION = re.compile(r"\d+\.0+")


class LogFacts(BaseModel):
    """What a log is like, unfiltered. Shares are from 0 to 1."""

    model_config = ConfigDict(extra="forbid")

    equal_rows: int = Field(description="Rows with the user, item and time of an earlier row.")
    equal_share: float = Field(description="`equal_rows` as a share of all rows.")
    tie_share: float = Field(
        description="Share of rows at one time of their user with a row of another item: the "
        "source's order decides which is first."
    )
    repeat_share: float = Field(
        description="Share of rows whose user met the item before, among those that are not the "
        "first of their user; equal rows left out."
    )
    largest_user_share: float = Field(description="Share of rows that are of one user.")
    largest_user_excess: float = Field(
        description="`largest_user_share` as a multiple of an even share."
    )
    one_item_share: float = Field(
        description="Share of users with several rows, all of which have one item."
    )
    test_only_share: float = Field(
        description="Share of users' last events (of those with three and more) whose item occurs "
        "in nothing but such events: no model can know it."
    )
    missing_user_share: float = Field(
        description="Share of rows whose user id looks like a missing value: `NA`, `null`."
    )
    missing_item_share: float = Field(description="The same of item ids.")
    fraction_user_share: float = Field(description="Share of user ids written like `123.0`.")
    fraction_item_share: float = Field(description="The same of item ids.")


@dataclass(frozen=True)
class SequenceFacts:
    """What histories are like.

    Attributes:
        ties, repeats, one_item_users, test_only: counts, as `LogFacts` has shares.
        later, users, tested: what they are shares of: events that are not their user's first,
            users with several events, and users with a test event.
    """

    ties: int
    repeats: int
    one_item_users: int
    test_only: int
    later: int
    users: int
    tested: int

    @classmethod
    def of(cls, items: Codes, times: Times, offsets: Positions, n_items: int) -> "SequenceFacts":
        """Of all users, some of them at a time.

        Args:
            items: int32[M], of all users, user after user, each by time.
            times: of the same events.
            offsets: int64[U+1], where each user's events begin.
            n_items: how many items there are.
        """
        ties = repeats = one_item = 0
        for rows, owner in blocks_of_users(offsets):
            some, moments = items[rows], times[rows]
            new = np.append(True, (owner[1:] != owner[:-1]) | (moments[1:] != moments[:-1]))
            ties += int(_size_of_mixed(some, np.flatnonzero(new)).sum())
            repeats += int(np.count_nonzero(occurred_before(owner * n_items + some)))
            starts = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
            sizes = np.diff(np.append(starts, len(some)))
            one_item += int(np.count_nonzero(_size_of_mixed(some, starts)[sizes > 1] == 0))
        lengths = np.diff(offsets)
        tested = offsets[1:][lengths >= EVALUATED_FROM] - 1
        return cls(
            ties=ties,
            repeats=repeats,
            one_item_users=one_item,
            test_only=_only_in(items, tested, n_items),
            later=int(len(items) - np.count_nonzero(lengths)),
            users=int(np.count_nonzero(lengths > 1)),
            tested=len(tested),
        )


def _size_of_mixed(items: Codes, starts: Positions) -> Positions:
    """int64[G]: of each group of neighbours its size, or 0 where all of it is one item."""
    sizes = np.diff(np.append(starts, len(items)))
    mixed = np.minimum.reduceat(items, starts) < np.maximum.reduceat(items, starts)
    return np.where(mixed, sizes, 0)


def _only_in(items: Codes, rows: Positions, n_items: int) -> int:
    """How many of these rows have an item that no other row has."""
    counts = np.zeros(n_items, np.int64)
    for first in range(0, len(items), ROWS_AT_ONCE):
        counts += np.bincount(items[first : first + ROWS_AT_ONCE], minlength=n_items)
    chosen = np.bincount(items[rows], minlength=n_items)
    return int(chosen[chosen == counts].sum())


def facts_of(log: Interactions) -> LogFacts:
    """What a log is like (which has at least one row)."""
    offsets = offsets_of_users(log)
    lengths = np.diff(offsets)
    per_item = np.zeros(len(log.item_ids), np.int64)
    for first in range(0, len(log.times), ROWS_AT_ONCE):
        some = log.item_codes[first : first + ROWS_AT_ONCE]
        per_item += np.bincount(some, minlength=len(per_item))
    found = SequenceFacts.of(log.item_codes, log.times, offsets, len(log.item_ids))
    rows, equal = len(log.times), int(np.count_nonzero(duplicate_rows(log)))
    largest = float(lengths.max() / rows)
    return LogFacts(
        equal_rows=equal,
        equal_share=equal / rows,
        tie_share=found.ties / rows,
        repeat_share=_share(found.repeats - equal, found.later - equal),
        largest_user_share=largest,
        largest_user_excess=largest * len(lengths),
        one_item_share=_share(found.one_item_users, found.users),
        test_only_share=_share(found.test_only, found.tested),
        missing_user_share=float(lengths[looks_missing(log.user_ids)].sum() / rows),
        missing_item_share=float(per_item[looks_missing(log.item_ids)].sum() / rows),
        fraction_user_share=_fraction_share(log.user_ids),
        fraction_item_share=_fraction_share(log.item_ids),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _fraction_share(ids: Sequence[str]) -> float:
    return sum(_WHOLE_WITH_FRACTION.fullmatch(each) is not None for each in ids) / len(ids)


@dataclass(frozen=True)
class Note:
    """A fact that is worth saying.

    Attributes:
        fact: its name; notes on a fact that is not known are left out.
        least: from which value on; of `catalogue`, up to which.
        text: with the names of facts in braces.
        only_if: another fact that must be at least so large.
    """

    fact: str
    least: float
    text: str
    only_if: tuple[str, float] = ("", 0.0)

    def applies(self, facts: Mapping[str, float]) -> bool:
        """Whether it is worth saying."""
        name, least = self.only_if
        if name and facts.get(name, 0.0) < least:
            return False
        value = facts.get(self.fact)
        if value is None:
            return False
        return 0 < value <= self.least if self.fact == "catalogue" else value >= self.least


NOTES: tuple[Note, ...] = (
    Note(
        "equal_share", 0.001,
        "{equal_share:.1%} of rows have the user, item and time of an earlier row "
        "(data.duplicates: drop leaves them out, keep counts them, auto drops a tenth or more)",
    ),
    Note(
        "tie_share", 0.05,
        "{tie_share:.0%} of rows share their time with another item of their user: the order of "
        "the file decides which is later, and so what is asked on test (data.ties: random or item "
        "order them otherwise)",
    ),
    Note(
        "repeat_share", 0.05,
        "{repeat_share:.0%} of events repeat an item of their user: mind which protocol figures "
        "are of (docs/protocols.md; data.repeats: first keeps first events only)",
    ),
    Note(
        "largest_user_share", 0.1,
        "one user has {largest_user_share:.0%} of the rows: is it a user, or rows without one?",
        only_if=("largest_user_excess", 2.0),
    ),
    Note(
        "missing_user_share", 1e-9,
        "{missing_user_share:.1%} of rows have a user id such as NA, null or unknown "
        "(data.missing_ids: drop leaves them out)",
    ),
    Note(
        "missing_item_share", 1e-9,
        "{missing_item_share:.1%} of rows have an item id such as NA, null or unknown "
        "(data.missing_ids: drop leaves them out)",
    ),
    Note(
        "fraction_user_share", 0.5,
        "{fraction_user_share:.0%} of user ids are written like 123.0: a column of whole numbers "
        "with gaps became one of floats; elsewhere the same ids may be 123",
    ),
    Note(
        "fraction_item_share", 0.5,
        "{fraction_item_share:.0%} of item ids are written like 123.0: a column of whole numbers "
        "with gaps became one of floats; elsewhere the same ids may be 123",
    ),
    Note(
        "removed_share", 0.2,
        "the filter removes {removed_share:.0%} of interactions, {removed_user_share:.0%} of users "
        "and {removed_item_share:.0%} of items (data.min_user_interactions and "
        "data.min_item_interactions)",
    ),
    Note(
        "removed_user_share", 0.5,
        "the filter removes {removed_user_share:.0%} of users: figures are of those who stay",
    ),
    Note(
        "test_only_share", 0.05,
        "{test_only_share:.0%} of test targets are items that occur in no other event: no model "
        "can know them",
    ),
    Note(
        "one_item_share", 0.05,
        "{one_item_share:.0%} of users have one item only, again and again",
    ),
    Note(
        "catalogue", LARGEST_K,
        "{catalogue:.0f} items are left: figures at k = 20 count all of them as found",
    ),
)  # fmt: skip


def notes_of(facts: Mapping[str, float], reading: Reading | None = None) -> list[str]:
    """What is worth saying of a log; for people.

    Args:
        facts: by the names that `NOTES` has; others are ignored.
        reading: how the log was read.
    """
    notes = []
    if reading is not None and reading.other_times:
        others = ", ".join(map(repr, reading.other_times))
        notes.append(
            f"the time is column {reading.columns[2]!r} ({reading.time_reason}); by their names "
            f"these could be it too: {others} (--columns time=NAME)"
        )
    said = {note.fact: note for note in NOTES if note.applies(facts)}
    if "removed_share" in said:
        said.pop("removed_user_share", None)  # the other says it
    return notes + [note.text.format_map(facts) for note in said.values()]


def removed_facts(
    log: Interactions, *, users: int, items: int, interactions: int
) -> dict[str, float]:
    """What a filter takes from a log, as shares, and the catalogue that it leaves.

    Args:
        log: before the filter.
        users, items, interactions: how many are left.
    """
    return {
        "removed_share": 1 - interactions / len(log.times),
        "removed_user_share": 1 - users / len(log.user_ids),
        "removed_item_share": 1 - items / len(log.item_ids),
        "catalogue": float(items),
    }
