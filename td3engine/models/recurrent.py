"""The recurrent layers of GRU4Rec and NARM: torch's GRU on views of the flat vector."""

import math

import torch
from torch import Generator, Tensor

from td3engine.config import BackboneConfig
from td3engine.models.flat_parameters import Shape


def parameter_shapes(config: BackboneConfig) -> dict[str, Shape]:
    """Name and shape of the layers' parameters, in order.

    Gates are in torch's order (reset, update, new), each `inner` wide.
    """
    gates = 3 * config.inner
    shapes: dict[str, Shape] = {}
    for layer in range(config.layers):
        shapes |= {
            f"{layer}_input": (gates, config.hidden if layer == 0 else config.inner),
            f"{layer}_state": (gates, config.inner),
            f"{layer}_input_bias": (gates,),
            f"{layer}_state_bias": (gates,),
        }
    return shapes


def recur(config: BackboneConfig, p: dict[str, Tensor], input_BLD: Tensor) -> Tensor:
    """States of the last layer at every position, (B, L, inner), from a zero state.

    Twice differentiable. cuDNN is off in this call, because its GRU has no double backward; torch's
    fused cell, which replaces it, has one by torch's sources.

    Limits: tested on the CPU only.
    """
    start = input_BLD.new_zeros(config.layers, len(input_BLD), config.inner)
    weights = [p[name] for name in parameter_shapes(config)]
    with torch.backends.cudnn.flags(enabled=False):
        states_BLH, _ = torch.gru(
            input_BLD,
            start,
            weights,
            has_biases=True,
            num_layers=config.layers,
            dropout=0.0,
            train=False,  # only says whether to drop between layers, and nothing is
            bidirectional=False,
            batch_first=True,
        )
    return states_BLH


def xavier(shape: Shape, generator: Generator) -> Tensor:
    """A fresh matrix (out, in), uniform within sqrt(6 / (in + out)) (Glorot and Bengio 2010).

    Recurrent weights need this scale: with N(0, 0.02^2) a state is nearly zero, and so is the
    gradient that reaches earlier events through it.
    """
    bound = math.sqrt(6 / sum(shape))
    return (torch.rand(shape, generator=generator, device=generator.device) * 2 - 1) * bound
