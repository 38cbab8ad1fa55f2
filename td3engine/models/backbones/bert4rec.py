"""BERT4Rec: a bidirectional transformer trained by cloze (Sun et al., CIKM 2019).

A learned mask embedding replaces the targets, which are predicted from the row's other events. At
inference a mask follows the last event. Before scoring, a state passes a linear map, GELU and layer
norm, as in the paper. The item bias belongs to `td3engine.models.recommender`.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from td3engine.config import BackboneConfig
from td3engine.models.backbone import AnalyticEncoder, BackboneSpec, TargetPositions
from td3engine.models.flat_parameters import FlatParameters, Shape, cut_masks, draw_masks
from td3engine.models.transformer import mask_shapes, norm, parameter_shapes, transform

# RecBole's defaults (mask_ratio, ft_ratio). The last event alone is a target in half of the rows,
# because inference masks no other.
MASKED = 0.2  # probability of an event to be a target in the other rows
LAST_ONLY = 0.5  # probability that a row's only target is its last event


class BERT4Rec(FlatParameters):
    """A bidirectional transformer over history + 1 positions; see `Backbone` for the interface."""

    causal = False
    biased = True
    has_analytic_grad = False

    def __init__(self, config: BackboneConfig, history: int) -> None:
        super().__init__(_shapes(config, history))
        self.config = config
        self.history = history

    def dropout(
        self,
        sequences: int,
        events: int,
        generator: Generator,
        _per_row: int | None = None,
        passes: int = 1,
    ) -> Tensor | None:
        shapes = mask_shapes(self.config, sequences, events)
        return draw_masks(shapes * passes, self.config.dropout, generator)

    def draw_targets(self, lengths_B: Tensor, generator: Generator) -> TargetPositions:
        """The cloze rule: a row's last event, or each event with probability `MASKED`.

        A row of the second kind without any target has its last event. Targets are in order of row,
        then position.
        """
        device = lengths_B.device
        shape = len(lengths_B), int(lengths_B.max())
        last_only_B = torch.rand(shape[0], generator=generator, device=device) < LAST_ONLY
        at_L = torch.arange(shape[1], device=device)
        chosen_BL = torch.rand(shape, generator=generator, device=device) < MASKED
        chosen_BL &= at_L < lengths_B[:, None]
        last_only_B |= ~chosen_BL.any(1)
        last_BL = at_L == lengths_B[:, None] - 1
        rows, at = torch.nonzero(
            torch.where(last_only_B[:, None], last_BL, chosen_BL), as_tuple=True
        )
        return TargetPositions(rows, at)

    def predict(
        self,
        parameters_P: Tensor,
        events_BLD: Tensor,
        lengths_B: Tensor,
        targets: TargetPositions,
        dropout: Tensor | None,
    ) -> Tensor:
        sequences, positions, _ = events_BLD.shape
        p = self.named(parameters_P)
        masks = cut_masks(dropout, mask_shapes(self.config, sequences, positions))
        masked_BL = torch.zeros(sequences, positions, dtype=torch.bool, device=events_BLD.device)
        masked_BL[targets.rows, targets.at] = True
        seen_BLD = torch.where(masked_BL[:, :, None], p["mask"], events_BLD)
        at_L = torch.arange(positions, device=events_BLD.device)
        # Every row has an event, so no position is left with nothing to attend to.
        padding = at_L >= lengths_B[:, None, None, None]
        hidden_BLD = transform(self.config, p, seen_BLD + p["position"][:positions], padding, masks)
        hidden_KD = hidden_BLD[targets.rows, targets.at]
        return norm(F.gelu(F.linear(hidden_KD, p["head"], p["head_bias"])), p, "head_")

    def last(self, parameters_P: Tensor, events_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        rows = torch.arange(len(events_BLD), device=events_BLD.device)
        one_more = F.pad(events_BLD, (0, 0, 0, 1))
        return self.predict(
            parameters_P, one_more, lengths_B + 1, TargetPositions(rows, lengths_B), None
        )

    def analytic(
        self,
        _parameters_P: Tensor,
        _target_positions: TargetPositions | None,
        _dropout: Tensor | None,
        _rows: int,
    ) -> AnalyticEncoder:
        raise NotImplementedError("this backbone is differentiated by autograd")


def _shapes(config: BackboneConfig, history: int) -> dict[str, Shape]:
    d = config.hidden
    return {
        "position": (history + 1, d),
        "mask": (d,),
        **parameter_shapes(config),
        "head": (d, d),
        "head_bias": (d,),
        "head_norm_weight": (d,),
        "head_norm_bias": (d,),
    }


BACKBONE = BackboneSpec(BERT4Rec, learner={"lr": 0.01, "steps": 3000})
