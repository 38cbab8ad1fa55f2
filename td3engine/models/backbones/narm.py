"""NARM: a recurrent network with attention to its own states (Li et al., CIKM 2017).

The state h_t at position t is the global encoder. The local encoder is sum_j alpha_tj h_j with the
weights alpha_tj = v^T sigmoid(A1 h_t + A2 h_j) for j <= t, which are not normalised, as in the
paper. The hidden state is B [sum_j alpha_tj h_j ; h_t].

The published model reads a prefix and predicts once; here a pass predicts from every position.

Limits: memory is of order B L^2 inner. For 64 rows of 50 events and inner = 64 the blocks of such a
float32 tensor have 25 MB, and the graph holds a few of them.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from td3engine.config import BackboneConfig
from td3engine.models.backbone import BackboneSpec, Causal
from td3engine.models.flat_parameters import FlatParameters, Shape, cut_masks, draw_masks, drop
from td3engine.models.recurrent import parameter_shapes, recur, xavier

# Positions that attend together. A block skips the states after its end and fits the cache: a
# gradient at the size above takes 90 ms, against 290 ms without blocks (one CPU thread).
BLOCK = 10


class NARM(FlatParameters, Causal):
    """`layers` GRUs of width `inner`, attention, and a map to d; see `Backbone` for the interface.

    Matrices start by Xavier's rule, biases at zero.
    """

    def __init__(self, config: BackboneConfig, history: int) -> None:
        super().__init__(_shapes(config))
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
        shapes = self._mask_shapes(sequences, events - 1)
        return draw_masks(shapes * passes, self.config.dropout, generator)

    def encode(self, parameters_P: Tensor, input_BLD: Tensor, dropout: Tensor | None) -> Tensor:
        sequences, positions, _ = input_BLD.shape
        p = self.named(parameters_P)
        input_mask, both_mask = cut_masks(dropout, self._mask_shapes(sequences, positions))
        states_BLH = recur(self.config, p, drop(input_BLD, input_mask))
        visible = torch.ones(positions, positions, dtype=torch.bool, device=input_BLD.device).tril()
        blocks = []
        for first in range(0, positions, BLOCK):
            end = first + BLOCK  # may lie beyond the row; slices stop there
            current, seen = states_BLH[:, first:end], states_BLH[:, :end]
            blocks.append(_attend(p, current, seen, visible[first:end, :end]))
        return _out(p, torch.cat(blocks, 1), states_BLH, both_mask)

    def last(self, parameters_P: Tensor, events_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """As `Causal.last`, attending from the last events alone.

        A thousand rows at all positions would take half a gigabyte.
        """
        p = self.named(parameters_P)
        states_BLH = recur(self.config, p, events_BLD)
        rows = torch.arange(len(events_BLD), device=events_BLD.device)
        current_B1H = states_BLH[rows, lengths_B - 1].unsqueeze(1)
        at_L = torch.arange(events_BLD.shape[1], device=events_BLD.device)
        visible = at_L < lengths_B[:, None, None]
        local_B1H = _attend(p, current_B1H, states_BLH, visible)
        return _out(p, local_B1H, current_B1H, None).squeeze(1)

    def _mask_shapes(self, sequences: int, positions: int) -> list[Shape]:
        widths = self.config.hidden, 2 * self.config.inner
        return [(sequences, positions, width) for width in widths]

    def _initial(self, name: str, shape: Shape, generator: Generator) -> Tensor:
        if name.endswith("bias"):
            return super()._initial(name, shape, generator)
        return xavier(shape, generator)


def _attend(
    p: dict[str, Tensor], current_BQH: Tensor, states_BLH: Tensor, visible: Tensor
) -> Tensor:
    """The local encoder (B, Q, inner) at the positions whose states are `current_BQH`.

    `visible`, bool, broadcast to (B, Q, L), says which of `states_BLH` each position reads.
    """
    query = F.linear(current_BQH, p["attention_current"]).unsqueeze(2)
    key = F.linear(states_BLH, p["attention_state"]).unsqueeze(1)
    alpha_BQL = F.linear((query + key).sigmoid(), p["attention_out"]).squeeze(-1)
    return alpha_BQL.masked_fill(~visible, 0.0) @ states_BLH


def _out(p: dict[str, Tensor], local: Tensor, current: Tensor, mask: Tensor | None) -> Tensor:
    return F.linear(drop(torch.cat([local, current], -1), mask), p["out"])


def _shapes(config: BackboneConfig) -> dict[str, Shape]:
    d, inner = config.hidden, config.inner
    return {
        **parameter_shapes(config),
        "attention_current": (inner, inner),  # A1
        "attention_state": (inner, inner),  # A2
        "attention_out": (1, inner),  # v
        "out": (d, 2 * inner),  # B
    }


BACKBONE = BackboneSpec(NARM, learner={"steps": 1600})
