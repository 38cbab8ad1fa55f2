"""The filter and the leave-one-out split (section 1 of the method)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from td3engine.config import DataConfig, Duplicates, MissingIds, Repeats, Ties
from td3engine.data.facts import (
    EVALUATED_FROM,
    LogFacts,
    SequenceFacts,
    facts_of,
    notes_of,
    removed_facts,
)
from td3engine.data.filtering import DroppedRows
from td3engine.data.repeats import repeats_among
from td3engine.data.types import Codes, Interactions, LogError, Times

Positions = NDArray[np.int64]


class SplitStatistics(BaseModel):
    """Counts after the filter, and how many interactions are for training.

    Attributes:
        repeat_share: of the training and validation events that have one of their user before them,
            the part whose item the user met before. No test event counts.
        duplicates: rows of the log that were dropped before the filter, because an earlier row has
            the same user, item and time.
        dropped_repeats: rows that were dropped because their user had met the item before
            (`data.repeats: first`).
        dropped_missing: rows that were dropped because an id looks like a missing value
            (`data.missing_ids: drop`).
        one_item_share, test_only_share: as `data.facts.LogFacts`, of what the filter leaves.
        removed_share, removed_user_share, removed_item_share: what went of interactions, users and
            items.
        equal_rows, tie_share, largest_user_share, missing_user_share, missing_item_share: of the
            whole log, `data.facts.LogFacts`.
        trained_until: time of the last training or validation event.
        columns: user, item and time column of the source, where it is known.
        other_times: columns that could be the time by their names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    users: int
    items: int
    interactions: int
    training_interactions: int
    evaluated_users: int
    repeat_share: float
    duplicates: int
    dropped_repeats: int = 0
    dropped_missing: int = 0
    one_item_share: float = 0.0
    test_only_share: float = 0.0
    removed_share: float | None = None
    removed_user_share: float | None = None
    removed_item_share: float | None = None
    equal_rows: int | None = None
    tie_share: float | None = None
    largest_user_share: float | None = None
    missing_user_share: float | None = None
    missing_item_share: float | None = None
    trained_until: int | float | None = None
    columns: str | None = None
    other_times: str | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """A filtered log, items re-indexed 0..n_items-1, cut by leave-one-out.

    Of a user with at least three events, the last is for testing, the one before it for validation,
    and the others for training. A user can have fewer: the single-pass filter counts on the raw log
    and then removes rare items. Such a user counts as a user, and trains with all of its events.

    Attributes:
        histories: int32[M], items of all users, user after user, each by time.
        offsets: int64[U+1]; user u's events are `histories[offsets[u]:offsets[u + 1]]`.
        times: int64[M], when each of `histories` happened, in the log's own unit.
        item_ids: the id of each item index.
        user_ids: the id of each user index.
        duplicates: rows of the log that were dropped as exact duplicates.
        dropped_repeats, dropped_missing: rows that were dropped by `data.repeats: first` and
            `data.missing_ids: drop`.
        source: the log that was filtered; None: statistics have nothing of it.
    """

    histories: Codes
    offsets: Positions
    times: Times
    item_ids: list[str]
    user_ids: Sequence[str]
    duplicates: int = 0
    dropped_repeats: int = 0
    dropped_missing: int = 0
    source: Interactions | None = None

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @cached_property
    def lengths(self) -> Positions:
        """int64[U]: events of each user."""
        return np.diff(self.offsets)

    @cached_property
    def evaluated(self) -> Positions:
        """int64[E]: users that have a validation and a test event, in order."""
        return np.flatnonzero(self.lengths >= EVALUATED_FROM)

    @cached_property
    def training_ends(self) -> Positions:
        """int64[U]: user u trains on `histories[offsets[u]:training_ends[u]]`."""
        held_out = np.where(self.lengths >= EVALUATED_FROM, 2, 0)
        return self.offsets[1:] - held_out

    @cached_property
    def validation_items(self) -> Codes:
        """int32[E]: for each of `evaluated`, the item to be ranked after its training events."""
        return self.histories[self.offsets[self.evaluated + 1] - 2]

    @cached_property
    def test_items(self) -> Codes:
        """int32[E]: for each of `evaluated`, the item to be ranked after all events before it."""
        return self.histories[self.offsets[self.evaluated + 1] - 1]

    @cached_property
    def repeats(self) -> NDArray[np.bool_]:
        """bool[M]: whether the user of each of `histories` met its item before."""
        return repeats_among(self.histories, self.offsets, self.n_items)

    @cached_property
    def repeat_share(self) -> float:
        """Share of repeats among each user's events but the first and the test event."""
        counts = np.ones(len(self.histories), bool)
        counts[self.offsets[:-1]] = False
        counts[self.offsets[self.evaluated + 1] - 1] = False
        return float(self.repeats[counts].mean()) if counts.any() else 0.0

    @property
    def trained_until(self) -> int | float:
        """Time of the last event that is not for testing."""
        known = np.ones(len(self.times), bool)
        known[self.offsets[self.evaluated + 1] - 1] = False
        latest: int | float = self.times[known].max().item()
        return latest

    @cached_property
    def sequence_facts(self) -> SequenceFacts:
        """What the histories are like."""
        return SequenceFacts.of(self.histories, self.times, self.offsets, self.n_items)

    @cached_property
    def source_facts(self) -> LogFacts | None:
        """What the log was like before the filter; None where it is not known."""
        return facts_of(self.source) if self.source is not None else None

    def notes(self) -> list[str]:
        """What is worth saying of the log; for people."""
        if self.source is None or self.source_facts is None:
            return []
        facts = self.source_facts.model_dump() | self._removed()
        facts["repeat_share"] = self.repeat_share
        facts["one_item_share"], facts["test_only_share"] = self._shares()
        if self.duplicates:  # another note says that they were dropped
            facts["equal_share"] = 0.0
        if self.dropped_missing:
            facts["missing_user_share"] = facts["missing_item_share"] = 0.0
        return notes_of(facts, self.source.reading)

    def _removed(self) -> dict[str, float]:
        assert self.source is not None
        return removed_facts(
            self.source,
            users=self.n_users,
            items=self.n_items,
            interactions=len(self.histories),
        )

    def _shares(self) -> tuple[float, float]:
        """Users of one item, and test targets that occur in nothing else."""
        found = self.sequence_facts
        return (
            found.one_item_users / max(1, found.users),
            found.test_only / max(1, found.tested),
        )

    def with_items(self, item_ids: list[str]) -> "Split":
        """The same split with its items numbered in this order, which has each of them once."""
        numbers = {item_id: number for number, item_id in enumerate(item_ids)}
        renumbered = np.array([numbers[each] for each in self.item_ids], np.int32)
        return replace(self, histories=renumbered[self.histories], item_ids=item_ids)

    def history(self, user: int) -> Codes:
        """int32[H]: all items of one user, by time."""
        return self.histories[self.offsets[user] : self.offsets[user + 1]]

    def training(self, user: int) -> Codes:
        """int32[H-2]: the items a user trains on (all of them if the user is not evaluated)."""
        return self.histories[self.offsets[user] : self.training_ends[user]]

    def statistics(self) -> SplitStatistics:
        """Counts of what is left."""
        return SplitStatistics(
            users=self.n_users,
            items=self.n_items,
            interactions=len(self.histories),
            training_interactions=int((self.training_ends - self.offsets[:-1]).sum()),
            evaluated_users=len(self.evaluated),
            repeat_share=self.repeat_share,
            duplicates=self.duplicates,
            dropped_repeats=self.dropped_repeats,
            dropped_missing=self.dropped_missing,
            trained_until=self.trained_until,
            **dict(zip(("one_item_share", "test_only_share"), self._shares(), strict=True)),
            **self._source_statistics(),
        )

    def _source_statistics(self) -> dict[str, Any]:
        """Of the log before the filter, by the names of `SplitStatistics`."""
        if self.source is None or self.source_facts is None:
            return {}
        names = {"equal_rows", "tie_share", "largest_user_share"}
        names |= {"missing_user_share", "missing_item_share"}
        removed = self._removed()
        del removed["catalogue"]
        statistics: dict[str, Any] = self.source_facts.model_dump(include=names) | removed
        if (reading := self.source.reading) is not None:
            statistics["columns"] = ", ".join(reading.columns)
            statistics["other_times"] = ", ".join(reading.other_times) or None
        return statistics


