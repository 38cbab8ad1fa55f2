"""Models that score items by counts of a log's training events."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from td3engine.counting.kernels import Kernel, stored_bytes
from td3engine.ranking.holdout import HoldoutSet
from td3engine.ranking.metrics import Scorer

WHOLE_HISTORY = 10**9
# Weight of popularity where it only decides between items that are otherwise equal.
TIE_BREAK = 1e-6


@dataclass(frozen=True)
class Reading:
    """How a model reads a history: its last events, each with a weight that falls with its age.

    Attributes:
        last: how many events count.
        decay: the newest event has weight 1, the one before it `decay`, then decay^2, ...
    """

    last: int
    decay: float


@dataclass(frozen=True, eq=False)
class Popularity:
    """Scores items by their training events, the same for every user.

    Attributes:
        counts: training events of each item, float32 (n).
    """

    counts: Tensor

    def scorer(self, cases: HoldoutSet) -> Scorer:
        """The counts, for each case."""
        return lambda rows: self.counts.expand(len(cases.targets[rows]), -1)

    @property
    def stored_bytes(self) -> int:
        """Size of the model, uncompressed."""
        return 4 * len(self.counts)


@dataclass(frozen=True, eq=False)
class RepeatRule:
    """What a user had, the oftener the better; then all other items by popularity.

    Popularity decides between items that were had equally, too.

    Attributes:
        popularity: of each item, from 0 to below 1, float32 (n).
        reading: how much each time counts.
    """

    popularity: Tensor
    reading: Reading

    def scorer(self, cases: HoldoutSet) -> Scorer:
        """Above 1 for what the user had."""

        def scores(rows: slice) -> Tensor:
            # In double precision: a long history leaves float32 no digits for the ties.
            had = torch.from_numpy(history_matrix(cases, rows, self.reading).toarray()).double()
            return torch.where(had > 0, 1 + had, 0) + TIE_BREAK * self.popularity

        return scores

    @property
    def stored_bytes(self) -> int:
        """Size of the model, uncompressed."""
        return 4 * len(self.popularity)


@dataclass(frozen=True, eq=False)
class KernelModel:
    """Scores items by the sum of what the events of a history contribute.

    Attributes:
        kernel: what item i contributes to each item, (n, n).
        reading: which events count, and how much.
        popularity: of each item, from 0 to below 1, float32 (n); it ranks the items of which the
            kernel knows nothing. None: they tie.
    """

    kernel: Kernel
    reading: Reading
    popularity: Tensor | None = None

    def scorer(self, cases: HoldoutSet) -> Scorer:
        """The weights, and popularity where they tie."""
        weights = self.weights(cases)
        if self.popularity is None:
            return weights
        tie_break = TIE_BREAK * self.popularity
        return lambda rows: weights(rows) + tie_break

    def weights(self, cases: HoldoutSet) -> Scorer:
        """Histories times the kernel: zero where it knows nothing."""

        def scores(rows: slice) -> Tensor:
            product = history_matrix(cases, rows, self.reading) @ self.kernel
            dense = product.toarray() if sp.issparse(product) else product
            return torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32))

        return scores

    @property
    def stored_bytes(self) -> int:
        """Size of the model, uncompressed."""
        return stored_bytes(self.kernel)


CountingModel = Popularity | RepeatRule | KernelModel


def history_matrix(cases: HoldoutSet, rows: slice, reading: Reading) -> sp.csr_array:
    """The summed weights of each item's events in the histories of these cases, (B, n).

    A weight is never 0, however old its event.
    """
    offsets = cases.seen_offsets[rows.start : rows.stop + 1].numpy()
    ends = offsets[1:]
    starts = np.maximum(offsets[:-1], ends - reading.last)
    counts = ends - starts
    case = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(case)) - np.repeat(np.cumsum(counts) - counts, counts)
    events = starts[case] + nth
    age = (ends[case] - 1 - events).astype(np.float32)
    weights = np.maximum(np.float32(reading.decay) ** age, np.finfo(np.float32).tiny)
    items = cases.seen_items[torch.from_numpy(events)].numpy()
    return sp.csr_array((weights, (case, items)), shape=(len(counts), cases.n_items))
