"""The holdout sets of a log: leave-one-out cases (method, section 1)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from td3engine.config import DataConfig
from td3engine.data.split import Split
from td3engine.models.sequences import padded_sequences

Role = Literal["validation", "test"]


@dataclass(frozen=True)
class HoldoutSet:
    """One case a user: the held-out item after a history. Q cases.

    Attributes:
        items: item indices of the last events before the target, int64 (Q, L), right-padded with 0.
        lengths: events in each row, int64 (Q).
        targets: the held-out item, int64 (Q).
        seen_rows, seen_items: pairs (case, item) of all events before the target, int64, sorted by
            case.
        user_rows, user_items: the same of all the user's events, for drawing negatives.
        n_items: items of the log, n.
    """

    items: Tensor
    lengths: Tensor
    targets: Tensor
    seen_rows: Tensor
    seen_items: Tensor
    user_rows: Tensor
    user_items: Tensor
    n_items: int


def holdout_set(split: Split, role: Role, history: int, at_most: int | None = None) -> HoldoutSet:
    """The leave-one-out cases of all users with at least three events.

    Args:
        split: the log.
        role: `test` holds out a user's last event, `validation` the one before.
        history: L, the longest history.
        at_most: a sample of this many users, the same for every model of a log; None: all.
    """
    users = split.evaluated
    if at_most is not None and at_most < len(users):
        users = np.sort(np.random.default_rng(0).choice(users, at_most, replace=False))
    first = split.offsets[:-1][users]
    holdout = split.offsets[1:][users] - (1 if role == "test" else 2)
    items, lengths = padded_sequences(split, np.maximum(first, holdout - history), holdout)
    seen_rows, seen_items = _pairs(split, first, holdout)
    user_rows, user_items = _pairs(split, first, split.offsets[1:][users])
    return HoldoutSet(
        items=items,
        lengths=lengths,
        targets=torch.from_numpy(split.histories[holdout].astype(np.int64)),
        seen_rows=seen_rows,
        seen_items=seen_items,
        user_rows=user_rows,
        user_items=user_items,
        n_items=split.n_items,
    )


def _pairs(split: Split, first: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    counts = end - first
    rows = np.repeat(np.arange(len(first)), counts)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    items = split.histories[first[rows] + nth]
    return torch.from_numpy(rows), torch.from_numpy(items.astype(np.int64))


class Holdouts:
    """The holdout sets of a log, each built once.

    Args:
        split: the log.
        config: the largest number of users of a set.
    """

    def __init__(self, split: Split, config: DataConfig) -> None:
        self.split, self.config = split, config
        self._sets: dict[tuple[Role, int], HoldoutSet] = {}

    def validation(self, history: int) -> HoldoutSet:
        """The validation set of models with this longest history."""
        return self._set("validation", history, self.config.validation_users)

    def test(self, history: int) -> HoldoutSet:
        """The test set of models with this longest history."""
        return self._set("test", history, self.config.test_users)

    def _set(self, role: Role, history: int, at_most: int) -> HoldoutSet:
        if (role, history) not in self._sets:
            self._sets[role, history] = holdout_set(self.split, role, history, at_most)
        return self._sets[role, history]
