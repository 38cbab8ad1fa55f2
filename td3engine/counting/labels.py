"""Counting models as labels: what they expect next at each position of a row, as expected rows of
a scoring table.

A kernel model's distribution after the events i_1 ... i_t is

    q = sum over s of decay^(t - s) W[i_s] / the sum of these weights,

with W the kernel, cut to each row's largest entries. A loss against q needs q F only, with F the
scoring table (identity I-2 of the method), and q F is a decayed sum over the row of (W F)[i_s]. So
nothing of size (positions, n) is built.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from td3engine.counting.fitting import EASE, ITEM_KNN, WINDOWED, FittedCounting
from td3engine.counting.kernels import Kernel
from td3engine.counting.models import KernelModel, Reading

LARGEST_ENTRIES = 50  # of a kernel's row, that labels are made of
DENSE_AT_ONCE = 2**24  # numbers of a kernel that are sorted at a time
SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class KernelLabels:
    """A kernel model, cut to the largest entries of each row.

    Attributes:
        items: of the entries, int32 (n, M).
        weights: of the entries, not negative, float32 (n, M); zero where a row has fewer.
        totals: sums of rows, float32 (n).
        reading: which events before a target count, and how much.
    """

    items: Tensor
    weights: Tensor
    totals: Tensor
    reading: Reading

    @classmethod
    def of(cls, model: KernelModel, device: torch.device) -> "KernelLabels":
        """The labels of this model."""
        items, weights = (each.to(device) for each in _largest(model.kernel))
        return cls(items, weights, weights.sum(1), model.reading)

    def expected(self, items_BL: Tensor, table_NF: Tensor) -> tuple[Tensor, Tensor]:
        """For each event what the events before it lead to: q F, (B, L, f), and whether any event
        before it has a weight, bool (B, L). Differentiable in F; padding may hold any item."""
        items_R, local_BL = items_BL.unique(return_inverse=True)
        spread_RF = F.embedding_bag(
            self.items[items_R],
            table_NF,
            mode="sum",
            per_sample_weights=self.weights[items_R].to(table_NF.dtype),
        )
        ages_LL = _age_weights(items_BL.shape[1], self.reading).to(table_NF)
        total_BL = self.totals[items_BL].to(table_NF.dtype) @ ages_LL.T
        sums_BLF = ages_LL @ F.embedding(local_BL, spread_RF)
        known_BL = total_BL > SMALLEST
        return sums_BLF / total_BL.clamp(min=SMALLEST)[..., None], known_BL


@dataclass(frozen=True, eq=False)
class CountingLabels:
    """The mean of some kernel models' distributions, as part of a target.

    Attributes:
        parts: of each model.
        share: of the labels in a target, above 0 and at most 1; the rest is the next item.
    """

    parts: Sequence[KernelLabels]
    share: float

    @classmethod
    def of(
        cls, counting: Sequence[FittedCounting], share: float, device: torch.device
    ) -> "CountingLabels":
        """Labels of a model that counts what follows, and of one that counts what goes together.

        The latter is EASE, or item-kNN where there is none. The mean of both labels better than
        either alone.
        """
        kernels = {
            each.name: each.model for each in counting if isinstance(each.model, KernelModel)
        }
        together = EASE if EASE in kernels else ITEM_KNN
        parts = [KernelLabels.of(kernels[name], device) for name in (WINDOWED, together)]
        return cls(parts, share)

    def expected(self, items_BL: Tensor, table_NF: Tensor) -> tuple[Tensor, Tensor]:
        """As `KernelLabels.expected`, of the mean over those models that know anything."""
        each = [part.expected(items_BL, table_NF) for part in self.parts]
        known_PBL = torch.stack([known for _, known in each])
        sums = sum(rows * known[..., None] for rows, known in each)
        return sums / known_PBL.sum(0).clamp(min=1)[..., None], known_PBL.any(0)


def _age_weights(length: int, reading: Reading) -> Tensor:
    """Weight of event s for the target at t, (L, L): decay^(t - 1 - s) where s is before t, and
    among the last that count; else zero."""
    at = torch.arange(length)
    age_LL = at[:, None] - 1 - at
    counts_LL = (age_LL >= 0) & (age_LL < reading.last)
    return torch.where(counts_LL, reading.decay ** age_LL.clamp(min=0).double(), 0.0)


def _largest(kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Items and weights of each row's largest positive entries, (n, M)."""
    rows = [_largest_of(dense) for dense in _dense_rows(kernel)]
    items, weights = (np.concatenate(part) for part in zip(*rows, strict=True))
    return torch.from_numpy(items), torch.from_numpy(weights)


def _dense_rows(kernel: Kernel) -> Iterator[NDArray[np.float32]]:
    """The kernel, some rows at a time."""
    n_items = kernel.shape[0]
    at_once = max(1, DENSE_AT_ONCE // n_items)
    for first in range(0, n_items, at_once):
        rows = kernel[first : first + at_once]
        yield rows if isinstance(rows, np.ndarray) else rows.toarray()


def _largest_of(rows: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    count = min(LARGEST_ENTRIES, rows.shape[1])
    items = np.argpartition(-rows, count - 1, axis=1)[:, :count].astype(np.int32)
    weights = np.maximum(np.take_along_axis(rows, items.astype(np.int64), 1), 0)
    return items, weights.astype(np.float32)
