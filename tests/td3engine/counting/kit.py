"""Small logs with everything that is odd, and scores of a model as one table."""

import random

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from td3engine.counting.kernels import Kernel
from td3engine.ranking.holdout import HoldoutSet
from td3engine.ranking.metrics import RankingModel, scorer_of

ITEMS = 12
HELD_OUT_ONLY, NEVER = ITEMS - 2, ITEMS - 1


def odd_log(seed: int = 0, users: int = 30) -> list[list[int]]:
    """Histories with repeats, some of 1 or 2 events, one long, one of a single item.

    No one trains on the last two items: one is only ever held out, one is in no history.
    """
    draw = random.Random(seed)
    histories = [
        [draw.randrange(ITEMS - 2) for _ in range(draw.choice([1, 2, 2, 3, 5, 8, 13]))]
        for _ in range(users)
    ]
    histories[3] = [draw.randrange(ITEMS - 2) for _ in range(40)]
    histories[4] = [5] * 6
    histories[6] = [0, 1, 0, 1, HELD_OUT_ONLY, HELD_OUT_ONLY]
    return histories


def training(history: list[int]) -> list[int]:
    """What a user trains on: all but the last two events, or all of fewer than three."""
    return history[:-2] if len(history) >= 3 else history


def dense(kernel: Kernel | sp.csr_array) -> NDArray[np.float64]:
    """Any kernel as a table in float64."""
    return np.asarray(kernel.toarray() if sp.issparse(kernel) else kernel, dtype=np.float64)


def all_scores(model: RankingModel, cases: HoldoutSet, at_once: int = 7) -> Tensor:
    """The scores of all cases, made a few at a time, (Q, n)."""
    scorer, count = scorer_of(model, cases), len(cases.targets)
    rows = [slice(first, min(first + at_once, count)) for first in range(0, count, at_once)]
    return torch.cat([scorer(some) for some in rows])
