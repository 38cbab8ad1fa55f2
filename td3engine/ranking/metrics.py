"""Ranks of the targets of a holdout set, and HR, NDCG and MRR (method, section 1).

Ties, and scores that are not numbers, count against the model. Otherwise one that gives all items
one score would rank first.
"""

import typing
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from td3engine.ranking.holdout import HoldoutSet
from td3engine.ranking.protocols import Protocol, asked, sample_negatives

CUTOFFS = (5, 10, 20)
SCORES_AT_ONCE = 4_000_000  # 16 MiB, for any number of items
FEWEST_ROWS = 8  # of a product of states and a table

Metrics = dict[str, float]
"""HR, NDCG and MRR by name and cutoff, such as "ndcg@10"; and "questions", how many there were."""

Scorer = Callable[[slice], Tensor]
"""Rows of a holdout set -> scores of all items after those histories, (B, n)."""


class EncodingModel(typing.Protocol):
    """A model whose scores are states times a table, such as a `TrainedModel`.

    Attributes:
        table: the scoring table, (n, f).
    """

    @property
    def table(self) -> Tensor: ...

    def states(self, items_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """States (B, f) after histories: item indices int64 (B, L), right-padded, and their
        lengths int64 (B)."""


@typing.runtime_checkable
class ScoringModel(typing.Protocol):
    """A model that scores all items itself, such as one that counts."""

    def scorer(self, cases: HoldoutSet) -> Scorer:
        """What scores these cases, some of them at a time."""


RankingModel = EncodingModel | ScoringModel


def scorer_of(model: RankingModel, cases: HoldoutSet) -> Scorer:
    """What scores these cases; the states of an `EncodingModel` are computed once, here."""
    if isinstance(model, ScoringModel):
        return model.scorer(cases)
    hidden_QF, table_NF = model.states(cases.items, cases.lengths), model.table

    def scores(rows: slice) -> Tensor:
        hidden_BF = hidden_QF[rows]
        # A product with few rows rounds equal columns differently by their place: no ties are left.
        padding = hidden_BF.new_zeros(max(0, FEWEST_ROWS - len(hidden_BF)), hidden_BF.shape[1])
        return (torch.cat([hidden_BF, padding]) @ table_NF.T)[: len(hidden_BF)]

    return scores


def metrics(ranks: Tensor) -> Metrics:
    """HR@k, NDCG@k and MRR@k for k = 5, 10, 20, averaged over questions, and their number.

    Args:
        ranks: rank of each question's target, 0 is best, int64 (Q).
    """
    place = ranks.double() + 1
    averages: Metrics = {"questions": len(ranks)}
    for k in CUTOFFS:
        hit = (place <= k).double()
        averages[f"hr@{k}"] = float(hit.mean())
        averages[f"ndcg@{k}"] = float((hit / torch.log2(place + 1)).mean())
        averages[f"mrr@{k}"] = float((hit / place).mean())
    return averages


def row_slices(cases: HoldoutSet) -> Iterator[slice]:
    """The cases, as many at a time as `SCORES_AT_ONCE` allows."""
    n_cases = len(cases.targets)
    at_once = max(1, SCORES_AT_ONCE // cases.n_items)
    for first in range(0, n_cases, at_once):
        yield slice(first, min(first + at_once, n_cases))


def rank_targets(
    scorer: Scorer, cases: HoldoutSet, protocols: Sequence[Protocol], seed: int = 0
) -> dict[Protocol, Tensor]:
    """Rank of each case's target under each protocol, 0 is best, int64 (Q).

    The rank of a case that a protocol does not ask about means nothing.

    Args:
        scorer: scores the cases.
        cases: Q of them.
        protocols: which items each target is ranked among.
        seed: of the negatives under `sampled-100`.
    """
    n_cases = len(cases.targets)
    ranks = {each: torch.empty(n_cases, dtype=torch.int64) for each in protocols}
    negatives = cases.targets.new_empty(n_cases, 0)
    if "sampled-100" in protocols:
        negatives = sample_negatives(cases, seed)
    for rows in row_slices(cases):
        scores = scorer(rows)
        targets = cases.targets[rows, None].to(scores.device)
        # "Not below" is true of ties, and wherever one of the two is not a number.
        ahead = ~(scores < scores.gather(1, targets))
        ahead.scatter_(1, targets, False)
        for protocol, rank in ranks.items():
            if protocol == "all":
                among = ahead
            elif protocol == "unseen":
                among = _unmet(ahead, cases, rows)
            else:
                among = ahead.gather(1, negatives[rows].to(ahead.device))
            rank[rows] = among.sum(1).cpu()
    return ranks


def _unmet(ahead_BN: Tensor, cases: HoldoutSet, rows: slice) -> Tensor:
    """The same, but False for the items that the user of each of these cases met before."""
    seen = slice(int(cases.seen_offsets[rows.start]), int(cases.seen_offsets[rows.stop]))
    unmet = ahead_BN.clone()
    device = ahead_BN.device
    unmet[(cases.seen_rows[seen] - rows.start).to(device), cases.seen_items[seen].to(device)] = (
        False
    )
    return unmet


def evaluate_all(
    model: RankingModel, holdout: HoldoutSet, protocols: Sequence[Protocol], seed: int = 0
) -> dict[Protocol, Metrics]:
    """Metrics of a model on a holdout set under several protocols; it scores each case once.

    Args:
        model: scores items after each history.
        holdout: the cases.
        protocols: which questions are asked, and which items each target is ranked among.
        seed: of the negatives under `sampled-100`.

    Raises:
        ValueError: a protocol has no question about this set.
    """
    asks = {protocol: asked(holdout, protocol) for protocol in protocols}
    for protocol, questions in asks.items():
        if not questions.any():
            raise ValueError(f"protocol {protocol} has no question about these cases")
    ranks = rank_targets(scorer_of(model, holdout), holdout, protocols, seed)
    return {protocol: metrics(ranks[protocol][asks[protocol]]) for protocol in protocols}


def evaluate(
    model: RankingModel, holdout: HoldoutSet, protocol: Protocol, seed: int = 0
) -> Metrics:
    """Metrics of a model on a holdout set under one protocol; see `evaluate_all`."""
    return evaluate_all(model, holdout, (protocol,), seed)[protocol]


def validation_ndcg(model: RankingModel, holdout: HoldoutSet) -> float:
    """NDCG@10 under the protocol by which checkpoints are chosen."""
    return evaluate(model, holdout, holdout.validate_by)["ndcg@10"]
