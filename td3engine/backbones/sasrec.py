"""SASRec: a causal transformer over item embeddings (Kang and McAuley, ICDM 2018).

Post-norm layers with GELU, as in the published TD3 and RecBole configurations. Written as a
function of one flat parameter vector with the plain (math) attention, because the inner loop is
differentiated twice and the fused attention kernels have no double backward.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from td3engine.config import BackboneConfig

INITIAL_STD = 0.02


class SASRec:
    """A causal transformer; see `Backbone` for the interface."""

    def __init__(self, config: BackboneConfig, history: int) -> None:
        self.config = config
        self.history = history
        self._shapes = _shapes(config, history)
        self._sizes = [math.prod(shape) for shape in self._shapes.values()]

    @property
    def n_parameters(self) -> int:
        return sum(self._sizes)

    def initial(self, generator: Generator) -> Tensor:
        parts = []
        for name, shape in self._shapes.items():
            if name.endswith("norm_weight"):
                part = torch.ones(shape, device=generator.device)
            elif name.endswith("bias"):
                part = torch.zeros(shape, device=generator.device)
            else:
                noise = torch.randn(shape, generator=generator, device=generator.device)
                part = noise * INITIAL_STD
            parts.append(part.reshape(-1))
        return torch.cat(parts)

    def dropout(self, sequences: int, positions: int, generator: Generator) -> Tensor | None:
        rate = self.config.dropout
        if rate == 0:
            return None
        count = sum(math.prod(shape) for shape in self._mask_shapes(sequences, positions))
        kept = torch.rand(count, generator=generator, device=generator.device) >= rate
        return kept / (1 - rate)

    def named(self, parameters_P: Tensor) -> dict[str, Tensor]:
        views = zip(self._shapes, parameters_P.split(self._sizes), strict=True)
        return {name: flat.view(self._shapes[name]) for name, flat in views}

    def encode(self, parameters_P: Tensor, input_BLD: Tensor, dropout: Tensor | None) -> Tensor:
        sequences, positions, _ = input_BLD.shape
        p = self.named(parameters_P)
        masks = self._masks(dropout, sequences, positions)
        x = input_BLD + p["position"][:positions]
        x = _drop(_norm(x, p, "input_"), masks[0])
        for layer in range(self.config.layers):
            attention_mask, projection_mask, output_mask = masks[1 + 3 * layer : 4 + 3 * layer]
            mixed = self._attend(x, p, f"{layer}_", attention_mask)
            x = _norm(x + _drop(mixed, projection_mask), p, f"{layer}_attention_")
            inner = F.gelu(F.linear(x, p[f"{layer}_up"], p[f"{layer}_up_bias"]))
            out = F.linear(inner, p[f"{layer}_down"], p[f"{layer}_down_bias"])
            x = _norm(x + _drop(out, output_mask), p, f"{layer}_output_")
        return x

    def _attend(
        self, x_BLD: Tensor, p: dict[str, Tensor], layer: str, mask: Tensor | None
    ) -> Tensor:
        sequences, positions, hidden = x_BLD.shape
        heads = self.config.heads
        qkv = F.linear(x_BLD, p[layer + "qkv"], p[layer + "qkv_bias"])
        query, key, value = (
            part.view(sequences, positions, heads, -1).transpose(1, 2) for part in qkv.chunk(3, -1)
        )
        scores = query @ key.transpose(-1, -2) * (hidden // heads) ** -0.5
        future = torch.ones(positions, positions, dtype=torch.bool, device=x_BLD.device).triu(1)
        weights = _drop(scores.masked_fill(future, -math.inf).softmax(-1), mask)
        mixed = (weights @ value).transpose(1, 2).reshape(sequences, positions, hidden)
        return F.linear(mixed, p[layer + "out"], p[layer + "out_bias"])

    def _mask_shapes(self, sequences: int, positions: int) -> list[tuple[int, ...]]:
        hidden = (sequences, positions, self.config.hidden)
        attention = (sequences, self.config.heads, positions, positions)
        return [hidden, *[attention, hidden, hidden] * self.config.layers]

    def _masks(self, flat: Tensor | None, sequences: int, positions: int) -> list[Tensor | None]:
        shapes = self._mask_shapes(sequences, positions)
        if flat is None:
            return [None] * len(shapes)
        ends = [0]
        for shape in shapes:
            ends.append(ends[-1] + math.prod(shape))
        return [
            flat[start:end].view(shape)
            for (start, end), shape in zip(pairwise(ends), shapes, strict=True)
        ]


def _shapes(config: BackboneConfig, history: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of each parameter, in the order of the flat vector."""
    d, inner = config.hidden, config.inner
    shapes: dict[str, tuple[int, ...]] = {
        "position": (history, d),
        "input_norm_weight": (d,),
        "input_norm_bias": (d,),
    }
    for layer in range(config.layers):
        shapes |= {
            f"{layer}_qkv": (3 * d, d),
            f"{layer}_qkv_bias": (3 * d,),
            f"{layer}_out": (d, d),
            f"{layer}_out_bias": (d,),
            f"{layer}_attention_norm_weight": (d,),
            f"{layer}_attention_norm_bias": (d,),
            f"{layer}_up": (inner, d),
            f"{layer}_up_bias": (inner,),
            f"{layer}_down": (d, inner),
            f"{layer}_down_bias": (d,),
            f"{layer}_output_norm_weight": (d,),
            f"{layer}_output_norm_bias": (d,),
        }
    return shapes


def _norm(x: Tensor, p: dict[str, Tensor], prefix: str) -> Tensor:
    weight = p[prefix + "norm_weight"]
    return F.layer_norm(x, weight.shape, weight, p[prefix + "norm_bias"])


def _drop(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask
