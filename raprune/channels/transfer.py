"""Arrays on a device: several of them by one copy, for which the CPU does not wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def arrays_on(device: torch.device, arrays: Sequence[npt.NDArray[Any]]) -> list[Tensor]:
    """Return arrays of one type and any shapes as tensors on `device`; for CUDA the copy goes through pinned memory."""
    if not arrays:
        return []
    flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays]))
    flat = flat.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else flat.to(device)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
