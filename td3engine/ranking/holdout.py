"""The leave-one-out questions of a log."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from td3engine.config import DataConfig
from td3engine.data.split import Split
from td3engine.models.sequences import gather

Role = Literal["validation", "test"]


@dataclass(frozen=True)
class HoldoutSet:
    """One ranking question a user: what comes after this history?

    Attributes:
        items: the last events before the target, int64 (Q, L), right-padded with 0.
        lengths: events in each row, int64 (Q).
        targets: the held-out item, int64 (Q).
        seen_rows, seen_items: pairs (question, item) of everything the user met before the target.
        user_rows, user_items: the same with the held-out items too, for drawing negatives.
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
    """The leave-one-out questions of all users that have one (at least three events).

    With `at_most`, of that many users, drawn once and for all: a sample that every model of a log
    is compared on.
    """
    users = split.evaluated
    if at_most is not None and at_most < len(users):
        users = np.sort(np.random.default_rng(0).choice(users, at_most, replace=False))
    first = split.offsets[:-1][users]
    holdout = split.offsets[1:][users] - (1 if role == "test" else 2)
    items, lengths = gather(split, np.maximum(first, holdout - history), holdout)
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
    """A log's held-out sets, each made once.

    Args:
        split: the log.
        config: how many users a set has at most.
    """

    def __init__(self, split: Split, config: DataConfig) -> None:
        self.split, self.config = split, config
        self._sets: dict[tuple[Role, int], HoldoutSet] = {}

    def validation(self, history: int) -> HoldoutSet:
        """The validation set of models that read at most `history` events."""
        return self._set("validation", history, self.config.validation_users)

    def test(self, history: int) -> HoldoutSet:
        """The test set of models that read at most `history` events."""
        return self._set("test", history, self.config.test_users)

    def _set(self, role: Role, history: int, at_most: int) -> HoldoutSet:
        if (role, history) not in self._sets:
            self._sets[role, history] = holdout_set(self.split, role, history, at_most)
        return self._sets[role, history]
