"""The holdout sets of a log: leave-one-out cases (method, section 1)."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from td3engine.config import REPEATS_FROM, DataConfig, ValidationProtocol
from td3engine.data.split import Positions, Split
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
            case, then by time.
        user_rows, user_items: the same of all the user's events, for drawing negatives.
        n_items: items of the log, n.
        validate_by: the protocol by which checkpoints are chosen on this set.
    """

    items: Tensor
    lengths: Tensor
    targets: Tensor
    seen_rows: Tensor
    seen_items: Tensor
    user_rows: Tensor
    user_items: Tensor
    n_items: int
    validate_by: ValidationProtocol = "unseen"

    @cached_property
    def seen_offsets(self) -> Tensor:
        """Case q's history is `seen_items[seen_offsets[q]:seen_offsets[q + 1]]`, int64 (Q + 1)."""
        return torch.searchsorted(self.seen_rows, torch.arange(len(self.targets) + 1))

    @cached_property
    def user_offsets(self) -> Tensor:
        """The same for `user_items`, int64 (Q + 1)."""
        return torch.searchsorted(self.user_rows, torch.arange(len(self.targets) + 1))

    @cached_property
    def new_target(self) -> Tensor:
        """Whether the target is none of the events before it, bool (Q)."""
        repeated = self.seen_items == self.targets[self.seen_rows]
        new = torch.ones(len(self.targets), dtype=torch.bool)
        new[self.seen_rows[repeated]] = False
        return new

    def take(self, cases: Tensor) -> "HoldoutSet":
        """Some of the cases, int64, ascending and each once."""
        seen_rows, seen = _renumbered(self.seen_rows, cases, len(self.targets))
        user_rows, user = _renumbered(self.user_rows, cases, len(self.targets))
        return replace(
            self,
            items=self.items[cases],
            lengths=self.lengths[cases],
            targets=self.targets[cases],
            seen_rows=seen_rows,
            seen_items=self.seen_items[seen],
            user_rows=user_rows,
            user_items=self.user_items[user],
        )


def _renumbered(rows: Tensor, cases: Tensor, n_cases: int) -> tuple[Tensor, Tensor]:
    """The rows of these cases, numbered anew, and where they were."""
    number = torch.full((n_cases,), -1)
    number[cases] = torch.arange(len(cases))
    renumbered = number[rows]
    return renumbered[renumbered >= 0], renumbered >= 0


def holdout_set(
    split: Split,
    role: Role,
    history: int,
    at_most: int | None = None,
    validate_by: ValidationProtocol = "unseen",
) -> HoldoutSet:
    """The leave-one-out cases of all users with at least three events.

    Args:
        split: the log.
        role: `test` holds out a user's last event, `validation` the one before.
        history: L, the longest history.
        at_most: a sample of this many users, the same for every model of a log; None: all.
        validate_by: the protocol by which checkpoints are chosen.
    """
    users = measured_users(split, at_most)
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
        validate_by=validate_by,
    )


def validation_protocol(split: Split, config: DataConfig) -> tuple[ValidationProtocol, list[str]]:
    """The protocol by which checkpoints are chosen on this log, with notes on why.

    It depends on training and validation events only.
    """
    notes, protocol = [], config.validate_by
    if protocol == "auto":
        protocol = "all" if split.repeat_share >= REPEATS_FROM else "unseen"
        if protocol == "all":
            notes.append(
                f"{split.repeat_share:.0%} of events repeat an item of their user: checkpoints are "
                "chosen by protocol `all`"
            )
    users = measured_users(split, config.validation_users)
    if protocol == "unseen" and split.repeats[split.offsets[users + 1] - 2].all():
        protocol = "all"
        notes.append(
            "every validation target is an item that its user met before: checkpoints are chosen "
            "by protocol `all`, since `unseen` has no question"
        )
    return protocol, notes


def measured_users(split: Split, at_most: int | None) -> Positions:
    """int64[Q]: the users of a holdout set, in order."""
    users = split.evaluated
    if at_most is None or at_most >= len(users):
        return users
    return np.sort(np.random.default_rng(0).choice(users, at_most, replace=False))


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
        config: the largest number of users of a set, and the protocol of choices.

    Attributes:
        validate_by: the protocol by which checkpoints are chosen.
    """

    def __init__(self, split: Split, config: DataConfig) -> None:
        self.split, self.config = split, config
        self.validate_by, _ = validation_protocol(split, config)
        self._sets: dict[tuple[Role, int], HoldoutSet] = {}

    def validation(self, history: int) -> HoldoutSet:
        """The validation set of models with this longest history."""
        return self._set("validation", history, self.config.validation_users)

    def test(self, history: int) -> HoldoutSet:
        """The test set of models with this longest history."""
        return self._set("test", history, self.config.test_users)

    def _set(self, role: Role, history: int, at_most: int) -> HoldoutSet:
        if (role, history) not in self._sets:
            self._sets[role, history] = holdout_set(
                self.split, role, history, at_most, self.validate_by
            )
        return self._sets[role, history]
