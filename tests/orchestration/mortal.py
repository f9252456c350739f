"""A network whose training is killed with its process, for `package.module:function`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from torch import Tensor, nn

from raprune.models.digits import DigitsNet

STEPS = 0
"""Training steps of this process."""


class Mortal(DigitsNet):
    """On rank 1 of a group, the process is killed at training step `at` if no other was before it."""

    def __init__(self, *, deaths: str, at: int, num_classes: int) -> None:
        super().__init__(num_classes=num_classes)
        self.deaths = deaths
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        global STEPS
        if self.training and os.environ.get("RANK") == "1":
            STEPS += 1
            folder = Path(self.deaths)
            if self.at == STEPS and not any(folder.iterdir()):
                (folder / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def build(deaths: str = "", at: int = 0, num_classes: int = 10) -> nn.Module:
    return Mortal(deaths=deaths, at=at, num_classes=num_classes)
