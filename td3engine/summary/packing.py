"""Numbers in few bytes: rounding to a grid, and files that keep what lies on one exactly.

Rounding is lossy and belongs to a run, which measures the rounded summary. Packing loses nothing: a
tensor on a grid is written as its whole numbers, one that half precision holds as such, any other
one as it is; then an entropy coder (LZMA) takes what is left of redundancy. Uniform steps with an
entropy coder need about a quarter of a bit a number more than any coder of that error must (Gish
and Pierce, 1968): there is no codebook to be trained or stored.
"""

import json
import lzma
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST_CODE = 127
LARGEST_NUMBERS = 2**31  # of a tensor that is read
# One column after the other, without context: neighbours in a column say nothing of each other. Nor
# is there much to be found far back; what is repeated are short histories, and those are near.
_FILTERS: list[dict[str, Any]] = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 6,
        "dict_size": 2**20,
        "lc": 0,
        "lp": 0,
        "pb": 0,
        "nice_len": 16,
        "depth": 4,
    }
]


class PackingError(ValueError):
    """Bytes that do not hold the tensor that they are said to hold."""


def rounded(values: Tensor, share: float) -> Tensor:
    """The values to the nearest multiple of a step: `share` of their standard deviation, or a
    little less; 0 changes nothing.

    The deviation is that around the means of columns (the last dimension). The step has three
    significant bits, so that all multiples are exact in float32. It is larger where the largest
    value would need more than `LARGEST_CODE` steps.
    """
    columns = values.flatten(0, -2) if values.dim() > 1 else values
    scale = float((columns - columns.mean(0)).square().mean().sqrt()) if values.numel() else 0.0
    if not share or not scale or not math.isfinite(scale):
        return values
    largest = float(values.abs().max())
    mantissa, exponent = math.frexp(share * scale)
    eighths = math.floor(8 * mantissa)  # 4 to 7
    while largest > (LARGEST_CODE + 0.5) * math.ldexp(eighths, exponent - 3):
        eighths, exponent = (eighths + 1, exponent) if eighths < 7 else (4, exponent + 1)
    step = math.ldexp(eighths, exponent - 3)
    return (values / step).round() * step + 0.0  # no negative zeros: a file has none


def half(values: Tensor) -> Tensor:
    """The values in half precision, in the type they have."""
    return values.half().to(values.dtype)


def pack(values: Tensor) -> tuple[bytes, dict[str, Any]]:
    """A float32 or int64 tensor's bytes, and what `unpack` has to know besides them."""
    array = values.detach().cpu().numpy()
    about: dict[str, Any] = {"shape": list(array.shape)}
    stored: NDArray[Any]
    if array.dtype == np.int64:
        stored = array.astype(np.uint16 if array.max(initial=0) < 2**16 else np.uint32)
    elif (step := _step(array)) is not None:
        stored, about["step"] = np.rint(array / step).astype(np.int8), step
    else:
        with np.errstate(over="ignore"):  # what half precision does not hold is stored as it is
            narrow = array.astype(np.float16)
        stored = narrow if np.array_equal(narrow.astype(np.float32), array) else array
    about["type"] = stored.dtype.name
    columns = stored.reshape(-1, array.shape[-1]).T if array.ndim > 1 else stored
    data = np.ascontiguousarray(columns).astype(stored.dtype.newbyteorder("<")).tobytes()
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=_FILTERS), about


def unpack(data: bytes, about: dict[str, Any]) -> Tensor:
    """The tensor that was packed.

    Raises:
        PackingError: the bytes are damaged, or another number of values.
    """
    try:
        shape, kind = [int(size) for size in about["shape"]], np.dtype(about["type"])
        step = float(about["step"]) if "step" in about else None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PackingError(f"a tensor's description is damaged: {error}") from error
    count = math.prod(shape)
    if kind.name not in ("int8", "uint16", "uint32", "float16", "float32"):
        raise PackingError(f"a tensor cannot be of type {kind.name}")
    if any(size < 0 for size in shape) or count > LARGEST_NUMBERS:
        raise PackingError(f"a tensor cannot have the shape {shape}")
    if step is not None and not 0 < step < math.inf:
        raise PackingError(f"a tensor cannot have the step {step}")
    expected = count * kind.itemsize
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        # One byte more than there should be is enough to know that there are too many.
        raw = decoder.decompress(data, max_length=expected + 1)
    except lzma.LZMAError as error:
        raise PackingError("a tensor's bytes are damaged") from error
    if len(raw) != expected or not decoder.eof or decoder.unused_data:
        raise PackingError(f"a tensor of shape {shape} does not have {len(raw)} bytes")
    stored = np.frombuffer(raw, kind.newbyteorder("<")).astype(kind)
    try:
        rows = stored.reshape(shape[-1], -1).T if len(shape) > 1 else stored
        array = rows.reshape(shape)
    except ValueError as error:
        raise PackingError(f"a tensor cannot have the shape {shape}") from error
    if step is not None:
        return torch.from_numpy(array.astype(np.float32) * np.float32(step))
    wide = np.int64 if kind.name.startswith("uint") else np.float32
    return torch.from_numpy(np.ascontiguousarray(array.astype(wide)))


def describe(tensors: dict[str, dict[str, Any]]) -> str:
    """What `unpack` needs of all tensors, as text of a file's header."""
    return json.dumps(tensors, sort_keys=True)


def _step(array: NDArray[Any]) -> float | None:
    """The largest step that all values are small multiples of; None: there is none."""
    largest = float(np.abs(array).max(initial=0.0))
    if largest == 0 or not math.isfinite(largest):
        return None
    if np.signbit(array[array == 0]).any():  # a whole number has no negative zero
        return None
    # Codes of 7 bits and steps of 3: in units of 2^-11 of the largest value all are whole.
    unit = math.ldexp(1.0, math.frexp(largest)[1] - 11)
    whole = array.astype(np.float64) / unit
    if not np.array_equal(whole, np.rint(whole)):
        return None
    step = int(np.gcd.reduce(np.abs(whole).astype(np.int64), axis=None))
    return step * unit if largest <= (LARGEST_CODE + 0.5) * step * unit else None
