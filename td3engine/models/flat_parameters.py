"""Parameters as views of one flat vector; dropout masks drawn before their use."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor

INITIAL_STD = 0.02
Shape = tuple[int, ...]


class FlatParameters:
    """Named parameters in one flat vector (P).

    Args:
        shapes: name and shape of each parameter, in the vector's order. The name says how it is
            initialised: `...norm_weight` at one, `...bias` at zero, others from N(0, 0.02^2). A
            backbone with another rule overrides `_initial`.
    """

    def __init__(self, shapes: dict[str, Shape]) -> None:
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in shapes.values()]

    @property
    def n_parameters(self) -> int:
        return sum(self._sizes)

    def named(self, parameters_P: Tensor) -> dict[str, Tensor]:
        views = zip(self._shapes, parameters_P.split(self._sizes), strict=True)
        return {name: flat.view(self._shapes[name]) for name, flat in views}

    def initial(self, generator: Generator) -> Tensor:
        parts = [self._initial(name, shape, generator) for name, shape in self._shapes.items()]
        return torch.cat([part.reshape(-1) for part in parts])

    def _initial(self, name: str, shape: Shape, generator: Generator) -> Tensor:
        if name.endswith("norm_weight"):
            return torch.ones(shape, device=generator.device)
        if name.endswith("bias"):
            return torch.zeros(shape, device=generator.device)
        return torch.randn(shape, generator=generator, device=generator.device) * INITIAL_STD


def draw_masks(shapes: Sequence[Shape], rate: float, generator: Generator) -> Tensor | None:
    """Scaled dropout masks of these shapes as one flat tensor; None if the rate is zero.

    The rate is rounded to a multiple of 1/65,536. The scale is that of the rounded rate.
    """
    if rate == 0:
        return None
    count = sum(math.prod(shape) for shape in shapes)
    # A 64-bit word gives four 16-bit numbers: an eighth of the time of as many uniform floats.
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    uniform = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
    threshold = min(round(rate * 2**16), 2**16 - 1)
    masks = torch.empty(count, device=generator.device)
    torch.ge(uniform, threshold - 2**15, out=masks)
    return masks.mul_(2**16 / (2**16 - threshold))


def cut_masks(flat: Tensor | None, shapes: Sequence[Shape]) -> list[Tensor | None]:
    """Views of what `draw_masks` returned for these shapes; Nones if that was None."""
    if flat is None:
        return [None] * len(shapes)
    ends = [0]
    for shape in shapes:
        ends.append(ends[-1] + math.prod(shape))
    return [
        flat[start:end].view(shape)
        for (start, end), shape in zip(pairwise(ends), shapes, strict=True)
    ]


def drop(x: Tensor, mask: Tensor | None) -> Tensor:
    """x times its mask; x itself without one."""
    return x if mask is None else x * mask
