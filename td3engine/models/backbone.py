"""The one interface of all backbones, and what the causal ones share.

A backbone owns no parameters: they live in one flat vector, so that an Adam step over a whole
model is ten kernels instead of hundreds and an unroll can treat "the model" as one tensor.
The item table is no part of that vector, because who owns it depends on the mode: in
`shared-items` it is the summary's V, frozen; in `from-scratch` the learner trains its own.

Events come embedded, so a row of real items and a row of synthetic distributions look the same.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from td3engine.config import BackboneConfig


@dataclass(frozen=True)
class TargetPositions:
    """Which events of a batch a training pass predicts: event `at[k]` of row `rows[k]`, int64 (K).

    An event may be asked for more than once; each time counts.

    Attributes:
        each: how many events every row asks for, row after row; None where rows differ.
        whole: every row asks for all its events but the first, in order.
    """

    rows: Tensor
    at: Tensor
    per_row: int | None = None
    all_positions: bool = False

    @property
    def selected_per_row(self) -> int | None:
        """How many events every row asks for, if that is not all of them."""
        return None if self.all_positions else self.per_row


class AnalyticEncoder(Protocol):
    """An encoder's derivatives written out: each pass once, in this order (`analytic`)."""

    def forward(self, input_BLD: Tensor) -> Tensor:
        """Hidden states (K, d) of embedded events (B, L, d)."""

    def backward(self, to_hidden_KD: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients: of the flat parameters (P), and of the input (B, L, d)."""

    def jvp(self, parameters_P: Tensor, input_BLD: Tensor | None) -> Tensor:
        """Change of the hidden states along a direction; None leaves the input as it is."""

    def backward_jvp(self, to_hidden_KD: Tensor) -> tuple[Tensor, Tensor]:
        """Change of both gradients along that direction, given that of the states' gradient."""


class Backbone(Protocol):
    """What every recommender offers. Scoring is tied: logits = hidden E^T, plus an item bias where
    `biased`.

    Attributes:
        config: kind and sizes.
        history: most events of a history that it reads; a training row has one more.
        causal: predicts an event from those before it; else from those around it (cloze).
        biased: scores carry a trained bias per item.
        written_out: it has `analytic`.
    """

    config: BackboneConfig
    history: int
    causal: bool
    biased: bool
    has_analytic_grad: bool

    @property
    def n_parameters(self) -> int:
        """Length P of the flat parameter vector."""

    def initial(self, generator: Generator) -> Tensor:
        """Fresh parameters (P), float32, on the generator's device."""

    def named(self, parameters_P: Tensor) -> dict[str, Tensor]:
        """Views of the flat vector by name, each in its own shape."""

    def dropout(
        self,
        sequences: int,
        events: int,
        generator: Generator,
        per_row: int | None = None,
        passes: int = 1,
    ) -> Tensor | None:
        """Scaled dropout masks of training passes over rows of so many events, one flat tensor, a
        pass after the other; None when dropout is zero. With `TargetPositions.per_row` a backbone
        may leave out what is not asked for; an event that is asked for twice then has two masks."""

    def draw_targets(self, lengths_B: Tensor, generator: Generator) -> TargetPositions:
        """What a training pass over rows of these lengths predicts by the model's own rule."""

    def predict(
        self,
        parameters_P: Tensor,
        events_BLD: Tensor,
        lengths_B: Tensor,
        targets: TargetPositions,
        dropout: Tensor | None,
    ) -> Tensor:
        """The hidden states (K, d) that predict the asked events of embedded rows (B, L, d), of
        which row b holds lengths[b] events and then padding; L <= history + 1. Twice
        differentiable with respect to parameters and events."""

    def last(self, parameters_P: Tensor, events_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """The hidden states (B, d) that predict what follows each row, L <= history."""

    def analytic(
        self,
        parameters_P: Tensor,
        targets: TargetPositions | None,
        dropout: Tensor | None,
        rows: int,
    ) -> AnalyticEncoder:
        """`predict` of so many rows of one length that ask for as many events each, with its
        derivatives written out; with None for `asked`, the states at all positions.

        Raises:
            NotImplementedError: they are not written out.
        """


class Causal(ABC):
    """A backbone whose state at a position has read the events up to it, and predicts the next."""

    causal = True
    biased = False
    has_analytic_grad = False

    @abstractmethod
    def encode(self, parameters_P: Tensor, input_BLD: Tensor, dropout: Tensor | None) -> Tensor:
        """Hidden states (B, L, d) for embedded inputs (B, L, d), L <= history."""

    def analytic(
        self,
        _parameters_P: Tensor,
        _target_positions: TargetPositions | None,
        _dropout: Tensor | None,
        _rows: int,
    ) -> AnalyticEncoder:
        raise NotImplementedError("derivatives go by autograd")

    def draw_targets(self, lengths_B: Tensor, _: Generator) -> TargetPositions:
        """Every event but the first: one pass serves all of them."""
        at_L = torch.arange(1, int(lengths_B.max()), device=lengths_B.device)
        rows, at = torch.nonzero(at_L < lengths_B[:, None], as_tuple=True)
        return TargetPositions(rows, at + 1)

    def predict(
        self,
        parameters_P: Tensor,
        events_BLD: Tensor,
        _lengths_B: Tensor,
        targets: TargetPositions,
        dropout: Tensor | None,
    ) -> Tensor:
        # Padding lies to the right, where a causal state never looks.
        hidden_BLD = self.encode(parameters_P, events_BLD[:, :-1], dropout)
        return hidden_BLD[targets.rows, targets.at - 1]

    def last(self, parameters_P: Tensor, events_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        hidden_BLD = self.encode(parameters_P, events_BLD, None)
        rows = torch.arange(len(events_BLD), device=events_BLD.device)
        return hidden_BLD[rows, lengths_B - 1]
