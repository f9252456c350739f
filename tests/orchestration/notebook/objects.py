"""A network and data sets of a session, small enough to search over in seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class StripesNet(nn.Module):
    """Two convolutions and a linear layer for grey images."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.head = nn.Linear(2 * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def arrays(count: int, seed: int) -> tuple[Any, Any]:
    """Horizontal (0) or vertical (1) stripes: uint8 `(N, 1, 12, 12)` and labels `(N,)`."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    rows = random.integers(0, 256, (count, 1, 12, 1), np.uint8).repeat(12, axis=3)
    return np.where(labels[:, None, None, None] == 0, rows, rows.swapaxes(2, 3)), labels


class Stripes(Dataset[Any]):
    """Stripes as a map-style data set of float images in [0, 1]."""

    classes = ["horizontal", "vertical"]

    def __init__(self, count: int, seed: int, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self.images, self.labels = arrays(count, seed)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.images[index].copy()).float() / 255
        return image if self.transform is None else self.transform(image), int(self.labels[index])


def flipped(image: Tensor) -> Tensor:
    """Mirror half of the images, by torch's random numbers."""
    return image.flip(-1) if torch.rand(()) < 0.5 else image


def trained_net() -> StripesNet:
    """A network that tells the stripes apart: its filters are set by hand, so that no test trains it."""
    net = StripesNet()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in net.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
        across, down = torch.zeros(3, 3), torch.zeros(3, 3)
        across[1, 0], across[1, 2] = -1.0, 1.0
        down[0, 1], down[2, 1] = -1.0, 1.0
        first, second = net.body[0], net.body[3]
        assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
        with torch.no_grad():
            for channel in range(8):
                first.weight[channel, 0] = (across, down)[channel % 2] * (1 - 2 * (channel // 2 % 2))
            second.weight.zero_()
            for channel in range(16):
                second.weight[channel, channel % 8, 1, 1] = 1.0 + 0.01 * channel
            net.head.weight.zero_()
            net.head.weight[0, 1::2], net.head.weight[1, 0::2] = 1.0, 1.0
            for part in net.modules():
                bias = getattr(part, "bias", None)
                if bias is not None:
                    bias.zero_()
    return net.eval()


class LockedNet(StripesNet):
    """A network that no process can send to another one."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


SMALL: dict[str, Any] = {
    "search": {"calibration_images": 32, "lookahead": 4},
    "finalists": {"each_method": False, "train": {"batch_size": 64}},
    "statistics": "",
}
"""Fields of a job of a second or two."""
