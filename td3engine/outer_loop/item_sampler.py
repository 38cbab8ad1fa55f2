"""A sampled softmax for learners on a summary.

A learner on a summary has no single target, but the summary's queries show where the targets'
weight lies. The items with most weight at some position are always part of the sum, each counting
once; the draws stand for the others. The item table is frozen: the sample is a smaller frozen one.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from td3engine.data.split import Split
from td3engine.losses.sampled_softmax import NegativeSampler, sampled_cross_entropy
from td3engine.losses.softmax import SCORES_AT_ONCE
from td3engine.models.recommender import Recommender

ITEMS_A_POSITION = 4

TopItems = Callable[[Tensor, int], Tensor]


class ItemSampler:
    """Samples of a frozen item table, for learners on a summary and for their real batches.

    Args:
        split: the log.
        model: learners over all items, whose scores are fixed.
        count: M, items drawn at once.
        top: finds the items of highest score of queries, as `highest`; None: among all.
    """

    def __init__(
        self, split: Split, model: Recommender, count: int, top: TopItems | None = None
    ) -> None:
        assert model.frozen is not None  # else scores would not be fixed
        self.model, self.table_ND = model, model.frozen
        self.top = top or partial(highest, model.frozen)
        self.negatives = NegativeSampler(split, min(count, model.n_items))

    def sampled_recommender(self, C_UTD: Tensor, rng: np.random.Generator) -> Recommender:
        """The model over the items that the queries C point at most, and over drawn ones."""
        certain_S = self.top(C_UTD, min(ITEMS_A_POSITION, self.model.n_items)).unique()
        drawn_M, log_weight_M = self._drawn(rng)
        others = torch.isin(drawn_M, certain_S, invert=True)
        items_R = torch.cat([certain_S, drawn_M[others]])
        log_weight_R = torch.cat([log_weight_M.new_zeros(len(certain_S)), log_weight_M[others]])
        part_RD = self.table_ND[items_R]
        return replace(self.model, n_items=len(part_RD), frozen=part_RD, log_weight=log_weight_R)

    def cross_entropy(
        self, hidden_KD: Tensor, targets_K: Tensor, rng: np.random.Generator
    ) -> Tensor:
        """Estimated cross-entropy of real targets (items), (K)."""
        return sampled_cross_entropy(hidden_KD, targets_K, self.table_ND, *self._drawn(rng))

    def _drawn(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        items_M, log_weight_M = self.negatives.draw(rng)
        return items_M.to(self.table_ND.device), log_weight_M.to(self.table_ND)


def highest(table_ND: Tensor, C_UTD: Tensor, count: int) -> Tensor:
    """The `count` items of highest score of each query C, int64 (mu zeta, count)."""
    queries = C_UTD.flatten(0, 1).split(max(1, SCORES_AT_ONCE // len(table_ND)))
    return torch.cat([(some @ table_ND.T).topk(count).indices for some in queries])
