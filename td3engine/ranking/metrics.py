"""HR, NDCG and MRR under both protocols (method, section 1).

`full` ranks the held-out item among all items that the user has not seen. `sampled-100` ranks it
among 100 uniform negatives from outside the user's whole history; it is the paper's protocol and is
known to be biased. The two are always reported together.
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
SCORES_AT_ONCE = 4_000_000  # 16 MiB, for any number of items

Metrics = dict[str, float]


class RankingModel(typing.Protocol):
    """A model that can be measured: a `TrainedModel`, or a popularity count.

    Attributes:
        table: the scoring table, (n, f).
    """

    @property
    def table(self) -> Tensor: ...

    def states(self, items_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """States (B, f) after histories: item indices int64 (B, L), right-padded, and their
        lengths int64 (B)."""


def metrics(ranks: Tensor) -> Metrics:
    """HR@k, NDCG@k and MRR@k for k = 5, 10, 20, averaged over cases.

    Args:
        ranks: rank of each case's target, 0 is best, int64 (Q).
    """
    place = ranks.double() + 1
    averages: Metrics = {}
    for k in CUTOFFS:
        hit = (place <= k).double()
        averages[f"hr@{k}"] = float(hit.mean())
        averages[f"ndcg@{k}"] = float((hit / torch.log2(place + 1)).mean())
        averages[f"mrr@{k}"] = float((hit / place).mean())
    return averages


def rank_among_unseen(hidden_QD: Tensor, table_ND: Tensor, holdout: HoldoutSet) -> Tensor:
    """Rank of each target among all unseen items, int64 (Q). Ties count against the model.

    Otherwise a model that gives all items one score would rank first. The comparison is "not
    below", so that NaN scores count against the model as well.

    Args:
        hidden_QD: state after each case's history, (Q, f).
        table_ND: scoring table, (n, f).
        holdout: the cases.
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
        # The target's own column is masked as well: it counts once, as the target.
        scores.scatter_(1, targets, -torch.inf)
        ranks[rows] = (~(scores < target)).sum(1).cpu()
    return ranks


def rank_among_sampled(
    hidden_QD: Tensor, table_ND: Tensor, holdout: HoldoutSet, seed: int
) -> Tensor:
    """Rank of each target among 100 uniform items from outside the user's history, int64 (Q).

    Arguments as for `rank_among_unseen`; `seed` is of the negatives.

    Raises:
        ValueError: a user has seen so many items that fewer than 100 are left.
    """
    candidates = torch.cat([holdout.targets[:, None], sample_negatives(holdout, seed)], 1)
    hidden, table = hidden_QD.cpu(), table_ND.cpu()
    ranks = torch.empty(len(candidates), dtype=torch.int64)
    at_once = max(1, SCORES_AT_ONCE // (candidates.shape[1] * table.shape[1]))
    for first in range(0, len(ranks), at_once):
        rows = slice(first, first + at_once)
        # A matrix product would round equal columns differently by their place, and break ties.
        scores = (hidden[rows, None] * table[candidates[rows]]).sum(-1)
        ranks[rows] = (~(scores[:, 1:] < scores[:, :1])).sum(1)
    return ranks


def available_protocols(holdout: HoldoutSet) -> tuple[Protocol, ...]:
    """Both protocols; `full` alone if a user has fewer than 100 unseen items."""
    pairs = torch.unique(holdout.user_rows * holdout.n_items + holdout.user_items)
    most_seen = torch.bincount(pairs // holdout.n_items, minlength=1).max()
    return PROTOCOLS if holdout.n_items - int(most_seen) >= NEGATIVES else ("full",)


def sample_negatives(holdout: HoldoutSet, seed: int) -> Tensor:
    """100 distinct uniform items a case, none from the user's history, int64 (Q, 100).

    Raises:
        ValueError: a user has seen so many items that fewer than 100 are left.
    """
    rng = np.random.default_rng(seed)
    bounds = torch.searchsorted(holdout.user_rows, torch.arange(len(holdout.targets) + 1)).tolist()
    negatives = np.empty((len(holdout.targets), NEGATIVES), dtype=np.int64)
    for row in range(len(negatives)):
        history = np.unique(holdout.user_items[bounds[row] : bounds[row + 1]].numpy())
        left = holdout.n_items - len(history)
        if left < NEGATIVES:
            raise ValueError(f"{left} items are left as negatives, {NEGATIVES} are needed")
        # Positions among the unseen items, shifted past the history's items below them.
        position = rng.choice(left, NEGATIVES, replace=False)
        gaps = history - np.arange(len(history))
        negatives[row] = position + np.searchsorted(gaps, position, side="right")
    return torch.from_numpy(negatives)


def evaluate(
    model: RankingModel, holdout: HoldoutSet, protocol: Protocol, seed: int = 0
) -> Metrics:
    """Metrics of a model on a holdout set.

    Args:
        model: computes a state after each history, and has a table that scores it.
        holdout: the cases.
        protocol: which items each target is ranked among.
        seed: of the negatives under `sampled-100`.

    Raises:
        ValueError: `sampled-100`, and a user has fewer than 100 unseen items.
    """
    hidden_QF = model.states(holdout.items, holdout.lengths)
    if protocol == "full":
        return metrics(rank_among_unseen(hidden_QF, model.table, holdout))
    return metrics(rank_among_sampled(hidden_QF, model.table, holdout, seed))
