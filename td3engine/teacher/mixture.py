"""The teacher: a network and counting models, mixed.

Each part gives a distribution over items after a history. Items that the user met before and new
ones are kept apart: each part is normalised over either, and each has weights of its own,

    p(j) = r p_met(j)  if the user met j before,  else  (1 - r) p_new(j).

r is how probable it is that the next event repeats (`Repeat`). So a log without repeats ranks what
a user met last, one of check-ins first, and the same teacher answers both protocols. Weights are
chosen on validation (`mixing`), by the metric that all choices are made by: likelihood, the usual
way, prefers parts that are never very wrong to parts that rank well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from td3engine.counting.models import CountingModel, KernelModel
from td3engine.models.trained_model import TrainedModel
from td3engine.ranking.holdout import HoldoutSet
from td3engine.ranking.metrics import Scorer, scorer_of

PRIOR_EVENTS = 10.0  # of the log, that a user's own history is drawn towards
SMALLEST = 2.0**-20  # probability of a repeat, or of none, on a log where users repeat
FLOOR = 1e-6  # weight of the first part, so that no item is without a score

Part = TrainedModel | CountingModel

HISTORY = "history"


@dataclass(frozen=True)
class Repeat:
    """How probable it is that a user's next event repeats.

    Attributes:
        source: the part whose weight on met items it is; or `HISTORY`: the share of repeats in the
            user's own history, drawn towards that of the log.
        share: of repeats in the log, 0 to 1.
        odds: by which the odds of a repeat are multiplied.
    """

    source: str
    share: float
    odds: float = 1.0

    def probability(self, from_source: Tensor) -> Tensor:
        """What the source says, its odds multiplied; never sure, or items of the other kind would
        all have the score zero. Where nothing repeats they are meant to."""
        probability = self.odds * from_source / (self.odds * from_source + 1 - from_source)
        return probability.clamp(min(SMALLEST, self.share), 1 - SMALLEST)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of models, itself a model that ranks.

    Attributes:
        parts: K models, each under its name.
        new_weights: of each part among items that are new to the user, (K).
        met_weights: of each part among items that the user met, (K).
        repeat: how probable a repeat is.
    """

    parts: dict[str, Part]
    new_weights: Tensor
    met_weights: Tensor
    repeat: Repeat

    @property
    def stored_bytes(self) -> int:
        """Size of the parts that have a weight, uncompressed."""
        used = (self.new_weights > FLOOR) | (self.met_weights > FLOOR)
        return sum(
            4 * (part.parameters.numel() + part.table.numel())
            if isinstance(part, TrainedModel)
            else part.stored_bytes
            for part, is_used in zip(self.parts.values(), used.tolist(), strict=True)
            if is_used
        )

    def scorer(self, cases: HoldoutSet) -> Scorer:
        """p(j) of the module's docstring, (B, n)."""
        names = list(self.parts)
        distributions = PartDistributions(list(self.parts.values()), cases)
        from_history_Q = repeat_share_of_users(cases, self.repeat.share)

        def scores(rows: slice) -> Tensor:
            met = met_items(cases, rows)
            each = distributions.of(rows)
            new_BN = mixed(each, self.new_weights, met)
            met_BN = mixed(each, self.met_weights, ~met)
            if self.repeat.source == HISTORY:
                source_B = from_history_Q[rows]
            else:
                source_B = share_of_met(each[names.index(self.repeat.source)], met)
            repeat_B1 = self.repeat.probability(source_B)[:, None]
            return torch.where(met, repeat_B1 * met_BN, (1 - repeat_B1) * new_BN)

        return scores


def mixed(parts: Sequence[Tensor], weights_K: Tensor, without: Tensor) -> Tensor:
    """The mixture of distributions (B, n) over the items that are not left `without` (B, n)."""
    total_BN = torch.zeros(without.shape)
    for part, weight in zip(parts, weights_K, strict=True):
        if weight:
            total_BN += weight * normalised(part.masked_fill(without, 0))
    # Parts that know nothing of a user leave it to the others.
    return normalised(total_BN)


def share_of_met(part_BN: Tensor, met: Tensor) -> Tensor:
    """The part's weight on items that the user met, of its whole weight, (B)."""
    return normalised(part_BN).masked_fill(~met, 0).sum(1)


class PartDistributions:
    """What each part expects after the histories of some cases.

    Args:
        parts: networks, whose scores are logits, and counting models, whose scores are weights.
        cases: Q of them.
    """

    def __init__(self, parts: Sequence[Part], cases: HoldoutSet) -> None:
        self._weights = [_weights(part, cases) for part in parts]

    def of(self, rows: slice) -> list[Tensor]:
        """For each part non-negative weights of all items, not normalised, float32 (B, n) on the
        CPU."""
        return [weights(rows).float().cpu() for weights in self._weights]


def _weights(part: Part, cases: HoldoutSet) -> Scorer:
    """What a part expects. Where a kernel knows nothing it leaves the item to other parts."""
    if isinstance(part, TrainedModel):
        logits = scorer_of(part, cases)
        return lambda rows: logits(rows).softmax(1)
    scores = part.weights(cases) if isinstance(part, KernelModel) else part.scorer(cases)
    return lambda rows: scores(rows).clamp(min=0)


def met_items(cases: HoldoutSet, rows: slice) -> Tensor:
    """Whether the user of each of these cases met each item before, bool (B, n)."""
    events = slice(int(cases.seen_offsets[rows.start]), int(cases.seen_offsets[rows.stop]))
    met = torch.zeros(rows.stop - rows.start, cases.n_items, dtype=torch.bool)
    met[cases.seen_rows[events] - rows.start, cases.seen_items[events]] = True
    return met


def repeat_share_of_users(cases: HoldoutSet, share: float) -> Tensor:
    """Of each case's user, from its own history, drawn towards the log's share, (Q)."""
    n_cases = len(cases.targets)
    events = torch.bincount(cases.seen_rows, minlength=n_cases)
    pairs = torch.unique(cases.seen_rows * cases.n_items + cases.seen_items)
    distinct = torch.bincount(pairs // cases.n_items, minlength=n_cases)
    # The first event cannot repeat.
    return (events - distinct + PRIOR_EVENTS * share) / (events - 1 + PRIOR_EVENTS)


def normalised(weights_BN: Tensor) -> Tensor:
    """Rows of sum 1; rows without weight stay without."""
    total_B1 = weights_BN.sum(1, keepdim=True)
    return weights_BN / torch.where(total_B1 == 0, 1, total_B1)
