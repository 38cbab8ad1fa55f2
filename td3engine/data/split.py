"""The filter and the leave-one-out split (section 1 of the method)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from td3engine.config import DUPLICATES_FROM, DataConfig, Duplicates
from td3engine.data.repeats import ROWS_AT_ONCE, duplicate_rows, repeats
from td3engine.data.types import Codes, Interactions, LogError, Times

Positions = NDArray[np.int64]
# Train, validation, test: a user with fewer events cannot be evaluated.
EVALUATED_FROM = 3


class SplitStatistics(BaseModel):
    """Counts after the filter, and how many interactions are for training.

    Attributes:
        repeat_share: of the training and validation events that have one of their user before them,
            the part whose item the user met before. No test event counts.
        duplicates: rows of the log that were dropped before the filter, because an earlier row has
            the same user, item and time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    users: int
    items: int
    interactions: int
    training_interactions: int
    evaluated_users: int
    repeat_share: float
    duplicates: int


class FilterStatistics(BaseModel):
    """What a filter keeps of a log, and what it removes and why.

    Rows with the user, item and time of an earlier row go first, if they go: then no other count
    has them. An interaction is removed because its user or its item has too few of them. One that
    is removed for both reasons counts for both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_user_interactions: int
    min_item_interactions: int
    users: int
    items: int
    interactions: int
    rare_users: int
    rare_items: int
    interactions_of_rare_users: int
    interactions_of_rare_items: int
    duplicates: int | None = Field(
        default=None,
        description="Rows with the user, item and time of an earlier one, which go before the "
        "filter counts. Null if an older release normalised the log: it counted them like "
        "others.",
    )


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
    """

    histories: Codes
    offsets: Positions
    times: Times
    item_ids: list[str]
    user_ids: Sequence[str]
    duplicates: int = 0

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
        return repeats(self.histories, self.offsets, self.n_items)

    @cached_property
    def repeat_share(self) -> float:
        """Share of repeats among each user's events but the first and the test event."""
        counts = np.ones(len(self.histories), bool)
        counts[self.offsets[:-1]] = False
        counts[self.offsets[self.evaluated + 1] - 1] = False
        return float(self.repeats[counts].mean()) if counts.any() else 0.0

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
        )


def filter_statistics(
    log: Interactions,
    *,
    min_user_interactions: int,
    min_item_interactions: int,
    duplicates: Duplicates = "auto",
) -> FilterStatistics:
    """What the filter of one pass would do to a log; nothing is too little for it."""
    duplicate = _dropped_rows(log, duplicates)
    rows = [slice(first, first + ROWS_AT_ONCE) for first in range(0, len(log.times), ROWS_AT_ONCE)]
    per_user = np.zeros(len(log.user_ids), np.int64)
    per_item = np.zeros(len(log.item_ids), np.int64)
    for some in rows:
        counts = ~duplicate[some]
        per_user += np.bincount(log.user_codes[some][counts], minlength=len(per_user))
        per_item += np.bincount(log.item_codes[some][counts], minlength=len(per_item))
    rare_user, rare_item = per_user < min_user_interactions, per_item < min_item_interactions
    keep_user, keep_item, n_kept = np.zeros_like(rare_user), np.zeros_like(rare_item), 0
    for some in rows:
        users, items = log.user_codes[some], log.item_codes[some]
        stays = ~(rare_user[users] | rare_item[items] | duplicate[some])
        keep_user[users[stays]] = keep_item[items[stays]] = True
        n_kept += int(np.count_nonzero(stays))
    return FilterStatistics(
        min_user_interactions=min_user_interactions,
        min_item_interactions=min_item_interactions,
        users=int(keep_user.sum()),
        items=int(keep_item.sum()),
        interactions=n_kept,
        rare_users=int(rare_user.sum()),
        rare_items=int(rare_item.sum()),
        interactions_of_rare_users=int(per_user[rare_user].sum()),
        interactions_of_rare_items=int(per_item[rare_item].sum()),
        duplicates=int(np.count_nonzero(duplicate)),
    )


def split(
    log: Interactions,
    *,
    min_user_interactions: int,
    min_item_interactions: int,
    iterative_core: bool,
    duplicates: Duplicates = "auto",
) -> Split:
    """Filters a log and indexes what is left.

    Of rows with one user, item and time the first stays, before anything is counted; `auto` keeps
    all of them where they are few. A row stays if
    its user and its item both have enough interactions *in the raw log* (one pass, both counted
    before anything goes: the reading that gives the paper's figures). With
    `iterative_core` this repeats on what is left until nothing changes.

    Raises:
        LogError: `too_little_data` when no row is left, or no user has three events.
    """
    users, items, times = log.user_codes, log.item_codes, log.times
    duplicate = _dropped_rows(log, duplicates)
    n_duplicates = int(np.count_nonzero(duplicate))
    if n_duplicates:
        users, items, times = users[~duplicate], items[~duplicate], times[~duplicate]
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
        duplicates=n_duplicates,
    )


def _dropped_rows(log: Interactions, duplicates: Duplicates) -> NDArray[np.bool_]:
    """bool[N]: rows that are no event of their own."""
    none = np.zeros(len(log.times), bool)
    if duplicates == "keep":
        return none
    duplicate = duplicate_rows(log)
    few = np.count_nonzero(duplicate) < DUPLICATES_FROM * len(duplicate)
    return none if duplicates == "auto" and few else duplicate


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
    )


def training_counts(split: Split) -> NDArray[np.int64]:
    """int64[n]: training interactions of each item."""
    steps = np.zeros(len(split.histories) + 1, np.int64)
    np.add.at(steps, split.offsets[:-1], 1)
    np.add.at(steps, split.training_ends, -1)
    trains = np.cumsum(steps[:-1]) > 0
    return np.bincount(split.histories[trains], minlength=split.n_items)
