"""SASRec with its derivatives written out: the four passes of `analytic.layers`, layer by layer.

Where every row has as many target positions, the last layer computes those alone: of a learner that
predicts 2 events of 49, that layer computes 2 positions and reads the others.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.config import BackboneConfig
from td3engine.models.analytic.layers import Attention, Gelu, Linear, Norm, PerHead, gradients
from td3engine.models.flat_parameters import cut_masks, drop
from td3engine.models.transformer import mask_shapes

PER_LAYER = 12  # parameters


class Places:
    """Which of B x L positions a layer computes: all of them, or A of each row.

    Args:
        rows, positions: B and L.
        at: positions (B, A), or None for all.
    """

    def __init__(self, rows: int, positions: int, at: Tensor | None, device: torch.device) -> None:
        self.rows, self.positions, self.at = rows, positions, at
        key_L = torch.arange(positions, device=device)
        query = key_L[None] if at is None else at
        self.future = torch.where(key_L > query[..., None], -math.inf, 0.0)
        self.flat: Tensor | None = None
        if at is not None:
            self.flat = (at + positions * torch.arange(rows, device=device)[:, None]).reshape(-1)

    def pick(self, x_ND: Tensor) -> Tensor:
        """From rows of all positions, (B L, d), those of the computed ones."""
        return x_ND if self.flat is None else x_ND[self.flat]

    def put(self, to_ND: Tensor, picked: Tensor) -> Tensor:
        """Adds the computed positions' rows to `to_ND` of all positions, in place."""
        return to_ND.add_(picked) if self.flat is None else to_ND.index_add_(0, self.flat, picked)

    def attention(self, heads: int, mask_BHAL: Tensor | None, like: Tensor) -> Attention:
        """Causal attention of the computed positions to all; the heads' queries are concatenated.

        Args:
            heads: how many.
            mask_BHAL: dropout of the weights.
            like: parameters of the output projection, (d, d).
        """
        future = self.future.to(like.dtype)
        if heads > 1:
            future = future.repeat(1, heads, 1)
        scale = (len(like) // heads) ** -0.5
        return Attention(future, None if mask_BHAL is None else mask_BHAL.flatten(1, 2), scale)


class TransformerLayer:
    """One post-norm layer, from states x at all positions to states at some.

    Keys and values of all positions are never computed. (x K) . q is x . (K q), so a query goes
    through the keys' matrix and meets x itself. P (x V) is (P x) V, so the values' matrix follows
    the mixing. With few target positions that spares most of a layer; with all of them and one head
    it costs the same. The keys' bias adds one number to a query's scores at all positions, which
    softmax does not see. The values' bias enters with the weights' sum, as a column of ones.

    Args:
        p: the layer's parameters by name, in the flat vector's order.
        heads: of the attention.
        places: which positions are computed.
        masks: dropout of attention, projection and output, for the computed positions.
    """

    def __init__(
        self, p: list[Tensor], heads: int, places: Places, masks: list[Tensor | None]
    ) -> None:
        qkv, qkv_bias, out, out_bias, norm, norm_bias, up, up_bias, down, down_bias, *last = p
        self.heads, self.places, self.width = heads, places, len(out)
        query, key, value = self._per_head(qkv, qkv_bias)
        self.query, self.key, self.value = Linear(*query), PerHead(key), PerHead(value)
        self.attention = places.attention(heads, masks[0], out)
        self.out, self.attention_norm = Linear(out, out_bias), Norm(norm, norm_bias)
        self.up, self.gelu, self.down = Linear(up, up_bias), Gelu(), Linear(down, down_bias)
        self.output_norm = Norm(*last)
        self.masks = [None if mask is None else mask.flatten(0, 1) for mask in masks[1:]]

    def forward(self, x_ND: Tensor) -> Tensor:
        picked = self.places.pick(x_ND)
        queries = self._rows(self.key.forward(self._split(self.query.forward(picked))))
        mixed = self.attention.forward(queries, *self._events(x_ND, 1.0))
        mixed = self._join(self.value.forward(self._by_head(mixed)))
        projected = self.out.forward(mixed)
        x = self.attention_norm.forward(picked + drop(projected, self.masks[0]))
        fed = self.down.forward(self.gelu.forward(self.up.forward(x)))
        return self.output_norm.forward(x + drop(fed, self.masks[1]))

    def backward(self, to_y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Gradients: of all positions' states (B L, d), and of the parameters in order."""
        return self._back(to_y, tangent=False)

    def backward_jvp(self, to_y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Their change, see `layers`."""
        return self._back(to_y, tangent=True)

    def _back(self, to_y: Tensor, *, tangent: bool) -> tuple[Tensor, list[Tensor]]:
        to_x, output_norm = gradients(self.output_norm, to_y, tangent)
        to_fed, down = gradients(self.down, drop(to_x, self.masks[1]), tangent)
        to_fed, up = gradients(self.up, gradients(self.gelu, to_fed, tangent), tangent)
        to_x, norm = gradients(self.attention_norm, to_x + to_fed, tangent)
        to_mixed, out = gradients(self.out, drop(to_x, self.masks[0]), tangent)
        to_mixed, value = gradients(self.value, self._split(to_mixed), tangent)
        to_attention = gradients(self.attention, self._rows(to_mixed), tangent)
        to_queries, to_keys, to_values = to_attention
        to_q, key = gradients(self.key, self._by_head(to_queries), tangent)
        to_picked, query = gradients(self.query, self._join(to_q), tangent)
        to_all = to_keys.add_(to_values[..., : self.width]).flatten(0, 1)
        biases = [query[1], torch.zeros_like(query[1]), value[:, self.width]]
        qkv = [query[0], key, value[:, : self.width].mT, *biases]
        to_parameters = [*qkv, *out, *norm, *up, *down, *output_norm]
        return self.places.put(to_all, to_x + to_picked), to_parameters

    def jvp(self, x_ND: Tensor, p: list[Tensor]) -> Tensor:
        qkv, qkv_bias, out, out_bias, norm, norm_bias, up, up_bias, down, down_bias, *last = p
        query, key, value = self._per_head(qkv, qkv_bias)
        picked = self.places.pick(x_ND)
        q = self._split(self.query.jvp(picked, *query))
        queries = self._rows(self.key.jvp(q, key))
        mixed = self.attention.jvp(queries, *self._events(x_ND, 0.0))
        mixed = self._join(self.value.jvp(self._by_head(mixed), value))
        projected = self.out.jvp(mixed, out, out_bias)
        x = picked + drop(projected, self.masks[0])
        x = self.attention_norm.jvp(x, norm, norm_bias)
        fed = self.gelu.jvp(self.up.jvp(x, up, up_bias))
        fed = self.down.jvp(fed, down, down_bias)
        return self.output_norm.jvp(x + drop(fed, self.masks[1]), last[0], last[1])

    def _per_head(self, qkv: Tensor, bias: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """The queries' matrix and bias; (H, d / H, d) of the keys; (H, d + 1, d / H) of the values
        with their bias."""
        query, key, value = qkv.view(3, self.width, self.width)
        values = torch.cat([value, bias[2 * self.width :, None]], 1)
        per_head = values.view(self.heads, -1, self.width + 1).mT
        return (query, bias[: self.width]), key.view(self.heads, -1, self.width), per_head

    def _events(self, x_ND: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        """All positions, (B, L, d): as keys, and as values with a constant column."""
        x_BLD = x_ND.view(self.places.rows, -1, self.width)
        return x_BLD, F.pad(x_BLD, (0, 1), value=constant)

    def _split(self, x_ND: Tensor) -> Tensor:
        """(N, d) -> (H, N, d / H)."""
        return x_ND.view(len(x_ND), self.heads, -1).transpose(0, 1)

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1).reshape(x.shape[1], self.width)

    def _rows(self, x: Tensor) -> Tensor:
        """(H, N, .) -> (B, H N / B, .)."""
        by_row = x.view(self.heads, self.places.rows, -1, x.shape[-1]).transpose(0, 1)
        return by_row.reshape(self.places.rows, -1, x.shape[-1])

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, H N / B, .) -> (H, N, .)."""
        by_head = x.view(self.places.rows, self.heads, -1, x.shape[-1]).transpose(0, 1)
        return by_head.reshape(self.heads, -1, x.shape[-1])


class AnalyticSASRec:
    """The encoder, at as many target positions of every row, or at all positions.

    Args:
        config: layers and heads.
        named: the parameters' views by name, in order, of a flat vector.
        parameters_P: flat parameters.
        dropout: flat masks of `mask_shapes`, whose last layer is that of the computed positions;
            None: no dropout.
        at: positions whose states are computed, (B, A); None for all.
    """

    def __init__(
        self,
        config: BackboneConfig,
        named: Callable[[Tensor], dict[str, Tensor]],
        parameters_P: Tensor,
        dropout: Tensor | None,
        at: Tensor | None,
    ) -> None:
        self.config, self.named, self.dropout, self.at = config, named, dropout, at
        self.parameters = [*named(parameters_P).values()]

    def forward(self, input_BLD: Tensor) -> Tensor:
        """Hidden states (B A, d) of embedded events (B, L, d), L <= history."""
        rows, self.length, _ = input_BLD.shape
        per_row = None if self.at is None else self.at.shape[1]
        shapes = mask_shapes(self.config, rows, self.length, per_row)
        self.masks = cut_masks(self.dropout, shapes)
        position, norm_weight, norm_bias, *layers = self.parameters
        self.input_norm = Norm(norm_weight, norm_bias)
        self.input_mask = None if self.masks[0] is None else self.masks[0].flatten(0, 1)
        x_ND = (input_BLD + position[: self.length]).flatten(0, 1)
        x_ND = drop(self.input_norm.forward(x_ND), self.input_mask)
        self.layers = []
        for nth, parameters in enumerate(_by_layer(layers)):
            at = self.at if nth == self.config.layers - 1 else None
            places = Places(rows, self.length, at, input_BLD.device)
            masks = self.masks[1 + 3 * nth : 4 + 3 * nth]
            self.layers.append(TransformerLayer(parameters, self.config.heads, places, masks))
            x_ND = self.layers[-1].forward(x_ND)
        return x_ND

    def backward(self, to_hidden_KD: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients: of the flat parameters (P), and of the input (B, L, d)."""
        return self._back(to_hidden_KD, tangent=False)

    def backward_jvp(self, to_hidden_KD: Tensor) -> tuple[Tensor, Tensor]:
        """Change of both gradients along that direction, given that of the states' gradient."""
        return self._back(to_hidden_KD, tangent=True)

    def jvp(self, parameters_P: Tensor, input_BLD: Tensor | None) -> Tensor:
        """Change of the hidden states along a direction; None leaves the input as it is."""
        position, norm_weight, norm_bias, *layers = self.named(parameters_P).values()
        x_BLD = position[: self.length].expand(self.layers[0].places.rows, -1, -1)
        x_ND = (x_BLD if input_BLD is None else x_BLD + input_BLD).flatten(0, 1)
        x_ND = drop(self.input_norm.jvp(x_ND, norm_weight, norm_bias), self.input_mask)
        for layer, tangents in zip(self.layers, _by_layer(layers), strict=True):
            x_ND = layer.jvp(x_ND, tangents)
        return x_ND

    def _back(self, to_x_ND: Tensor, *, tangent: bool) -> tuple[Tensor, Tensor]:
        by_layer: list[list[Tensor]] = []
        for layer in reversed(self.layers):
            to_x_ND, to_parameters = gradients(layer, to_x_ND, tangent)
            by_layer.append(to_parameters)
        to_x_ND, norm = gradients(self.input_norm, drop(to_x_ND, self.input_mask), tangent)
        position = self.parameters[0]
        to_input_BLD = to_x_ND.view(-1, self.length, position.shape[1])
        # Rows of the position table beyond the input's length.
        unused = position.new_zeros(len(position) - self.length, position.shape[1])
        layers = [part for to_parameters in reversed(by_layer) for part in to_parameters]
        parts = [to_input_BLD.sum(0), unused, *norm, *layers]
        return torch.cat([part.reshape(-1) for part in parts]), to_input_BLD


def _by_layer(parameters: list[Tensor]) -> list[list[Tensor]]:
    ends = range(0, len(parameters) + 1, PER_LAYER)
    return [parameters[start:end] for start, end in pairwise(ends)]
