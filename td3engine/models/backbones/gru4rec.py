"""GRU4Rec: a recurrent network over item embeddings (Hidasi et al., ICLR 2016).

Dropout falls on the embedded input, and a pass trains all positions of a row, after Tan, Xu and
Liu, *Improved Recurrent Neural Networks for Session-based Recommendations* (DLRS 2016). The loss is
the cross-entropy over items that every backbone here has.
"""

import torch.nn.functional as F
from torch import Generator, Tensor

from td3engine.config import BackboneConfig
from td3engine.models.backbone import BackboneSpec, Causal
from td3engine.models.flat_parameters import FlatParameters, Shape, cut_masks, draw_masks, drop
from td3engine.models.recurrent import parameter_shapes, recur, xavier


class GRU4Rec(FlatParameters, Causal):
    """`layers` GRUs of width `inner`, then a linear map to d; see `Backbone` for the interface.

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
        shape = (sequences, events - 1, self.config.hidden)
        return draw_masks([shape] * passes, self.config.dropout, generator)

    def encode(self, parameters_P: Tensor, input_BLD: Tensor, dropout: Tensor | None) -> Tensor:
        p = self.named(parameters_P)
        (mask,) = cut_masks(dropout, [input_BLD.shape])
        states_BLH = recur(self.config, p, drop(input_BLD, mask))
        return F.linear(states_BLH, p["out"], p["out_bias"])

    def _initial(self, name: str, shape: Shape, generator: Generator) -> Tensor:
        if name.endswith("bias"):
            return super()._initial(name, shape, generator)
        return xavier(shape, generator)


def _shapes(config: BackboneConfig) -> dict[str, Shape]:
    d, inner = config.hidden, config.inner
    return {**parameter_shapes(config), "out": (d, inner), "out_bias": (d,)}


BACKBONE = BackboneSpec(GRU4Rec, learner={"steps": 1600})
