"""The memory that the repair of a candidate may take."""

from __future__ import annotations

import torch

from raprune.data.free_memory import available_bytes

FREE = 0.6
"""Fraction of the free memory that a repair may take: others may share the device, and estimates are estimates."""


def repair_room(device: torch.device) -> int:
    """Return the number of bytes that a repair may take on `device`.

    On CUDA the memory that PyTorch keeps of freed tensors counts as free; on other devices the machine's memory counts.
    """
    if device.type != "cuda":
        return int(FREE * available_bytes())
    free, _ = torch.cuda.mem_get_info(device)
    return int(FREE * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)))
