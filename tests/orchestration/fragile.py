"""Networks that break in a worker, for `package.module:function`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn


class Fragile(nn.Module):
    """A small network; once its second layer is cut, running it raises, or ends the process a number of times.

    `always`: once either layer is cut.
    """

    def __init__(self, *, deaths: str, times: int, raises: bool, always: bool, num_classes: int) -> None:
        super().__init__()
        self.deaths = deaths
        self.times = times
        self.raises = raises
        self.always = always
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.second.out_channels < 16 or (self.always and self.first.out_channels < 16)
        if os.environ.get("RAY_JOB_ID") and narrow:
            self._break()
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))

    def _break(self) -> None:
        if self.raises and (self.always or self.second.out_channels % 2):
            raise ValueError("an odd number of channels\nwith a long story\nthat ends here")
        folder = Path(self.deaths)
        if folder.is_dir() and len(list(folder.iterdir())) < self.times:
            (folder / str(os.getpid())).touch()
            os._exit(1)


def build(
    deaths: str = "", times: int = 0, raises: bool = False, always: bool = False, num_classes: int = 10
) -> nn.Module:
    return Fragile(deaths=deaths, times=times, raises=raises, always=always, num_classes=num_classes)
