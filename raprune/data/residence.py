"""The decision where the images of a split are stored: on the device, or on the host, whose batches are copied."""

from __future__ import annotations

from dataclasses import dataclass

import torch

RESIDENT = 0.6
"""Largest fraction of a device's free memory that a split may take: activations, gradients and workspaces of
convolutions need the rest."""


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of a device in bytes."""

    free: int
    total: int


def device_memory(device: torch.device) -> DeviceMemory | None:
    """Return the memory of a CUDA device; None for the CPU, on which images are not copied at all."""
    return DeviceMemory(*torch.cuda.mem_get_info(device)) if device.type == "cuda" else None


def fits(needed: int, memory: DeviceMemory | None, *, share: float = 1.0) -> bool:
    """Return True if a split of `needed` bytes is to be stored on the device.

    It may take `RESIDENT` of the free memory. Processes that share a card, those whose `share` of it is below 1, store
    nothing there: their one copy is that of the host, which all processes of a node map. A batch of 256 ImageNet
    photographs is 38 MB, by estimate 2 ms of the bus, while each process would hold the whole split.
    """
    if memory is None:
        return True
    return share >= 1 and needed <= RESIDENT * memory.free
