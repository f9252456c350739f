"""How much memory is left, asked before a data set is decoded into it."""

from __future__ import annotations

import os
from pathlib import Path

from raprune.errors import DataError


def check_memory(needed: int, *, what: str) -> None:
    """Refuse what would not fit.

    Raises:
        DataError: if `needed` bytes are more than is left, naming both.
    """
    available = available_bytes()
    if needed > available:
        raise DataError(
            f"{what} needs {needed / 2**30:.1f} GiB of memory; {available / 2**30:.1f} GiB are available.",
            hint="Use fewer images (data.max_images), smaller ones (data.image_size), or a machine with more memory.",
        )


def available_bytes() -> int:
    """Bytes that can be allocated: the machine's, or the container's where that is less."""
    return min(_machine_bytes(), _container_bytes())


def _machine_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # Not Linux: the total is the best that the standard library tells.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_bytes() -> int:
    unlimited = 2**62
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except OSError:
        return unlimited
    return unlimited if limit == "max" else max(0, int(limit) - used)
