"""Tensors in few bytes: what comes back, bit for bit; what rounding costs; what is refused."""

import json
import lzma
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from td3engine.summary import packing
from td3engine.summary.packing import (
    LARGEST_CODE,
    LARGEST_NUMBERS,
    PackingError,
    half,
    pack,
    rounded,
    unpack,
)
from tests.td3engine.oracles import seeded

SHARES = [0.05, 0.2, 0.5, 1.0, 2.0]


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


KINDS: dict[str, tuple[Tensor, str]] = {
    "a grid": (rounded(values(30, 5), 0.2), "int8"),
    "a grid of all dimensions": (rounded(values(4, 5, 6), 0.5), "int8"),
    "a grid, one row": (rounded(values(7), 0.5), "int8"),
    "a grid, tiny": (rounded(values(30, 5) * 1e-20, 0.2), "int8"),
    "a grid, huge": (rounded(values(30, 5) * 1e15, 0.2), "int8"),
    "whole numbers to the largest": (torch.arange(-127.0, 128.0), "int8"),
    "whole numbers beyond it": (torch.arange(-129.0, 129.0), "float16"),
    "one number": (torch.full((3, 4), 0.375), "int8"),
    "half precision": (half(values(30, 5)), "float16"),
    "zeros": (torch.zeros(3, 4), "float16"),
    "negative zeros on a grid": (torch.tensor([-0.0, 1.0, 2.0]), "float16"),
    "negative zeros on no grid": (torch.tensor([-0.0, 0.1, 0.317]), "float32"),
    "single precision": (values(30, 5), "float32"),
    "larger than half precision holds": (values(30, 5) * 1e30, "float32"),
    "denormal": (torch.tensor([1e-45, 1e-40, 1e-38]), "float32"),
    "infinite": (torch.tensor([[math.inf, -math.inf, 0.1]]), "float32"),
    "none": (torch.zeros(0, 3), "float16"),
    "items": (torch.randint(2**16, (9, 5), generator=seeded(1)), "uint16"),
    "many items": (torch.randint(2**24, (9, 5), generator=seeded(1)), "uint32"),
    "the last of few items": (torch.tensor([[2**16 - 1]]), "uint16"),
    "the first of many": (torch.tensor([[2**16]]), "uint32"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_packed_comes_back_bit_for_bit(name: str) -> None:
    tensor, kind = KINDS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data, about = pack(tensor)
    found = unpack(data, about)
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert bits(found) == bits(tensor)
    assert about["type"] == kind
    assert about["shape"] == list(tensor.shape)
    assert ("step" in about) == (kind == "int8")
    # The description goes through a header's text.
    assert json.loads(packing.describe({"x": about})) == {"x": about}
    again, about_again = pack(found)
    assert (again, about_again) == (data, about)


def test_a_number_that_is_none_comes_back() -> None:
    tensor = torch.tensor([[math.nan, 1.0, 0.1]])
    assert bits(unpack(*pack(tensor))) == bits(tensor)


def test_views_are_packed_as_what_they_hold() -> None:
    tensor = values(6, 4)
    for view in (tensor.T, tensor[::2], tensor.requires_grad_()[:, 1:3]):
        assert torch.equal(unpack(*pack(view)), view.detach())


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 37.0])
@pytest.mark.parametrize("away", [0.0, 3.0])
def test_rounding_errs_by_half_a_step_at_most(share: float, scale: float, away: float) -> None:
    """A step is a share of the deviation around the means of columns, which may be large."""
    tensor = (values(200, 16) + away * values(16, seed=1)) * scale
    found = rounded(tensor, share)
    step = pack(found)[1]["step"]
    # The grid's step divides the one that was found in the numbers.
    error = (found - tensor).abs().max()
    size = float((tensor - tensor.mean(0)).square().mean().sqrt())
    # At most what was asked for, or what the largest value needs in three significant bits.
    widest = max(share * size, 1.25 * float(tensor.abs().max()) / LARGEST_CODE)
    assert float(error) <= widest / 2 * (1 + 1e-6)
    if float(tensor.abs().max()) < LARGEST_CODE * share * size / 2:
        # Down to three significant bits: a step is from 4/5 of what was asked for to all of it.
        assert 0.8 * share * size < step <= share * size
    assert torch.equal(found, rounded(tensor, share))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("seed", range(5))
def test_steps_have_three_significant_bits(share: float, seed: int) -> None:
    step = pack(rounded(values(500, 8, seed=seed) * (seed + 0.3), share))[1]["step"]
    mantissa, _ = math.frexp(step)
    assert mantissa * 8 in (4, 5, 6, 7)


def test_a_far_value_makes_the_step_larger_and_no_more_codes() -> None:
    """One of ten million: at the step that was asked for it would be the 10^7-th multiple."""
    tensor = values(100, 4)
    tensor[0, 0] = 1e7
    tensor = torch.cat([tensor, torch.full((10**4, 4), 1e5)])
    found = rounded(tensor, 0.01)
    data, about = pack(found)
    assert about["type"] == "int8"
    assert float(found.abs().max()) <= LARGEST_CODE * about["step"]
    assert float((found - tensor).abs().max()) <= about["step"] / 2 * (1 + 1e-6)
    assert bits(unpack(data, about)) == bits(found)


