"""The processor's memory between two steps: kept, since giving it back and asking again costs more than a layer.

A step of training on a processor takes and frees each activation once. By default glibc hands such blocks back to the
system, which zeroes each page anew: for ResNet-20 at batch 128 about ten thousand page faults a step, and an eighth
of its time.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of `malloc.h`."""
_KEPT = 2**30
"""Bytes that are free at the heap's end and stay with the process."""
_LARGEST_ON_HEAP = 2**25
"""Bytes of a block from which on it is the system's again as soon as it is freed: the most that glibc allows."""


@cache
def keep_freed_memory() -> None:
    """Have this process keep freed memory, at most as much as it once needed, and take large blocks in large pages.

    Large pages only where it comes before torch's first tensor, and the system grants them. Nothing but Linux with
    glibc is touched.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    # Read by torch when it first allocates; whoever has set it knows better.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
