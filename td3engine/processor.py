"""What a computing process settles with its machine, once, before it computes.

Freed memory is kept: glibc gives large freed blocks back to the kernel, and every page of a new one
is a fault again. A training step frees and takes the same few hundred blocks of some hundred
kilobytes over and over.

Float32 products go to oneDNN where torch's usual library is slow: torch's builds for x86 multiply
by MKL, which does not use all vector instructions of processors that are not Intel's. On an AMD
EPYC with AVX-512, oneDNN (which torch carries too) takes half of the time. torch offers it for
float32 only as the way that *may* round inputs to bfloat16; a processor without AMX has no such
way, and its results are those of float32. Where they are not, the offer is declined.

On a GPU sums are taken in a fixed order: several numbers that are added to one place (`index_add_`)
would be added as they come, and a run with the same seed would not give the same bytes.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_KEPT = 32 * 2**20  # glibc takes no more as a threshold; larger blocks are given back
KEPT_IN_ALL = 512 * 2**20
TAKEN_AHEAD = 64 * 2**20

LARGEST_ERROR = 1e-4  # of a product of 64 x 64 unit normals: float32 1e-5, from bfloat16 0.1


def settle(device: torch.device | None = None) -> None:
    """All of the module's docstring, as far as it applies here."""
    keep_freed_memory()
    quick_products()
    if device is not None and device.type == "cuda":
        fixed_order()


def fixed_order() -> None:
    """Has torch take sums on a GPU in a fixed order, in this process.

    To be called before the first product there: cuBLAS reads its setting once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # An operation that has no such way is a warning: bytes that may differ, but a summary.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks, in this process; False where there is another C library."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {
        M_MMAP_THRESHOLD: LARGEST_KEPT,
        M_TRIM_THRESHOLD: KEPT_IN_ALL,
        M_TOP_PAD: TAKEN_AHEAD,
    }
    taken = [mallopt(which, value) for which, value in settings.items()]
    return all(taken)


def quick_products() -> bool:
    """Has torch multiply float32 matrices by oneDNN, if that is quicker here and as exact."""
    if "AMD" not in str(torch.cpu.get_capabilities().get("cpu_name", "")):
        return False
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # not in its stubs
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    if largest_error() <= LARGEST_ERROR:
        return True
    settings.fp32_precision = before
    return False


@contextmanager
def strict_order() -> Iterator[None]:
    """Where sums are taken in a fixed order, have operations keep to it that only warn otherwise:
    attention's gradient (`scaled_dot_product_attention`) splits its keys unless it is forced."""
    settled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(settled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(settled, warn_only=warns)


def largest_error() -> float:
    """How far a float32 product of unit normals (64, 64) is from that in float64."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 64, 64, generator=draw)
    return float(((x @ y).double() - x.double() @ y.double()).abs().max())