def split(
    log: Interactions,
    *,
    min_user_interactions: int,
    min_item_interactions: int,
    iterative_core: bool,
    duplicates: Duplicates = "auto",
    missing_ids: MissingIds = "keep",
    repeats: Repeats = "keep",
    ties: Ties = "file",
) -> Split:
    """Filters a log and indexes what is left.

    Rows that are no events go before anything is counted (`DroppedRows`). A row stays if its user
    and its item both have enough interactions *in the raw log* (one pass, both counted before
    anything goes: the reading that gives the paper's figures). With `iterative_core` this repeats
    on what is left until nothing changes. Rows of one user and time are ordered by `ties` first.

    Raises:
        LogError: `too_little_data` when no row is left, or no user has three events.
    """
    whole, log = log, tie_ordered(log, ties)
    users, items, times = log.user_codes, log.item_codes, log.times
    dropped = DroppedRows.of(log, duplicates, missing_ids, repeats)
    if dropped.rows.any():
        stays = ~dropped.rows
        users, items, times = users[stays], items[stays], times[stays]
    while True:
        enough_by_user = np.bincount(users, minlength=1)[users] >= min_user_interactions
        keep = enough_by_user & (np.bincount(items, minlength=1)[items] >= min_item_interactions)
        done = bool(keep.all())
        users, items, times = users[keep], items[keep], times[keep]
        if done or not iterative_core:
            break
    keep_users, lengths = np.unique(users, return_counts=True)
    kept_items, histories = np.unique(items, return_inverse=True)
    if not len(lengths) or lengths.max() < EVALUATED_FROM:
        left = f"{len(users):,} of {len(log.times):,} interactions are left"
        raise LogError(
            "too_little_data",
            f"{left} after the filter (users with at least {min_user_interactions} and items with "
            f"at least {min_item_interactions} interactions); no user has {EVALUATED_FROM} of them",
        )
    return Split(
        histories=histories.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        times=times,
        item_ids=[log.item_ids[code] for code in kept_items],
        user_ids=[log.user_ids[code] for code in keep_users],
        duplicates=dropped.duplicates,
        dropped_repeats=dropped.repeats,
        dropped_missing=dropped.missing,
        source=whole,
    )


