"""What a computing process settles with its machine, once, before it computes.

Freed memory is kept: glibc gives large freed blocks back to the kernel, and every page of a new one
is a fault again. A training step frees and takes the same few hundred blocks of some hundred
kilobytes over and over.

Float32 products go to oneDNN where torch's usual library is slow: torch's builds for x86 multiply
by MKL, which does not use all vector instructions of processors that are not Intel's. On an AMD
EPYC with AVX-512, oneDNN (which torch carries too) takes half of the time. torch offers it for
float32 only as the way that *may* round inputs to bfloat16; a processor without AMX has no such
way, and its results are those of float32. Where they are not, the offer is declined.

There are no more threads than the control group has processors for: torch counts those of the
machine, and a container that may use two of sixty-four would have thirty threads wait for each.

On a GPU sums are taken in a fixed order: several numbers that are added to one place (`index_add_`)
would be added as they come, and a run with the same seed would not give the same bytes.
"""

import ctypes
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from td3engine.config import Device
from td3engine.errors import DeviceError

# <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_KEPT = 32 * 2**20  # glibc takes no more as a threshold; larger blocks are given back
KEPT_IN_ALL = 512 * 2**20
TAKEN_AHEAD = 64 * 2**20

CGROUP = Path("/sys/fs/cgroup")  # of a container its own
PROBE_NUMBERS, PROBE_OPERATIONS = 2**16, 400  # as an inner step has them
WAITING = 3  # times as long as with one thread is too long
LARGEST_ERROR = 1e-4  # of a product of 64 x 64 unit normals: float32 1e-5, from bfloat16 0.1


def pick_device(requested: Device = "auto") -> torch.device:
    """The requested device; `auto` is CUDA where there is one.

    A summary's own `config.device` says where it was made, and requests nothing of its users.

    Raises:
        DeviceError: `cuda` is requested and absent.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device 'cuda' is asked for, but torch finds none here")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if requested == "auto" else requested)


def configure(device: torch.device | None = None) -> None:
    """All of the module's docstring, as far as it applies here."""
    keep_freed_memory()
    use_fast_matmul()
    quota = processors_allowed()
    if quota is not None and quota < torch.get_num_threads():
        torch.set_num_threads(quota)
    if device is not None and device.type == "cuda":
        use_deterministic_cuda()


def use_deterministic_cuda() -> None:
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


def use_fast_matmul() -> bool:
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


def processors_allowed() -> int | None:
    """How many processors' time this control group may use, rounded up; None if that is not said.

    Versions 2 (`cpu.max`: quota and period, or `max`) and 1 (two files; a quota of -1 is none).
    """
    try:
        if (file := CGROUP / "cpu.max").exists():
            quota, period = file.read_text().split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((CGROUP / "cpu" / name).read_text().strip() for name in names)
        return None if quota in ("max", "-1") else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # another system, or one that says it otherwise
        return None


def cpu_contention() -> str | None:
    """Says so where torch's threads wait for each other much longer than they compute.

    Every parallel operation ends when its last thread does: where one of them has no core of its
    own, because something else computes on this machine, the others wait for it each time. A
    teacher of MovieLens-100k took 7 times as long with two threads on two cores, of which one was
    taken, as it takes with one thread there.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return None
    together = _seconds_of_small_operations()
    torch.set_num_threads(1)
    alone = _seconds_of_small_operations()
    torch.set_num_threads(threads)
    if together < WAITING * alone:
        return None
    return (
        f"{threads} threads take {together / alone:.0f} times as long as one: this machine has "
        "something else to do. A run with `threads: 1` may be much faster (another number of "
        "threads gives other bytes)"
    )


def _seconds_of_small_operations() -> float:
    x = torch.ones(PROBE_NUMBERS)
    began = time.perf_counter()
    for _ in range(PROBE_OPERATIONS):
        x.mul_(1.0)
    return time.perf_counter() - began


@contextmanager
def deterministic() -> Iterator[None]:
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
