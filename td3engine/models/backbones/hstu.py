"""HSTU: gated pointwise attention (Zhai et al., ICML 2024, arXiv 2402.17152).

A layer has no softmax and no feed-forward part. With the layer norms n1 and n2 it maps x to

    [U V Q K] = silu(W n1(x)),    A_tj = silu(q_t . k_j + r_(t-j)) / (t + 1)  for j <= t,
    y = x + O (n2(A V) * U) + o,

where r is a bias by distance, one a layer, that all heads share. Weights are divided by the number
of events that a position sees; the published code divides by the longest row, which a later event
could change. The published time bias is left out: a backbone reads events without their times.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from td3engine.config import BackboneConfig
from td3engine.models.backbone import BackboneOptions, BackboneSpec, Causal
from td3engine.models.flat_parameters import FlatParameters, Shape, cut_masks, draw_masks, drop
from td3engine.models.transformer import norm


class HSTUOptions(BackboneOptions):
    """Options of HSTU.

    Attributes:
        positions: the published code has both a bias by distance and a table of positions that is
            added to the input; "relative" has the bias alone.
    """

    positions: Literal["both", "relative"] = "both"


class HSTU(FlatParameters, Causal):
    """`layers` HSTU layers; see `Backbone` for the interface. `inner` has no meaning here.

    The input is layer-normed before the first layer, and the output before scoring.
    """

    def __init__(self, config: BackboneConfig, history: int) -> None:
        self.options = HSTUOptions.model_validate(config.options)
        super().__init__(_shapes(config, self.options, history))
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
        input_mask, *layer_masks = cut_masks(dropout, self._mask_shapes(sequences, positions))
        x = input_BLD
        if self.options.positions == "both":
            x = x + p["position"][:positions]
        x = drop(norm(x, p, "input_"), input_mask)
        at_L = torch.arange(positions, device=x.device)
        distance_LL = at_L[:, None] - at_L
        for layer, mask in enumerate(layer_masks):
            x = x + self._layer(p, f"{layer}_", x, distance_LL, mask)
        return norm(x, p, "output_")

    def _layer(
        self,
        p: dict[str, Tensor],
        name: str,
        x_BLD: Tensor,
        distance_LL: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """What a layer adds to the residual stream, (B, L, d)."""
        sequences, positions, _ = x_BLD.shape
        projected = F.silu(F.linear(norm(x_BLD, p, name + "input_"), p[name + "uvqk"]))
        gate_BLD, *parts = projected.chunk(4, -1)
        value, query, key = (
            part.view(sequences, positions, self.config.heads, -1).transpose(1, 2) for part in parts
        )
        bias_LL = p[name + "distance"][distance_LL.clamp(min=0)]
        seen_L1 = torch.arange(1, positions + 1, dtype=x_BLD.dtype, device=x_BLD.device)[:, None]
        weights = F.silu(query @ key.transpose(-1, -2) + bias_LL) / seen_L1
        mixed = (weights.masked_fill(distance_LL < 0, 0.0) @ value).transpose(1, 2)
        gated = norm(mixed.reshape(x_BLD.shape), p, name + "mixed_") * gate_BLD
        return F.linear(drop(gated, mask), p[name + "out"], p[name + "out_bias"])

    def _mask_shapes(self, sequences: int, positions: int) -> list[Shape]:
        shape = (sequences, positions, self.config.hidden)
        return [shape] * (1 + self.config.layers)


def _shapes(config: BackboneConfig, options: HSTUOptions, history: int) -> dict[str, Shape]:
    d = config.hidden
    shapes: dict[str, Shape] = {"input_norm_weight": (d,), "input_norm_bias": (d,)}
    if options.positions == "both":
        shapes |= {"position": (history, d)}
    for layer in range(config.layers):
        shapes |= {
            f"{layer}_input_norm_weight": (d,),
            f"{layer}_input_norm_bias": (d,),
            f"{layer}_uvqk": (4 * d, d),
            f"{layer}_distance": (history,),
            f"{layer}_mixed_norm_weight": (d,),
            f"{layer}_mixed_norm_bias": (d,),
            f"{layer}_out": (d, d),
            f"{layer}_out_bias": (d,),
        }
    return shapes | {"output_norm_weight": (d,), "output_norm_bias": (d,)}


BACKBONE = BackboneSpec(HSTU, options=HSTUOptions)
