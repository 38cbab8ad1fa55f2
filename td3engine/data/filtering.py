"""What goes from a log before it is split: rows that are no events, and rare users and items."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from td3engine.config import DUPLICATES_FROM, Duplicates, MissingIds, Repeats
from td3engine.data.missing import looks_missing
from td3engine.data.repeats import (
    ROWS_AT_ONCE,
    duplicate_rows,
    offsets_of_users,
    repeats_among,
)
from td3engine.data.types import Interactions


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
        description="Rows with the user, item and time of an earlier one that go before the "
        "filter counts; 0 where there are too few for `data.duplicates: auto`. Null if an older "
        "release normalised the log: it counted them like others.",
    )


@dataclass(frozen=True)
class DroppedRows:
    """Rows that are no events of their own: they go before the filter counts.

    Attributes:
        rows: bool[N].
        missing: how many have an id that looks like a missing value.
        duplicates: how many of the others have the user, item and time of an earlier row.
        repeats: how many of the rest have an item that their user met before.
    """

    rows: NDArray[np.bool_]
    missing: int
    duplicates: int
    repeats: int

    @classmethod
    def of(
        cls, log: Interactions, duplicates: Duplicates, missing_ids: MissingIds, repeats: Repeats
    ) -> "DroppedRows":
        """Those of a log, by the settings of `DataConfig`."""
        rows = np.zeros(len(log.times), bool)
        if missing_ids == "drop":
            users, items = looks_missing(log.user_ids), looks_missing(log.item_ids)
            rows = users[log.user_codes] | items[log.item_codes]
        n_missing = n_dropped = int(np.count_nonzero(rows))
        if duplicates != "keep":
            duplicate = duplicate_rows(log)
            many = np.count_nonzero(duplicate) >= DUPLICATES_FROM * len(duplicate)
            rows = rows | duplicate if many or duplicates == "drop" else rows
        n_duplicates = int(np.count_nonzero(rows)) - n_dropped
        n_dropped += n_duplicates
        if repeats == "first":
            rows = rows | repeats_among(log.item_codes, offsets_of_users(log), len(log.item_ids))
        n_repeats = int(np.count_nonzero(rows)) - n_dropped
        return cls(rows, n_missing, n_duplicates, n_repeats)


def filter_statistics(
    log: Interactions,
    *,
    min_user_interactions: int,
    min_item_interactions: int,
    duplicates: Duplicates = "auto",
    missing_ids: MissingIds = "keep",
    repeats: Repeats = "keep",
) -> FilterStatistics:
    """What the filter of one pass would do to a log; nothing is too little for it."""
    dropped = DroppedRows.of(log, duplicates, missing_ids, repeats)
    rows = [slice(first, first + ROWS_AT_ONCE) for first in range(0, len(log.times), ROWS_AT_ONCE)]
    per_user = np.zeros(len(log.user_ids), np.int64)
    per_item = np.zeros(len(log.item_ids), np.int64)
    for some in rows:
        counts = ~dropped.rows[some]
        per_user += np.bincount(log.user_codes[some][counts], minlength=len(per_user))
        per_item += np.bincount(log.item_codes[some][counts], minlength=len(per_item))
    rare_user, rare_item = per_user < min_user_interactions, per_item < min_item_interactions
    keep_user, keep_item, n_kept = np.zeros_like(rare_user), np.zeros_like(rare_item), 0
    for some in rows:
        users, items = log.user_codes[some], log.item_codes[some]
        stays = ~(rare_user[users] | rare_item[items] | dropped.rows[some])
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
        duplicates=dropped.duplicates,
    )
