"""Parameters as views of one flat vector, and dropout masks drawn ahead of their use."""

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
        shapes: name and shape of each, in the vector's order. By its name a parameter starts at one
            (`...norm_weight`), at zero (`...bias`), or at N(0, 0.02^2).
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
    """Scaled dropout masks of these shapes as one flat tensor; None when nothing is dropped.

    The rate is rounded to a 65,536th, and the scale fits what it is then.
    """
    if rate == 0:
        return None
    count = sum(math.prod(shape) for shape in shapes)
    # Four 16-bit numbers of each drawn word: an eighth of the time of as many uniform floats.
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    drawn = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
    threshold = min(round(rate * 2**16), 2**16 - 1)
    kept = torch.empty(count, device=generator.device)
    torch.ge(drawn, threshold - 2**15, out=kept)
    return kept.mul_(2**16 / (2**16 - threshold))


def cut_masks(flat: Tensor | None, shapes: Sequence[Shape]) -> list[Tensor | None]:
    """The masks that `draw_masks` drew, each in its own shape."""
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
    return x if mask is None else x * mask
