"""eSASRec: a causal transformer of pre-norm layers with gated residuals.

The layers are LiGR's (Borisyuk et al., *From Features to Transformers*, arXiv 2502.03417), which
Tikhonovich et al. (*eSASRec*, RecSys 2025, arXiv 2508.06450) put into SASRec. With layer norms n1
and n2, a layer maps x to

    y = x + sigmoid(G1 x + g1) * attention(n1(x))
    z = y + sigmoid(G2 y + g2) * feed_forward(n2(y)),  feed_forward(h) = D (silu(A h) * B h).

eSASRec trains with a sampled softmax; here the teacher's `softmax` decides that, as for every
backbone. Attention is the plain (math) one, because the inner loop is differentiated twice.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from td3engine.config import BackboneConfig
from td3engine.models.backbone import BackboneOptions, BackboneSpec, Causal
from td3engine.models.flat_parameters import FlatParameters, Shape, cut_masks, draw_masks, drop
from td3engine.models.transformer import attend, mask_shapes, norm


class ESASRecOptions(BackboneOptions):
    """Options of eSASRec.

    Attributes:
        gated: residual branches pass a gate; without it the layers are plain pre-norm.
        feed_forward: SwiGLU has two matrices to width `inner`, GELU one.
    """

    gated: bool = True
    feed_forward: Literal["swiglu", "gelu"] = "swiglu"


class ESASRec(FlatParameters, Causal):
    """`layers` LiGR layers over learned positions; see `Backbone` for the interface.

    The input is layer-normed, as SASRec's is here: item tables start at N(0, 0.02^2), and the
    branches of a pre-norm layer would drown events of that size. A gate starts at one half.
    """

    def __init__(self, config: BackboneConfig, history: int) -> None:
        self.options = ESASRecOptions.model_validate(config.options)
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
        shapes = mask_shapes(self.config, sequences, events - 1)
        return draw_masks(shapes * passes, self.config.dropout, generator)

    def encode(self, parameters_P: Tensor, input_BLD: Tensor, dropout: Tensor | None) -> Tensor:
        sequences, positions, _ = input_BLD.shape
        p = self.named(parameters_P)
        masks = cut_masks(dropout, mask_shapes(self.config, sequences, positions))
        future = torch.ones(positions, positions, dtype=torch.bool, device=input_BLD.device).triu(1)
        x = drop(norm(input_BLD + p["position"][:positions], p, "input_"), masks[0])
        for layer in range(self.config.layers):
            name = f"{layer}_"
            attention_mask, projection_mask, output_mask = masks[1 + 3 * layer : 4 + 3 * layer]
            before = norm(x, p, name + "attention_")
            mixed = attend(self.config.heads, before, p, name, future, attention_mask)
            x = x + self._gate(p, name + "attention_", x, drop(mixed, projection_mask))
            inner = self._feed_forward(p, name, norm(x, p, name + "feed_"))
            x = x + self._gate(p, name + "feed_", x, drop(inner, output_mask))
        return norm(x, p, "output_")

    def _gate(self, p: dict[str, Tensor], name: str, x: Tensor, branch: Tensor) -> Tensor:
        """A residual branch as far as its gate, which reads the residual stream x, lets it in."""
        if not self.options.gated:
            return branch
        return F.linear(x, p[name + "gate"], p[name + "gate_bias"]).sigmoid() * branch

    def _feed_forward(self, p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        up = F.linear(x, p[name + "up"])
        if self.options.feed_forward == "swiglu":
            return F.linear(F.silu(F.linear(x, p[name + "swish"])) * up, p[name + "down"])
        return F.linear(F.gelu(up), p[name + "down"])


def _shapes(config: BackboneConfig, options: ESASRecOptions, history: int) -> dict[str, Shape]:
    d, inner = config.hidden, config.inner
    shapes: dict[str, Shape] = {
        "position": (history, d),
        "input_norm_weight": (d,),
        "input_norm_bias": (d,),
    }
    for layer in range(config.layers):
        attention: dict[str, Shape] = {
            "attention_norm_weight": (d,),
            "attention_norm_bias": (d,),
            "qkv": (3 * d, d),
            "qkv_bias": (3 * d,),
            "out": (d, d),
            "out_bias": (d,),
        }
        feed: dict[str, Shape] = {"feed_norm_weight": (d,), "feed_norm_bias": (d,)}
        if options.feed_forward == "swiglu":
            feed |= {"swish": (inner, d)}
        feed |= {"up": (inner, d), "down": (d, inner)}
        if options.gated:
            attention |= {"attention_gate": (d, d), "attention_gate_bias": (d,)}
            feed |= {"feed_gate": (d, d), "feed_gate_bias": (d,)}
        shapes |= {f"{layer}_{name}": shape for name, shape in (attention | feed).items()}
    return shapes | {"output_norm_weight": (d,), "output_norm_bias": (d,)}


BACKBONE = BackboneSpec(ESASRec, options=ESASRecOptions)
