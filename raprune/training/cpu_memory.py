"""CPU memory between two training steps: the process keeps it, because returning and requesting it again is expensive.

A training step on the CPU allocates and frees each activation once. By default glibc returns such blocks to the
system, which zeroes each page again: for ResNet-20 at batch 128 about ten thousand page faults per step, and an eighth
of the step's time.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Constants of `malloc.h`."""
_KEPT = 2**30
"""Bytes of free memory at the end of the heap that stay with the process."""
_LARGEST_ON_HEAP = 2**25
"""Bytes of a block from which on it returns to the system as soon as it is freed: the maximum that glibc allows."""


@cache
def keep_freed_memory() -> None:
    """Make this process keep freed memory, at most as much as it once needed, and allocate large blocks in large pages.

    Large pages are used only if this function runs before torch's first allocation, and if the system grants them. The
    function has an effect only on Linux with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    # torch reads the variable at its first allocation; a value that the user has set is kept.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
