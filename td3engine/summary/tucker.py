"""The Tucker-factored summary (method, section 3): factors, soft sequences, scores.

S = softmax_over_items(G x1 U x2 T x3 V) need not be built: `query` gives C = G x1 U x2 T, and a
soft sequence is attention with query C, key V and value E (identity I-1).

In the paper a position is what a learner reads there and what it is to predict there. The two want
different things: what is read should be as plain as real events are, what is to be predicted as
broad as what may come next. With a temporal factor Y of their own the targets are
softmax_over_items(G x1 U x2 Y x3 V), and nothing else changes.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Generator, Tensor

from td3engine.config import SummaryConfig


@dataclass(frozen=True)
class TuckerSummary:
    """The factors, float32.

    Attributes:
        U: synthetic user factor, (mu, d1).
        T: temporal factor, (zeta, d2).
        G: relation core, (d1, d2, d).
        V: shared item factor, (n, d): the teacher's item table, never trained here.
        Y: temporal factor of the targets, (zeta, d2); None: what is to be predicted at a position
            is what is read there. Nothing comes before the first position, and nothing after the
            last: there Y's and T's rows are not used (`query`).
    """

    U: Tensor
    T: Tensor
    G: Tensor
    V: Tensor
    Y: Tensor | None = None

    @classmethod
    def initial(cls, config: SummaryConfig, V_ND: Tensor, generator: Generator) -> Self:
        """Untrained factors: U and T from N(0, initial_std^2), G by Kaiming's normal rule.

        The paper's 0.02 starts all synthetic positions at nearly the same, uniform distribution,
        which distilling must first undo; a wider start saves it that (docs/decisions.md). Targets
        of their own begin as what is read.
        """

        def normal(*shape: int, std: float) -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device) * std

        # Kaiming's fan-in of a tensor (d1, d2, d): everything but the first dimension.
        core_std = (2.0 / (config.time_rank * V_ND.shape[1])) ** 0.5
        U = normal(config.users, config.user_rank, std=config.initial_std)
        T = normal(config.length, config.time_rank, std=config.initial_std)
        G = normal(config.user_rank, config.time_rank, V_ND.shape[1], std=core_std)
        return cls(U, T, G, V_ND, T.clone() if config.targets == "own" else None)

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """(U, T, G), and Y if there is one: what distilling trains."""
        return (self.U, self.T, self.G) if self.Y is None else (self.U, self.T, self.G, self.Y)

    @property
    def positions(self) -> int:
        """How many queries there are: mu x zeta, with targets of their own twice as many."""
        return len(self.U) * len(self.T) * (1 if self.Y is None else 2)

    @property
    def numbers_learned(self) -> int:
        return sum(factor.numel() for factor in self.learned)

    @property
    def numbers_stored(self) -> int:
        return self.numbers_learned + self.V.numel()

    def with_learned(
        self, U: Tensor, T: Tensor, G: Tensor, Y: Tensor | None = None
    ) -> "TuckerSummary":
        """The same with other learned factors, as many as there are."""
        assert (Y is None) == (self.Y is None)
        return replace(self, U=U, T=T, G=G, Y=Y)

    def to(self, device: torch.device) -> "TuckerSummary":
        moved = self.with_learned(*(factor.to(device) for factor in self.learned))
        return replace(moved, V=self.V.to(device))

    def soft_sequences(self) -> "SoftSequences":
        """The queries of all positions."""
        return SoftSequences(query(*self.learned), len(self.T))


@dataclass(frozen=True)
class SoftSequences:
    """Synthetic sequences: what learners read at each position, and what they predict there.

    Two views of one tensor. Where targets are what is read next, both are the same.

    Attributes:
        stacked: (mu, zeta, .), or (mu, 2 zeta, .) with the targets behind the inputs. The last
            dimension is what a batch is cut from: queries, embeddings or probabilities.
        length: zeta.
    """

    stacked: Tensor
    length: int

    @property
    def inputs(self) -> Tensor:
        """What is read, (mu, zeta, .)."""
        return self.stacked[:, : self.length]

    @property
    def targets(self) -> Tensor:
        """What is to be predicted at each position, (mu, zeta, .)."""
        return self.stacked[:, -self.length :]


def query(U_UA: Tensor, T_TB: Tensor, G_ABD: Tensor, Y_TB: Tensor | None = None) -> Tensor:
    """C = G x1 U x2 T: the query of each synthetic position, (mu, zeta, d).

    With Y (mu, 2 zeta, d): behind the queries of what is read those of what is to be predicted. A
    causal learner is never asked for the first event and reads the last one for nothing, so no
    gradient would reach these two. They are what the position's other query is: others are not
    causal, and learn from sequences that SASRec distilled.
    """
    time = T_TB if Y_TB is None else torch.cat([T_TB[:-1], Y_TB[-1:], T_TB[:1], Y_TB[1:]])
    return torch.einsum("ua,tb,abd->utd", U_UA, time, G_ABD)
