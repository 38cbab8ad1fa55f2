"""A summary of real sequences and labels of its own.

The inputs are items, as in a log, and a position costs one index. The targets are queries as in
`tucker`: a position's label is a vector of d numbers, which stands for scores of all items (I-2).
It begins as the state of the teacher, and distilling changes it; the items stay.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.config import SummaryConfig
from td3engine.summary.packing import half, rounded
from td3engine.summary.tucker import SoftSequences, TuckerSummary


@dataclass(frozen=True)
class LabelledSummary:
    """Items and labels.

    Attributes:
        items: what learners read, int64 (mu, zeta).
        labels: what they should expect at positions 1 to zeta - 1, (mu, zeta - 1, d).
        V: item factor, (n, d): the teacher's item table, not trained.
        sharpness: of the inputs' queries, where a reader takes distributions (`pointing_queries`).
    """

    items: Tensor
    labels: Tensor
    V: Tensor
    sharpness: float

    @property
    def users(self) -> int:
        """mu."""
        return len(self.items)

    @property
    def length(self) -> int:
        """zeta."""
        return self.items.shape[1]

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """What distilling trains: the labels."""
        return (self.labels,)

    @property
    def positions(self) -> int:
        """How many queries there are: mu x zeta."""
        return self.items.numel()

    @property
    def numbers_learned(self) -> int:
        """Size of the labels."""
        return self.labels.numel()

    @property
    def numbers_stored(self) -> int:
        """Size of labels, items and V."""
        return self.numbers_learned + self.items.numel() + self.V.numel()

    def with_learned(self, labels: Tensor) -> "LabelledSummary":
        """The same summary with other labels."""
        return replace(self, labels=labels)

    def to(self, device: torch.device) -> "LabelledSummary":
        """The same summary on another device."""
        moved = self.items.to(device), self.labels.to(device), self.V.to(device)
        return LabelledSummary(*moved, self.sharpness)

    def queries(self) -> Tensor:
        """Queries of the targets, (mu, zeta, d); position 0 has none, and zeros."""
        return F.pad(self.labels, (0, 0, 1, 0))

    def soft_sequences(self) -> SoftSequences:
        """The queries of all positions, those of inputs pointing at their items."""
        inputs = pointing_queries(self.items, self.V, self.sharpness)
        return SoftSequences(torch.cat([inputs, inputs[:, :1], self.labels], 1), self.length)


def pointing_queries(items_UT: Tensor, V_ND: Tensor, sharpness: float) -> Tensor:
    """Queries C (mu, zeta, d) of one length that point at the items' rows of V.

    Their length is such that an event's item scores log(n) + `sharpness` above the mean item, on
    average; at a sharpness of zero it has about the weight of all others together.
    """
    centred_ND = V_ND - V_ND.mean(0)
    rows_UTD = centred_ND[items_UT]
    lengths_UT = rows_UTD.norm(dim=-1).clamp(min=torch.finfo(V_ND.dtype).eps)
    norm = (math.log(len(V_ND)) + sharpness) / float(lengths_UT.mean())
    queries: Tensor = rows_UTD * (norm / lengths_UT[..., None])
    return queries


AnySummary = TuckerSummary | LabelledSummary
"""The two forms of a summary."""


def as_stored(summary: AnySummary, config: SummaryConfig) -> AnySummary:
    """The summary with what it learned rounded as its file will hold it; V is as it was made."""
    if not config.label_step:
        return summary
    if isinstance(summary, LabelledSummary):
        return summary.with_learned(rounded(summary.labels, config.label_step))
    return summary.with_learned(*(half(factor) for factor in summary.learned))
