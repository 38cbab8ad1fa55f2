"""Real sequences as tensors: training windows of user histories, and what is asked of a model.

Histories are left-aligned and padded on the right with item 0. The backbones are causal, so a pad
never reaches an earlier position and no padding mask is needed in them; the loss skips pads.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from td3engine.interactions import Split

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


def gather(
    split: Split, start: NDArray[np.int64], end: NDArray[np.int64], width: int
) -> tuple[Tensor, Tensor]:
    """Rows [start, end) as (items, lengths): int64 (B, width) padded with 0, and int64 (B)."""
    rows = start[:, None] + np.arange(width)
    inside = rows < end[:, None]
    items = np.where(inside, split.histories[np.minimum(rows, len(split.histories) - 1)], 0)
    return torch.from_numpy(items.astype(np.int64)), torch.from_numpy(
        (end - start).astype(np.int64)
    )


@dataclass(frozen=True)
class Questions:
    """One ranking question a user: what comes after this history?

    Attributes:
        items: the last events before the target, int64 (Q, history), right-padded with 0.
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


def questions(split: Split, role: Role, history: int) -> Questions:
    """The leave-one-out questions of all users that have one (at least three events)."""
    users = split.evaluated
    first = split.offsets[:-1][users]
    asked = split.offsets[1:][users] - (1 if role == "test" else 2)
    items, lengths = gather(split, np.maximum(first, asked - history), asked, history)
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
