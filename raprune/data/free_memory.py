"""The free memory of the machine, which is checked before a data set is decoded into memory."""

from __future__ import annotations

import os
from pathlib import Path

from raprune.errors import DataError


def check_memory(needed: int, *, what: str) -> None:
    """Refuse an allocation that would not fit into memory; `what` names the allocation in the message.

    Raises:
        DataError: if `needed` bytes are more than the available bytes; the message names both.
    """
    available = available_bytes()
    if needed > available:
        raise DataError(
            f"{what} needs {needed / 2**30:.1f} GiB of memory; {available / 2**30:.1f} GiB are available.",
            hint="Use fewer images (data.max_images), smaller ones (data.image_size), or a machine with more memory.",
        )


def available_bytes() -> int:
    """Return the number of bytes that can be allocated: the smaller of the machine's and the container's."""
    return min(_machine_bytes(), _container_bytes())


def _machine_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # Not Linux: the standard library knows only the total.
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
