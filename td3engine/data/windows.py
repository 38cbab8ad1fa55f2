"""Training windows of user histories, as positions in `Split.histories`. Imports no torch."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from td3engine.data.split import Split

SORTED_BATCHES = 32


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