def test_rounding_leaves_what_it_cannot_round() -> None:
    tensor = values(5, 3)
    assert rounded(tensor, 0.0) is tensor
    for odd in (torch.zeros(4), torch.zeros(0, 3), torch.tensor([math.nan, 1.0])):
        assert bits(rounded(odd, 0.5)) == bits(odd)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounded_numbers_are_their_nearest_multiples_without_negative_zeros(
    dtype: torch.dtype,
) -> None:
    tensor = values(300, 4).to(dtype)
    found = rounded(tensor, 0.5)
    assert found.dtype == dtype
    step = pack(found.float())[1]["step"]
    nearest = np.rint(tensor.double().numpy() / step) * step
    np.testing.assert_allclose(found.double().numpy(), nearest, rtol=0, atol=1e-12)
    assert not torch.signbit(found[found == 0]).any()
    assert (found == 0).any()
    # What lies on a grid already stays there.
    assert torch.equal(rounded(found, 0.5) % step, torch.zeros_like(found))


def test_half_precision_keeps_the_type() -> None:
    for dtype in (torch.float32, torch.float64):
        found = half(values(20).to(dtype))
        assert found.dtype == dtype
        assert torch.equal(found, values(20).half().to(dtype))


def test_a_grid_is_smaller_than_halves_and_halves_than_singles() -> None:
    """A step of half the standard deviation is about 3.05 bits a number (the entropy of a normal
    variable, log2 of its deviation over the step + 2.05), and the coder needs little more."""
    tensor = values(2000, 16)
    sizes = [len(pack(each)[0]) for each in (rounded(tensor, 0.5), half(tensor), tensor)]
    numbers = tensor.numel()
    assert sizes[0] < sizes[1] < sizes[2]
    step = pack(rounded(tensor, 0.5))[1]["step"]
    entropy = math.log2(1 / step) + 0.5 * math.log2(2 * math.pi * math.e)
    assert entropy * numbers / 8 < sizes[0] < (entropy + 0.35) * numbers / 8
    assert sizes[1] <= 2 * numbers * 1.01
    assert sizes[2] <= 4 * numbers * 1.01
    coarser, finer = (len(pack(rounded(tensor, share))[0]) for share in (1.0, 0.2))
    assert coarser < sizes[0] < finer < sizes[1]


DATA, ABOUT = pack(rounded(values(6, 5), 0.5))


def of_other_size(count: int) -> bytes:
    return pack(torch.arange(float(count)))[0]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        DATA[:-1],
        DATA[: len(DATA) // 2],
        DATA + b"\0",
        DATA + DATA,
        b"\xff" * len(DATA),
        of_other_size(29),
        of_other_size(31),
    ],
)
def test_damaged_short_and_long_bytes_are_refused(damaged: bytes) -> None:
    with pytest.raises(PackingError):
        unpack(damaged, ABOUT)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_damaged_head_is_refused(at: int) -> None:
    """LZMA has no checksum of its own (the manifest has); its framing is checked."""
    damaged = bytearray(DATA)
    damaged[at] ^= 0xFF
    with pytest.raises(PackingError):
        unpack(bytes(damaged), ABOUT)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("shape", [6, 6]),
        ("shape", [5]),
        ("shape", [-6, -5]),
        ("shape", [-1, 30]),
        ("shape", [0, 5]),
        ("shape", [30, 0]),
        ("shape", [LARGEST_NUMBERS + 1]),
        ("shape", [2**40, 2**40]),
        ("shape", [10**400]),
        ("shape", [math.inf]),
        ("shape", [math.nan]),
        ("shape", [1] * 80 + [30]),
        ("shape", None),
        ("shape", 30),
        ("shape", ["six", 5]),
        ("type", "float64"),
        ("type", "object"),
        ("type", "int64"),
        ("type", "float32"),
        ("type", "i1,i1"),
        ("type", "no type"),
        ("type", None),
        ("type", ["int8"]),
        ("step", "large"),
        ("step", None),
        ("step", [1]),
        ("step", 0.0),
        ("step", -1.0),
        ("step", math.nan),
        ("step", math.inf),
    ],
)
def test_absurd_descriptions_are_refused(part: str, value: Any) -> None:
    with pytest.raises(PackingError):
        unpack(DATA, {**ABOUT, part: value})


@pytest.mark.parametrize("part", ["shape", "type"])
def test_incomplete_descriptions_are_refused(part: str) -> None:
    with pytest.raises(PackingError, match=part):
        unpack(DATA, {key: value for key, value in ABOUT.items() if key != part})


def test_no_description_is_refused() -> None:
    nothing: list[Any] = [[], "int8", None, 3]
    for about in nothing:
        with pytest.raises(PackingError):
            unpack(DATA, about)


def test_no_more_is_unpacked_than_there_should_be() -> None:
    """A bomb: a kilobyte of zeros that would fill memory."""
    bomb = lzma.compress(bytes(2**24), format=lzma.FORMAT_RAW, filters=packing._FILTERS)
    assert len(bomb) < 2**13
    with pytest.raises(PackingError, match="does not have 31 bytes"):
        unpack(bomb, ABOUT)
