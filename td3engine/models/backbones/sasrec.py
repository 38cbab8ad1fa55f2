"""SASRec: a causal transformer over item embeddings (Kang and McAuley, ICDM 2018).

Post-norm layers with GELU, as in the published TD3 and RecBole configurations. Attention is the
plain (math) one, because the inner loop is differentiated twice and the fused attention kernels
have no double backward.
"""

import torch
from torch import Generator, Tensor

from td3engine.config import BackboneConfig
from td3engine.models.analytic.sasrec import AnalyticSASRec
from td3engine.models.backbone import AnalyticEncoder, BackboneSpec, Causal, TargetPositions
from td3engine.models.flat_parameters import FlatParameters, Shape, cut_masks, draw_masks
from td3engine.models.transformer import mask_shapes, parameter_shapes, transform


class SASRec(FlatParameters, Causal):
    """A causal transformer; see `Backbone` for the interface."""

    has_analytic_grad = True

    def __init__(self, config: BackboneConfig, history: int) -> None:
        super().__init__(_shapes(config, history))
        self.config = config
        self.history = history

    def dropout(
        self,
        sequences: int,
        events: int,
        generator: Generator,
        per_row: int | None = None,
        passes: int = 1,
    ) -> Tensor | None:
        shapes = mask_shapes(self.config, sequences, events - 1, per_row)
        return draw_masks(shapes * passes, self.config.dropout, generator)

    def encode(self, parameters_P: Tensor, input_BLD: Tensor, dropout: Tensor | None) -> Tensor:
        shapes = mask_shapes(self.config, *input_BLD.shape[:2])
        return self._encode(parameters_P, input_BLD, cut_masks(dropout, shapes))

    def predict(
        self,
        parameters_P: Tensor,
        events_BLD: Tensor,
        lengths_B: Tensor,
        targets: TargetPositions,
        dropout: Tensor | None,
    ) -> Tensor:
        if dropout is None or targets.selected_per_row is None:
            return super().predict(parameters_P, events_BLD, lengths_B, targets, dropout)
        input_BLD = events_BLD[:, :-1]
        rows, positions, _ = input_BLD.shape
        masks = cut_masks(
            dropout, mask_shapes(self.config, rows, positions, targets.selected_per_row)
        )
        place = targets.rows, targets.at - 1
        masks[-3:] = [_at_all(mask, place, positions) for mask in masks[-3:]]
        return self._encode(parameters_P, input_BLD, masks)[place]

    def _encode(
        self, parameters_P: Tensor, input_BLD: Tensor, masks: list[Tensor | None]
    ) -> Tensor:
        p, positions = self.named(parameters_P), input_BLD.shape[1]
        future = torch.ones(positions, positions, dtype=torch.bool, device=input_BLD.device).triu(1)
        return transform(self.config, p, input_BLD + p["position"][:positions], future, masks)

    def analytic(
        self,
        parameters_P: Tensor,
        targets: TargetPositions | None,
        dropout: Tensor | None,
        rows: int,
    ) -> AnalyticEncoder:
        at_BA = None
        if targets is not None and not targets.all_positions:
            assert targets.selected_per_row is not None, "rows have unlike numbers of targets"
            at_BA = targets.at.view(rows, targets.selected_per_row) - 1
        return AnalyticSASRec(self.config, self.named, parameters_P, dropout, at_BA)


def _at_all(mask: Tensor | None, place: tuple[Tensor, Tensor], positions: int) -> Tensor | None:
    """A last layer's mask at all positions, from that at the targets; ones elsewhere."""
    if mask is None:
        return None
    targets_first = mask.transpose(1, 2) if mask.dim() == 4 else mask  # (B, A, ...)
    at_all = mask.new_ones(len(mask), positions, *targets_first.shape[2:])
    at_all = at_all.index_put(place, targets_first.flatten(0, 1))
    return at_all.transpose(1, 2) if mask.dim() == 4 else at_all


def _shapes(config: BackboneConfig, history: int) -> dict[str, Shape]:
    return {"position": (history, config.hidden), **parameter_shapes(config)}


BACKBONE = BackboneSpec(SASRec)
