"""Real sequences as tensors: training windows of user histories, and what is asked of a model.

Histories are left-aligned and padded on the right with item 0. A causal backbone never looks there;
one that looks both ways is told the rows' lengths, and no loss asks for a pad.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from td3engine.interactions import Split

SORTED_BATCHES = 32

Role = Literal["validation", "test"]


@dataclass(frozen=True)
class WindowIndex:
    """Where training windows lie in `Split.histories`: window w is rows [start[w], end[w])."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)


def training_windows(split: Split, history: int, rng: Generator) -> WindowIndex:
    """Cut every training history into windows of at most `history` + 1 events.

    Neighbours share one event, so each transition is a target exactly once; the first cut of a
    user is random, so that from epoch to epoch a transition is seen with different contexts.
    """
    first = split.offsets[:-1]
    transitions = split.training_ends - first - 1
    users = np.flatnonzero(transitions > 0)
    first, transitions = first[users], transitions[users]
    head = np.minimum(rng.integers(1, history + 1, len(users)), transitions)
    windows = 1 + -(-(transitions - head) // history)
    owner = np.repeat(np.arange(len(users)), windows)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(windows) - windows, windows)
    start = first[owner] + np.where(nth > 0, head[owner] + (nth - 1) * history, 0)
    last = first[owner] + np.minimum(head[owner] + nth * history, transitions[owner])
    return WindowIndex(start.astype(np.int64), (last + 1).astype(np.int64))


def batches_of_like_length(
    index: WindowIndex, batch: int, rng: Generator
) -> list[NDArray[np.int64]]:
    """All windows once, in batches that need little padding, as positions in `index`.

    Windows are shuffled, sorted by length within groups of `SORTED_BATCHES` batches, and the
    batches shuffled again: a batch's companions stay random among windows of about its length.
    """
    order = rng.permutation(len(index))
    lengths = (index.end - index.start)[order]
    group = np.arange(len(order)) // (batch * SORTED_BATCHES)
    order = order[np.lexsort((lengths, group))]
    cut = [order[first : first + batch] for first in range(0, len(order), batch)]
    return [cut[nth] for nth in rng.permutation(len(cut))]


def gather(split: Split, start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Rows [start, end) as (items, lengths): int64 (B, L) and int64 (B); L is the longest row's
    length, the others are padded with 0."""
    rows = start[:, None] + np.arange(int((end - start).max(initial=0)))
    inside = rows < end[:, None]
    items = np.where(inside, split.histories[np.minimum(rows, len(split.histories) - 1)], 0)
    return torch.from_numpy(items.astype(np.int64)), torch.from_numpy(
        (end - start).astype(np.int64)
    )


@dataclass(frozen=True)
class Questions:
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


def questions(split: Split, role: Role, history: int, at_most: int | None = None) -> Questions:
    """The leave-one-out questions of all users that have one (at least three events).

    With `at_most`, of that many users, drawn once and for all: a sample that every model of a log
    is compared on.
    """
    users = split.evaluated
    if at_most is not None and at_most < len(users):
        users = np.sort(np.random.default_rng(0).choice(users, at_most, replace=False))
    first = split.offsets[:-1][users]
    asked = split.offsets[1:][users] - (1 if role == "test" else 2)
    items, lengths = gather(split, np.maximum(first, asked - history), asked)
    seen_rows, seen_items = _pairs(split, first, asked)
    user_rows, user_items = _pairs(split, first, split.offsets[1:][users])
    return Questions(
        items=items,
        lengths=lengths,
        targets=torch.from_numpy(split.histories[asked].astype(np.int64)),
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
