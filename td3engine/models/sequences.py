"""Rows of real histories as padded tensors."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from td3engine.data.split import Split


def gather(split: Split, start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Rows [start, end) of the histories as (items, lengths), int64 (B, L) and (B).

    L is the longest row's length; shorter rows are padded with 0 on the right.
    """
    rows = start[:, None] + np.arange(int((end - start).max(initial=0)))
    inside = rows < end[:, None]
    items = np.where(inside, split.histories[np.minimum(rows, len(split.histories) - 1)], 0)
    return torch.from_numpy(items.astype(np.int64)), torch.from_numpy(
        (end - start).astype(np.int64)
    )
