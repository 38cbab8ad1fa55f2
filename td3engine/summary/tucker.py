"""The Tucker-factored summary: factors and queries (method, sections 2 and 3).

S = softmax_over_items(G x1 U x2 T x3 V) is never built. `query` computes C = G x1 U x2 T, and the
embedding of a soft sequence is attention with query C, key V and value E (identity I-1).

In the paper one distribution at a position is both input and target. The two have different needs:
an input should be as sharp as a real event, a target as broad as what may come next. So targets can
have a temporal factor Y: they are softmax_over_items(G x1 U x2 Y x3 V), and nothing else changes.
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
        V: shared item factor, (n, d): the teacher's item table, not trained.
        Y: temporal factor of the targets, (zeta, d2); None: the target of a position is its input.
            The first row of Y and the last row of T are not used (`query`).
    """

    U: Tensor
    T: Tensor
    G: Tensor
    V: Tensor
    Y: Tensor | None = None

    @classmethod
    def initial(cls, config: SummaryConfig, V_ND: Tensor, generator: Generator) -> Self:
        """Untrained factors: U and T from N(0, initial_std^2), G by Kaiming's normal rule.

        The paper's standard deviation, 0.02, starts all positions near the uniform distribution,
        which distilling must first undo; a larger one avoids that (docs/decisions.md). Y starts as
        a copy of T.
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
    def users(self) -> int:
        """mu."""
        return len(self.U)

    @property
    def length(self) -> int:
        """zeta."""
        return len(self.T)

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """The factors that distilling trains: (U, T, G), and Y if there is one."""
        return (self.U, self.T, self.G) if self.Y is None else (self.U, self.T, self.G, self.Y)

    @property
    def positions(self) -> int:
        """How many queries there are: mu x zeta, or 2 mu x zeta with Y."""
        return len(self.U) * len(self.T) * (1 if self.Y is None else 2)

    @property
    def numbers_learned(self) -> int:
        """Size of the trained factors."""
        return sum(factor.numel() for factor in self.learned)

    @property
    def numbers_stored(self) -> int:
        """Size of all factors, V included."""
        return self.numbers_learned + self.V.numel()

    def with_learned(
        self, U: Tensor, T: Tensor, G: Tensor, Y: Tensor | None = None
    ) -> "TuckerSummary":
        """The same summary with other trained factors, as many as it has."""
        assert (Y is None) == (self.Y is None)
        return replace(self, U=U, T=T, G=G, Y=Y)

    def to(self, device: torch.device) -> "TuckerSummary":
        """The same summary on another device."""
        moved = self.with_learned(*(factor.to(device) for factor in self.learned))
        return replace(moved, V=self.V.to(device))

    def queries(self) -> Tensor:
        """The queries of all positions, as `query` has them."""
        return query(*self.learned)

    def soft_sequences(self) -> "SoftSequences":
        """The queries of all positions."""
        return SoftSequences(self.queries(), self.length)


@dataclass(frozen=True)
class SoftSequences:
    """Inputs and targets of synthetic sequences, two views of one tensor.

    Without a factor Y they are the same view.

    Attributes:
        stacked: (mu, zeta, .), or (mu, 2 zeta, .): inputs, then targets. The last dimension
            holds queries, embeddings or probabilities.
        length: zeta.
    """

    stacked: Tensor
    length: int

    @property
    def inputs(self) -> Tensor:
        """Inputs, (mu, zeta, .)."""
        return self.stacked[:, : self.length]

    @property
    def targets(self) -> Tensor:
        """Targets, (mu, zeta, .): to be predicted at each position from the positions before."""
        return self.stacked[:, -self.length :]


def query(U_UA: Tensor, T_TB: Tensor, G_ABD: Tensor, Y_TB: Tensor | None = None) -> Tensor:
    """C = G x1 U x2 T: the query of each synthetic position, (mu, zeta, d).

    With Y, (mu, 2 zeta, d): queries of inputs, then of targets. A causal learner has no target at
    the first position and no use for the last input, so these two would get no gradient. Each takes
    the other query of its position instead, because learners that are not causal (BERT4Rec) read
    both.
    """
    time = T_TB if Y_TB is None else torch.cat([T_TB[:-1], Y_TB[-1:], T_TB[:1], Y_TB[1:]])
    # Two products, the small one first: torch's einsum of three would build (mu, zeta, d1, d2).
    across_time_ATD = torch.einsum("tb,abd->atd", time, G_ABD)
    return torch.einsum("ua,atd->utd", U_UA, across_time_ATD)
