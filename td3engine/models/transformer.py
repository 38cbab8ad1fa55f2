"""The transformer layers of SASRec and BERT4Rec: post-norm, GELU, plain attention."""

import math

import torch.nn.functional as F
from torch import Tensor

from td3engine.config import BackboneConfig
from td3engine.models.flat_parameters import Shape, drop


def parameter_shapes(config: BackboneConfig) -> dict[str, Shape]:
    """Name and shape of the layers' parameters, in order."""
    d, inner = config.hidden, config.inner
    shapes: dict[str, Shape] = {"input_norm_weight": (d,), "input_norm_bias": (d,)}
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


def mask_shapes(
    config: BackboneConfig, sequences: int, positions: int, last: int | None = None
) -> list[Shape]:
    """Shapes of one pass's dropout masks: the input, then each layer's attention, projection and
    output.

    With `last`, the last layer's masks are for that many positions a sequence.
    """
    shapes: list[Shape] = [(sequences, positions, config.hidden)]
    for layer in range(config.layers):
        computed = last if last is not None and layer == config.layers - 1 else positions
        hidden = (sequences, computed, config.hidden)
        shapes += [(sequences, config.heads, computed, positions), hidden, hidden]
    return shapes


def transform(
    config: BackboneConfig,
    p: dict[str, Tensor],
    input_BLD: Tensor,
    hidden_from: Tensor,
    masks: list[Tensor | None],
) -> Tensor:
    """Hidden states (B, L, d).

    Args:
        config: layers and heads.
        p: parameters by name.
        input_BLD: embedded events with their positions added.
        hidden_from: what a position must not attend to, bool, broadcast to (B, heads, L, L).
        masks: dropout masks, as `mask_shapes` has them.
    """
    x = drop(norm(input_BLD, p, "input_"), masks[0])
    for layer in range(config.layers):
        attention_mask, projection_mask, output_mask = masks[1 + 3 * layer : 4 + 3 * layer]
        mixed = attend(config.heads, x, p, f"{layer}_", hidden_from, attention_mask)
        x = norm(x + drop(mixed, projection_mask), p, f"{layer}_attention_")
        inner = F.gelu(F.linear(x, p[f"{layer}_up"], p[f"{layer}_up_bias"]))
        out = F.linear(inner, p[f"{layer}_down"], p[f"{layer}_down_bias"])
        x = norm(x + drop(out, output_mask), p, f"{layer}_output_")
    return x


def norm(x: Tensor, p: dict[str, Tensor], prefix: str) -> Tensor:
    """Layer norm with the parameters `{prefix}norm_weight` and `{prefix}norm_bias`."""
    weight = p[prefix + "norm_weight"]
    return F.layer_norm(x, weight.shape, weight, p[prefix + "norm_bias"])


def attend(
    heads: int,
    x_BLD: Tensor,
    p: dict[str, Tensor],
    layer: str,
    hidden_from: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Softmax attention and its output projection, (B, L, d).

    Args:
        heads: number of heads, each d / heads wide.
        x_BLD: what queries, keys and values are projected from.
        p: parameters by name; of these `{layer}qkv`, `{layer}out` and their biases are read.
        layer: prefix of this layer's names.
        hidden_from: what a position must not attend to, bool, broadcast to (B, heads, L, L).
        mask: dropout mask of the attention weights, (B, heads, L, L).
    """
    sequences, positions, hidden = x_BLD.shape
    qkv = F.linear(x_BLD, p[layer + "qkv"], p[layer + "qkv_bias"])
    query, key, value = (
        part.view(sequences, positions, heads, -1).transpose(1, 2) for part in qkv.chunk(3, -1)
    )
    scores = query @ key.transpose(-1, -2) * (hidden // heads) ** -0.5
    weights = drop(scores.masked_fill(hidden_from, -math.inf).softmax(-1), mask)
    mixed = (weights @ value).transpose(1, 2).reshape(sequences, positions, hidden)
    return F.linear(mixed, p[layer + "out"], p[layer + "out_bias"])
