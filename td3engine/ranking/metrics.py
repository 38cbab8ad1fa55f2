"""HR, NDCG and MRR under both protocols (method, section 1).

`full` ranks the held-out item against every item that the user has not met before;
`sampled-100` against 100 uniform negatives from outside the user's whole history. The second is
the paper's and known to be biased, so the two are always reported together.
"""

import typing
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from td3engine.ranking.holdout import HoldoutSet

Protocol = Literal["full", "sampled-100"]
PROTOCOLS: tuple[Protocol, ...] = ("full", "sampled-100")
CUTOFFS = (5, 10, 20)
NEGATIVES = 100
# 4 million scores at a time: 16 MiB, whatever the catalogue's size.
SCORES_AT_ONCE = 4_000_000

Metrics = dict[str, float]


class RankingModel(typing.Protocol):
    """What can be measured: a `TrainedModel`, or a counting model.

    Attributes:
        table: the scoring table, (n, f).
    """

    @property
    def table(self) -> Tensor: ...

    def states(self, items_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """States (B, f) after item histories, right-padded int64 (B, L), of so many events (B)."""


def metrics(ranks: Tensor) -> Metrics:
    """HR@k, NDCG@k and MRR@k for k = 5, 10, 20, averaged over questions.

    Args:
        ranks: rank of each question's target, 0 is best, int64 (Q).
    """
    place = ranks.double() + 1
    found: Metrics = {}
    for k in CUTOFFS:
        hit = (place <= k).double()
        found[f"hr@{k}"] = float(hit.mean())
        found[f"ndcg@{k}"] = float((hit / torch.log2(place + 1)).mean())
        found[f"mrr@{k}"] = float((hit / place).mean())
    return found


def rank_among_unseen(hidden_QD: Tensor, table_ND: Tensor, holdout: HoldoutSet) -> Tensor:
    """Rank of each target among all unseen items, int64 (Q). Ties count against the model.

    Counting ties as lost keeps a model that scores everything alike from looking perfect; written
    as "not below", it does the same to a model whose scores are NaN.
    """
    ranks = torch.empty(len(holdout.targets), dtype=torch.int64)
    device = table_ND.device
    at_once = max(1, SCORES_AT_ONCE // holdout.n_items)
    starts = torch.searchsorted(holdout.seen_rows, torch.arange(0, len(ranks) + at_once, at_once))
    for chunk, first in enumerate(range(0, len(ranks), at_once)):
        rows = slice(first, first + at_once)
        seen = slice(int(starts[chunk]), int(starts[chunk + 1]))
        seen_rows, seen_items = holdout.seen_rows[seen] - first, holdout.seen_items[seen]
        targets = holdout.targets[rows, None].to(device)
        scores = hidden_QD[rows] @ table_ND.T
        target = scores.gather(1, targets)
        scores[seen_rows.to(device), seen_items.to(device)] = -torch.inf
        # The target's own column is masked too, whether or not it was met before: it is counted
        # once, as the target.
        scores.scatter_(1, targets, -torch.inf)
        ranks[rows] = (~(scores < target)).sum(1).cpu()
    return ranks


def rank_among_sampled(
    hidden_QD: Tensor, table_ND: Tensor, holdout: HoldoutSet, seed: int
) -> Tensor:
    """Rank of each target among 100 uniform items from outside the user's history, int64 (Q)."""
    candidates = torch.cat([holdout.targets[:, None], sample_negatives(holdout, seed)], 1)
    hidden, table = hidden_QD.cpu(), table_ND.cpu()
    ranks = torch.empty(len(candidates), dtype=torch.int64)
    at_once = max(1, SCORES_AT_ONCE // (candidates.shape[1] * table.shape[1]))
    for first in range(0, len(ranks), at_once):
        rows = slice(first, first + at_once)
        # Not a matrix product: its kernels round a column by where it lies, which breaks ties.
        scores = (hidden[rows, None] * table[candidates[rows]]).sum(-1)
        ranks[rows] = (~(scores[:, 1:] < scores[:, :1])).sum(1)
    return ranks


def available_protocols(holdout: HoldoutSet) -> tuple[Protocol, ...]:
    """Both, unless the catalogue is so small that a user has fewer than 100 negatives left."""
    different = torch.unique(holdout.user_rows * holdout.n_items + holdout.user_items)
    met = torch.bincount(different // holdout.n_items, minlength=1).max()
    return PROTOCOLS if holdout.n_items - int(met) >= NEGATIVES else ("full",)


def sample_negatives(holdout: HoldoutSet, seed: int) -> Tensor:
    """100 distinct uniform items a question, none from the user's history, int64 (Q, 100).

    Raises:
        ValueError: a user has met so many items that fewer than 100 are left.
    """
    rng = np.random.default_rng(seed)
    bounds = torch.searchsorted(holdout.user_rows, torch.arange(len(holdout.targets) + 1)).tolist()
    drawn = np.empty((len(holdout.targets), NEGATIVES), dtype=np.int64)
    for row in range(len(drawn)):
        history = np.unique(holdout.user_items[bounds[row] : bounds[row + 1]].numpy())
        left = holdout.n_items - len(history)
        if left < NEGATIVES:
            raise ValueError(f"{left} items are left as negatives, {NEGATIVES} are needed")
        # Positions among the items left over, shifted past the history's items below them.
        position = rng.choice(left, NEGATIVES, replace=False)
        gaps = history - np.arange(len(history))
        drawn[row] = position + np.searchsorted(gaps, position, side="right")
    return torch.from_numpy(drawn)


def evaluate(
    model: RankingModel, holdout: HoldoutSet, protocol: Protocol, seed: int = 0
) -> Metrics:
    """Metrics of a model on a held-out set.

    Args:
        model: gives a state after each history, and a table that scores it.
        holdout: the held-out set.
        protocol: which candidates.
        seed: of the negatives under `sampled-100`.
    """
    hidden_QF = model.states(holdout.items, holdout.lengths)
    if protocol == "full":
        return metrics(rank_among_unseen(hidden_QF, model.table, holdout))
    return metrics(rank_among_sampled(hidden_QF, model.table, holdout, seed))
