"""Backbones: the recommenders that teach and learn. One file a model, one interface.

A backbone owns no parameters: they live in one flat vector, so that an Adam step over a whole
model is ten kernels instead of hundreds and an unroll can treat "the model" as one tensor.
The item table is no part of that vector, because who owns it depends on the mode: in
`shared-items` it is the summary's V, frozen; in `from-scratch` the learner trains its own.
"""

from typing import Protocol

from torch import Generator, Tensor

from td3engine.backbones.sasrec import SASRec
from td3engine.config import BackboneConfig


class Backbone(Protocol):
    """What every recommender offers; scoring is tied: logits = hidden E^T."""

    history: int

    @property
    def n_parameters(self) -> int:
        """Length P of the flat parameter vector."""

    def initial(self, generator: Generator) -> Tensor:
        """Fresh parameters (P), float32, on the generator's device."""

    def dropout(self, sequences: int, positions: int, generator: Generator) -> Tensor | None:
        """Scaled dropout masks of one pass, one flat tensor; None when dropout is zero."""

    def named(self, parameters_P: Tensor) -> dict[str, Tensor]:
        """Views of the flat vector by name, each in its own shape."""

    def encode(self, parameters_P: Tensor, input_BLD: Tensor, dropout: Tensor | None) -> Tensor:
        """Hidden states (B, L, d), causal, for embedded inputs (B, L, d), L <= history."""


def build_backbone(config: BackboneConfig, history: int) -> Backbone:
    """The backbone that `config` names, reading at most `history` positions."""
    return SASRec(config, history)


__all__ = ["Backbone", "SASRec", "build_backbone"]
