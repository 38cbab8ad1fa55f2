"""Set-up of a process for computing, once, before it computes.

- **Freed memory is kept.** glibc gives large freed blocks back to the kernel, and every page of a
  new one is a fault again. A training step frees and allocates the same few hundred blocks of some
  hundred kilobytes over and over.
- **Float32 products go to oneDNN where torch's usual library is slow.** torch's builds for x86
  multiply by MKL, which does not use all vector instructions of processors that are not Intel's. On
  an AMD EPYC with AVX-512 oneDNN needs half of the time. torch selects it for float32 only by a
  setting that allows inputs rounded to bfloat16. A processor without AMX cannot round so, and its
  results are those of float32; where results differ, the setting is reverted.
- **No more threads than the control group has processors for.** torch counts those of the machine:
  in a container that may use two of sixty-four, thirty threads would wait for each.
- **On a GPU sums have a fixed order.** Otherwise numbers that are added to one place (`index_add_`)
  are added as they arrive, and a run with the same seed would not give the same bytes.
"""

import ctypes
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch

from td3engine.config import Device
from td3engine.errors import DeviceError

# <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_KEPT = 32 * 2**20  # glibc accepts no larger threshold; larger blocks are given back
KEPT_IN_TOTAL = 512 * 2**20
ALLOCATED_AHEAD = 64 * 2**20

CGROUP = Path("/sys/fs/cgroup")  # of a container its own
PROBE_NUMBERS, PROBE_OPERATIONS = 2**16, 400  # as an inner step has them
WAITING = 3  # times as long as with one thread is contention
LARGEST_ERROR = 1e-4  # of a product of 64 x 64 unit normals: float32 1e-5, from bfloat16 0.1


def pick_device(requested: Device = "auto") -> torch.device:
    """The requested device; `auto` is CUDA where there is one.

    A summary's own `config.device` says where it was made, and requests nothing of its users.

    Raises:
        DeviceError: `cuda` is requested and absent, or there is no such kind of device.
    """
    if requested not in get_args(Device):
        kinds = ", ".join(get_args(Device))
        raise DeviceError(f"device must be one of {kinds}, not {requested!r}")
    if requested == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device 'cuda' is asked for, but torch finds none here")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if requested == "auto" else requested)


def configure(device: torch.device | None = None) -> None:
    """Apply what the module's docstring lists, as far as this machine needs it."""
    keep_freed_memory()
    use_fast_matmul()
    quota = processors_allowed()
    if quota is not None and quota < torch.get_num_threads():
        torch.set_num_threads(quota)
    if device is not None and device.type == "cuda":
        use_deterministic_cuda()


def use_deterministic_cuda() -> None:
    """Have torch sum in a fixed order on a GPU, in this process.

    Call it before the first product there: cuBLAS reads its setting once.
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
        M_TRIM_THRESHOLD: KEPT_IN_TOTAL,
        M_TOP_PAD: ALLOCATED_AHEAD,
    }
    accepted = [mallopt(which, value) for which, value in settings.items()]
    return all(accepted)


def use_fast_matmul() -> bool:
    """Have torch multiply float32 matrices by oneDNN, if that is faster here and as exact."""
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
    """How many processors' time this control group may use, rounded up; None: unknown.

    Versions 2 (`cpu.max`: quota and period, or `max`) and 1 (two files; a quota of -1 is none).
    """
    try:
        if (file := CGROUP / "cpu.max").exists():
            quota, period = file.read_text().split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((CGROUP / "cpu" / name).read_text().strip() for name in names)
        return None if quota in ("max", "-1") else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no control groups, or another format
        return None


def cpu_contention() -> str | None:
    """A warning where torch's threads wait for each other much longer than they compute, or None.

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
    """Where sums have a fixed order, force it on operations that only warn otherwise: attention's
    gradient (`scaled_dot_product_attention`) splits its keys unless it is forced."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)


def largest_error() -> float:
    """Largest difference of a float32 product of unit normals (64, 64) from that in float64."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 64, 64, generator=draw)
    return float(((x @ y).double() - x.double() @ y.double()).abs().max())
