"""The device of a worker after an error: a canary that tells a broken one, and the end of a process that has one."""

from __future__ import annotations

import os
from typing import NoReturn

import torch

BROKEN = 71
"""Exit status of a worker whose device is broken (EX_OSERR of sysexits.h)."""


def works(device: torch.device) -> bool:
    """True if the device still computes. Its cache is emptied first, so that memory for the next attempt is free."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.empty_cache()
        torch.cuda.synchronize(device)
        return torch.ones(1, device=device).add(1).item() == 2
    except Exception:
        # Whatever it raises: a process with a broken context gives every kind of error.
        return False


def end_process() -> NoReturn:
    """End this process at once: the destructors of a broken CUDA context may raise or wait for ever."""
    os._exit(BROKEN)