def tie_ordered(log: Interactions, ties: Ties) -> Interactions:
    """The log with rows of one user and time in another order: random, or by item id.

    The random order is the same for every model of a log.
    """
    if ties == "file":
        return log
    keys: NDArray[Any]
    if ties == "random":
        keys = np.random.default_rng(0).random(len(log.times))
    else:
        order = sorted(range(len(log.item_ids)), key=lambda code: log.item_ids[code].encode())
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        keys = ranks[log.item_codes]
    rows = np.lexsort((keys, log.times, log.user_codes))
    return replace(log, item_codes=log.item_codes[rows], times=log.times[rows])


def split_log(log: Interactions, config: DataConfig) -> Split:
    """Filters and splits a log as configured.

    Raises:
        LogError: `too_little_data`, see `split`.
    """
    return split(
        log,
        min_user_interactions=config.min_user_interactions,
        min_item_interactions=config.min_item_interactions,
        iterative_core=config.iterative_core,
        duplicates=config.duplicates,
        missing_ids=config.missing_ids,
        repeats=config.repeats,
        ties=config.ties,
    )


def training_counts(split: Split) -> NDArray[np.int64]:
    """int64[n]: training interactions of each item."""
    steps = np.zeros(len(split.histories) + 1, np.int64)
    np.add.at(steps, split.offsets[:-1], 1)
    np.add.at(steps, split.training_ends, -1)
    trains = np.cumsum(steps[:-1]) > 0
    return np.bincount(split.histories[trains], minlength=split.n_items)
