"""Rows that occur again: exact duplicates in a log, and items that a user meets again.

Both are found some users at a time, so that memory does not grow with the log.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from td3engine.data.types import Codes, Interactions

ROWS_AT_ONCE = 2**21


def duplicate_rows(log: Interactions) -> NDArray[np.bool_]:
    """bool[N]: whether an earlier row has the same user, item and time."""
    duplicate = np.zeros(len(log.times), bool)
    offsets = offsets_of_users(log)
    for rows, owner in blocks_of_users(offsets):
        same = (owner[1:] == owner[:-1]) & (log.times[rows][1:] == log.times[rows][:-1])
        # Rows are sorted by user and time: only rows of one moment can be equal.
        moment = np.concatenate([[0], np.cumsum(~same)])
        shared = np.flatnonzero(np.append(same, False) | np.append(False, same))
        items = log.item_codes[rows][shared].astype(np.int64)
        pairs = moment[shared] * len(log.item_ids) + items
        duplicate[rows.start + shared[occurred_before(pairs)]] = True
    return duplicate


def offsets_of_users(log: Interactions) -> NDArray[np.int64]:
    """int64[U+1]: where each user's rows begin."""
    users = np.arange(len(log.user_ids) + 1, dtype=log.user_codes.dtype)
    return np.searchsorted(log.user_codes, users)


def repeats_among(histories: Codes, offsets: NDArray[np.int64], n_items: int) -> NDArray[np.bool_]:
    """bool[M]: whether the event's user met its item before.

    Args:
        histories: int32[M], items of all users, user after user, each by time.
        offsets: int64[U+1], where each user's events begin.
        n_items: how many items there are.
    """
    repeated = np.zeros(len(histories), bool)
    for rows, owner in blocks_of_users(offsets):
        repeated[rows] = occurred_before(owner * n_items + histories[rows])
    return repeated


def occurred_before(keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[K]: whether an earlier one of these numbers is the same."""
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    before = np.zeros(len(keys), bool)
    before[order[1:]] = in_order[1:] == in_order[:-1]
    return before


def blocks_of_users(offsets: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Rows of whole users, about `ROWS_AT_ONCE` at a time, and the user of each row, from 0."""
    first = 0
    while first < len(offsets) - 1:
        within = np.searchsorted(offsets, offsets[first] + ROWS_AT_ONCE, side="right") - 1
        end = max(first + 1, int(within))
        owner = np.repeat(np.arange(end - first), np.diff(offsets[first : end + 1]))
        yield slice(int(offsets[first]), int(offsets[end])), owner
        first = end
