"""The interface of all backbones, and what the causal ones share.

A backbone is a file of `td3engine/models/backbones`. Its name is the file's, and the file sets
`BACKBONE` to a `BackboneSpec`.

A backbone owns no parameters. They lie in one flat vector, so an Adam step over a whole model is
ten kernels instead of hundreds, and an unroll treats the model as one tensor. The item table is no
part of that vector, because its owner depends on the mode: in `shared-items` it is the summary's
V, frozen; in `from-scratch` the learner trains its own.

Events come embedded, so real items and synthetic distributions are the same to a backbone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Generator, Tensor

from td3engine.config import BackboneConfig


@dataclass(frozen=True)
class TargetPositions:
    """The events of a batch that a training pass predicts: event `at[k]` of row `rows[k]`.

    An event may occur several times; each occurrence counts.

    Attributes:
        rows, at: int64 (K).
        per_row: number of targets a row, where all rows have as many and lie one after another.
        all_positions: the targets of every row are all its events but the first, in order.
    """

    rows: Tensor
    at: Tensor
    per_row: int | None = None
    all_positions: bool = False

    @property
    def selected_per_row(self) -> int | None:
        """Number of targets a row, unless all positions are targets."""
        return None if self.all_positions else self.per_row


class AnalyticEncoder(Protocol):
    """Derivatives of an encoder in closed form. Each pass runs once, in the order below."""

    def forward(self, input_BLD: Tensor) -> Tensor:
        """Hidden states (K, d) of embedded events (B, L, d)."""

    def backward(self, to_hidden_KD: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients with respect to the flat parameters (P) and the input (B, L, d)."""

    def jvp(self, parameters_P: Tensor, input_BLD: Tensor | None) -> Tensor:
        """Tangent of the hidden states (K, d) along a direction; None is a zero input direction."""

    def backward_jvp(self, to_hidden_KD: Tensor) -> tuple[Tensor, Tensor]:
        """Tangents of both gradients along that direction, given that of the states' gradient."""


class Backbone(Protocol):
    """What the engine needs of a recommender.

    Scoring is tied and not a backbone's: logits are hidden states times the item table, plus an
    item bias where `biased`. A causal backbone derives from `Causal` and `FlatParameters` and
    writes `__init__`, `dropout` and `encode`; the other methods are inherited.

    `predict` and `last` must be twice differentiable with respect to parameters and events, for the
    outer loop differentiates the learners' gradients. Fused attention kernels are not. Both accept
    float64, and neither draws random numbers: dropout comes in as masks.

    Attributes:
        config: kind and sizes.
        history: most events of a history that it reads; a training row has one more.
        causal: a state depends on no later event. Otherwise the backbone predicts an event from
            those around it (cloze).
        biased: scores have a trained bias per item.
        has_analytic_grad: `analytic` is implemented.
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
        """Scaled dropout masks for training passes over rows of `events` events.

        Args:
            sequences: rows a pass.
            events: events a row, the last target included.
            generator: source of the masks, and their device.
            per_row: `TargetPositions.selected_per_row` of the passes. A backbone may leave out the
                masks of positions that are not targets; a target that occurs twice then has two.
            passes: number of passes; their masks follow one another.

        Returns:
            One flat tensor of zeros and 1 / (1 - rate), or None if the rate is zero. Only `predict`
            of the same backbone interprets it.
        """

    def draw_targets(self, lengths_B: Tensor, generator: Generator) -> TargetPositions:
        """Targets of a training pass over real rows of these lengths, by the model's own rule."""

    def predict(
        self,
        parameters_P: Tensor,
        events_BLD: Tensor,
        lengths_B: Tensor,
        targets: TargetPositions,
        dropout: Tensor | None,
    ) -> Tensor:
        """Hidden states (K, d) that predict the targets of embedded rows (B, L, d).

        Row b holds `lengths_B[b]` events, then padding; L <= history + 1. `dropout` is what
        `dropout` of B sequences and L events returned.
        """

    def last(self, parameters_P: Tensor, events_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Hidden states (B, d) that predict what follows each row, L <= history, no dropout."""

    def analytic(
        self,
        parameters_P: Tensor,
        targets: TargetPositions | None,
        dropout: Tensor | None,
        rows: int,
    ) -> AnalyticEncoder:
        """`predict` with its derivatives in closed form.

        Args:
            parameters_P: flat parameters.
            targets: as many for each row; None is the states at all positions.
            dropout: masks, as `predict` has them.
            rows: number of rows B, all of one length.

        Raises:
            NotImplementedError: `has_analytic_grad` is false.
        """


class Causal(ABC):
    """A backbone whose state at a position depends on the events up to it and predicts the next."""

    causal = True
    biased = False
    has_analytic_grad = False

    @abstractmethod
    def encode(self, parameters_P: Tensor, input_BLD: Tensor, dropout: Tensor | None) -> Tensor:
        """Hidden states (B, L, d) of embedded inputs (B, L, d), L <= history.

        `dropout` is what `dropout` of B sequences and L + 1 events returned.
        """

    def analytic(
        self,
        _parameters_P: Tensor,
        _target_positions: TargetPositions | None,
        _dropout: Tensor | None,
        _rows: int,
    ) -> AnalyticEncoder:
        raise NotImplementedError("this backbone is differentiated by autograd")

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
        # Padding lies to the right, where no causal state looks.
        hidden_BLD = self.encode(parameters_P, events_BLD[:, :-1], dropout)
        return hidden_BLD[targets.rows, targets.at - 1]

    def last(self, parameters_P: Tensor, events_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        hidden_BLD = self.encode(parameters_P, events_BLD, None)
        rows = torch.arange(len(events_BLD), device=events_BLD.device)
        return hidden_BLD[rows, lengths_B - 1]


class BackboneOptions(BaseModel):
    """Base of a backbone's options. By itself it has none, so every option is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone's file declares, as `BACKBONE`.

    Attributes:
        build: makes the backbone from its configuration and the most events that it reads.
        options: the model that checks `backbone.options`. Values from a command line are strings,
            so its fields must not be strict.
        learner: settings of `LearnerConfig` for learners of this backbone on a summary that another
            backbone distilled. Settings left out are those of the summary.
    """

    build: Callable[[BackboneConfig, int], Backbone]
    options: type[BackboneOptions] = BackboneOptions
    learner: Mapping[str, Any] = field(default_factory=dict)
