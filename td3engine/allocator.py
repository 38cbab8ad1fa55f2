"""Keeps freed memory for the next step.

glibc gives large freed blocks back to the kernel, and every page of a new one is a fault again. A
training step frees and takes the same few hundred blocks of some hundred kilobytes over and over.
"""

import ctypes
import platform

# <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_KEPT = 32 * 2**20  # glibc takes no more as a threshold; larger blocks are given back
KEPT_IN_ALL = 512 * 2**20
TAKEN_AHEAD = 64 * 2**20


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
