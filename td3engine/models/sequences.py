"""Rows of real histories as padded tensors."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from td3engine.data.split import Split


def padded_sequences(
    split: Split, start: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Parts of histories as rows of one length, padded on the right with item 0.

    Args:
        split: the log.
        start, end: int64[B]; row b is `split.histories[start[b]:end[b]]`.

    Returns:
        Items, int64 (B, L), where L is the length of the longest row; lengths, int64 (B).
    """
    rows = start[:, None] + np.arange(int((end - start).max(initial=0)))
    inside = rows < end[:, None]
    items = np.where(inside, split.histories[np.minimum(rows, len(split.histories) - 1)], 0)
    return torch.from_numpy(items.astype(np.int64)), torch.from_numpy(
        (end - start).astype(np.int64)
    )
