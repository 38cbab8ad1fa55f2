"""The teacher: a network and counting models, mixed.

Each part gives a distribution over items after a history. Items that the user met before and new
ones are kept apart: each part is normalised over either, and each has weights of its own,

    p(j) = r p_met(j)  if the user met j before,  else  (1 - r) p_new(j).

r is how probable it is that this user repeats: the share of repeats in its own history, drawn
towards that of the log. So a log without repeats ranks what a user met last, one of check-ins
first, and the same teacher answers both protocols. Weights are chosen on validation (`mixing`), by
the metric that all choices are made by: likelihood, the usual way, prefers parts that are never
very wrong to parts that rank well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from td3engine.counting.models import CountingModel
from td3engine.models.trained_model import TrainedModel
from td3engine.ranking.holdout import HoldoutSet
from td3engine.ranking.metrics import Scorer, scorer_of

PRIOR_EVENTS = 10.0  # of the log, that a user's own history is drawn towards
FLOOR = 1e-6  # weight of the first part, so that no item is without a score

Part = TrainedModel | CountingModel


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of models, itself a model that ranks.

    Attributes:
        parts: K models, each under its name.
        new_weights: of each part among items that are new to the user, (K).
        met_weights: of each part among items that the user met, (K).
        repeat_share: how often users repeat, 0 to 1.
    """

    parts: dict[str, Part]
    new_weights: Tensor
    met_weights: Tensor
    repeat_share: float

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
        distributions = PartDistributions(list(self.parts.values()), cases)
        repeat_Q = repeat_probability(cases, self.repeat_share)

        def scores(rows: slice) -> Tensor:
            met = met_items(cases, rows)
            new_BN, met_BN = torch.zeros(met.shape), torch.zeros(met.shape)
            for part, distribution in enumerate(distributions.of(rows)):
                new, repeated = self.new_weights[part], self.met_weights[part]
                if new:
                    new_BN += new * normalised(distribution.masked_fill(met, 0))
                if repeated:
                    met_BN += repeated * normalised(distribution.masked_fill(~met, 0))
            # Parts that know nothing of a user leave it to the others.
            new_BN, met_BN = normalised(new_BN), normalised(met_BN)
            repeat_B1 = repeat_Q[rows, None]
            return torch.where(met, repeat_B1 * met_BN, (1 - repeat_B1) * new_BN)

        return scores


class PartDistributions:
    """What each part expects after the histories of some cases.

    Args:
        parts: networks, whose scores are logits, and counting models, whose scores are weights.
        cases: Q of them.
    """

    def __init__(self, parts: Sequence[Part], cases: HoldoutSet) -> None:
        self._scorers = [(scorer_of(part, cases), isinstance(part, TrainedModel)) for part in parts]

    def of(self, rows: slice) -> list[Tensor]:
        """For each part non-negative weights of all items, not normalised, (B, n) on the CPU."""
        return [
            (scores(rows).softmax(1) if logits else scores(rows).clamp(min=0)).cpu()
            for scores, logits in self._scorers
        ]


def met_items(cases: HoldoutSet, rows: slice) -> Tensor:
    """Whether the user of each of these cases met each item before, bool (B, n)."""
    events = slice(int(cases.seen_offsets[rows.start]), int(cases.seen_offsets[rows.stop]))
    met = torch.zeros(rows.stop - rows.start, cases.n_items, dtype=torch.bool)
    met[cases.seen_rows[events] - rows.start, cases.seen_items[events]] = True
    return met


def repeat_probability(cases: HoldoutSet, share: float) -> Tensor:
    """Of each case's user, from its own history and the log's share, (Q)."""
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
