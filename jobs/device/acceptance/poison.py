"""A method that makes one process useless: what a broken card does to an actor, once in a search."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn

from raprune.methods import Batches, Cut
from raprune.methods.magnitude import L2

MARK = "RAPRUNE_ACCEPTANCE_MARK"
"""Environment variable with the file that the first process makes, so that no second one is broken."""


@dataclass(frozen=True, kw_only=True)
class Poisoned(L2):
    """`l2`, but the first repair of all reads beyond the end of a tensor on the GPU.

    After such an error every call of CUDA in the process fails. On a CPU it only raises the error.
    """

    def repair(self, model: nn.Module, batches: Batches, cut: Cut) -> None:
        if _first(os.environ[MARK]):
            _break(next(model.parameters()).device)
        super().repair(model, batches, cut)


def _first(mark: str) -> bool:
    """Return True in the one process that makes the file `mark`."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _break(device: torch.device) -> None:
    if device.type != "cuda":
        raise RuntimeError("CUDA error: device-side assert triggered")
    four = torch.zeros(4, device=device)
    _ = four[torch.tensor([9], device=device)]
    torch.cuda.synchronize(device)
