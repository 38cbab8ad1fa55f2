"""Training windows of user histories, as positions in `Split.histories`. Imports no torch.

`training_windows` cuts the whole log, for an epoch over it. `WindowSampler` draws a batch of such
windows at a cost that does not grow with the log, for a step that needs no more than the batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from td3engine.data.split import Split

SORTED_BATCHES = 32
# A batch of more than this share of all windows is chosen from the cut of the whole log.
LARGEST_SAMPLED_SHARE = 1 / 8

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class WindowIndex:
    """Where training windows lie in `Split.histories`: window w is rows [start[w], end[w]).

    Attributes:
        start: int64[W].
        end: int64[W].
    """

    start: Positions
    end: Positions

    def __len__(self) -> int:
        return len(self.start)

    def subset(self, chosen: NDArray[Any]) -> "WindowIndex":
        """The windows at these positions, or where this mask holds."""
        return WindowIndex(self.start[chosen], self.end[chosen])


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
    windows = _window_count(transitions, head, history)
    owner = np.repeat(np.arange(len(users)), windows)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(windows) - windows, windows)
    return _windows(first[owner], transitions[owner], head[owner], nth, history)


class WindowSampler:
    """Draws batches of training windows without cutting the whole log.

    A draw has the distribution of `count` windows chosen uniformly without replacement from a new
    `training_windows(split, history, rng)`; only the random numbers that it consumes differ. So
    every window of the cut is equally likely, and therefore every training transition is equally
    likely to be a target: each lies in exactly one window of a cut.

    The method is rejection sampling with deferred cuts. The cut of a user with t transitions has m
    or m - 1 windows, where m = 1 + ceil((t - 1) / history), depending on where the first cut falls.
    Every user gets m slots. A draw proposes distinct slots, uniformly over all users; it makes the
    first cut of a user when it first meets the user; it rejects a slot that the user's cut leaves
    empty. The cuts do not depend on which slots are proposed, so the accepted slots are a uniform
    sample of the windows of the whole cut. At most half of all slots are empty.

    Building costs O(users) once, and 8 bytes a user. A draw costs O(count log users).

    Args:
        split: the log.
        history: a window has at most `history` + 1 events.
    """

    def __init__(self, split: Split, history: int) -> None:
        self.split, self._history = split, history
        transitions = split.training_ends - split.offsets[:-1] - 1
        slots = np.where(transitions > 0, _window_count(transitions, 1, history), 0)
        self._slot_ends = np.cumsum(slots)

    def draw(self, count: int, rng: Generator) -> WindowIndex:
        """`count` distinct windows of one random cut, in random order; all windows if it has fewer.

        Two windows of the same user come from the same cut, so they share at most one event.
        """
        slots = int(self._slot_ends[-1]) if len(self._slot_ends) else 0
        if count > LARGEST_SAMPLED_SHARE * slots:
            index = training_windows(self.split, self._history, rng)
            return index.subset(rng.choice(len(index), min(count, len(index)), replace=False))
        proposed = cuts = np.empty(0, np.int64)
        while True:
            # Twice as many as needed: one round is usually enough.
            proposed = np.concatenate([proposed, rng.integers(slots, size=2 * count)])
            cuts = np.concatenate([cuts, rng.integers(1, self._history + 1, 2 * count)])
            windows = self._accepted(proposed, cuts)
            if len(windows) >= count:
                return windows.subset(np.arange(count))

    def _accepted(self, slots: Positions, cuts: Positions) -> WindowIndex:
        """The windows in proposed slots, in order of proposal, each once.

        Args:
            slots: int64[S], proposed slots.
            cuts: int64[S], first cuts in 1..history; a user's first proposal decides the user's.
        """
        users = np.searchsorted(self._slot_ends, slots, side="right")
        _, first_proposals, nth_users = np.unique(users, return_index=True, return_inverse=True)
        first = self.split.offsets[users]
        transitions = self.split.training_ends[users] - first - 1
        heads = np.minimum(cuts[first_proposals[nth_users]], transitions)
        nth = slots - self._slot_ends[users] + _window_count(transitions, 1, self._history)
        accepted = nth < _window_count(transitions, heads, self._history)
        accepted &= _is_first(slots)
        return _windows(first, transitions, heads, nth, self._history).subset(accepted)


def _window_count(transitions: Positions, head: Positions | int, history: int) -> Positions:
    """Windows of a user whose first window has `head` of the user's transitions."""
    return 1 - (head - transitions) // history


def _windows(
    first: Positions, transitions: Positions, head: Positions, nth: Positions, history: int
) -> WindowIndex:
    """The nth window of each user: first event, number of transitions, and those of window 0."""
    start = first + np.where(nth > 0, head + (nth - 1) * history, 0)
    last = first + np.minimum(head + nth * history, transitions)
    return WindowIndex(start.astype(np.int64), (last + 1).astype(np.int64))


def _is_first(values: Positions) -> NDArray[np.bool_]:
    """Whether each value is the first of its kind."""
    first = np.zeros(len(values), np.bool_)
    first[np.unique(values, return_index=True)[1]] = True
    return first


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
