"""SASRec: a causal transformer over item embeddings (Kang and McAuley, ICDM 2018).

Post-norm layers with GELU, as in the published TD3 and RecBole configurations. Written as a
function of one flat parameter vector with the plain (math) attention, because the inner loop is
differentiated twice and the fused attention kernels have no double backward.
"""

import torch
from torch import Generator, Tensor

from td3engine.backbones.flat import FlatParameters, Shape, cut_masks, draw_masks
from td3engine.backbones.interface import Asked, Causal, Passes
from td3engine.backbones.sasrec_by_hand import SASRecByHand
from td3engine.backbones.transformer import mask_shapes, parameter_shapes, transform
from td3engine.config import BackboneConfig


class SASRec(FlatParameters, Causal):
    """A causal transformer; see `Backbone` for the interface."""

    written_out = True

    def __init__(self, config: BackboneConfig, history: int) -> None:
        super().__init__(_shapes(config, history))
        self.config = config
        self.history = history

    def dropout(self, sequences: int, events: int, generator: Generator) -> Tensor | None:
        shapes = mask_shapes(self.config, sequences, events - 1)
        return draw_masks(shapes, self.config.dropout, generator)

    def encode(self, parameters_P: Tensor, input_BLD: Tensor, dropout: Tensor | None) -> Tensor:
        sequences, positions, _ = input_BLD.shape
        p = self.named(parameters_P)
        masks = cut_masks(dropout, mask_shapes(self.config, sequences, positions))
        future = torch.ones(positions, positions, dtype=torch.bool, device=input_BLD.device).triu(1)
        return transform(self.config, p, input_BLD + p["position"][:positions], future, masks)

    def by_hand(
        self, parameters_P: Tensor, asked: Asked | None, dropout: Tensor | None, rows: int
    ) -> Passes:
        at_BA = None
        if asked is not None and not asked.whole:
            assert asked.each is not None, "rows ask for unlike numbers of events"
            at_BA = asked.at.view(rows, asked.each) - 1
        return SASRecByHand(self.config, self.named, parameters_P, dropout, at_BA)


def _shapes(config: BackboneConfig, history: int) -> dict[str, Shape]:
    return {"position": (history, config.hidden), **parameter_shapes(config)}
