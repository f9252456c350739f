"""The network of the bundled digits: small enough to train in seconds, wide enough to be worth pruning."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class DigitsNet(nn.Module):
    """Four convolutions (16, 32, 32, 32 channels) with batch norm, the last two in a residual block; global pooling.

    The input is `(B, in_channels, H, W)`, at least 4x4; the output is logits `(B, num_classes)`.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(2 * width)
        self.linear = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        inner = functional.relu(self.bn3(self.conv3(x)))
        x = functional.relu(x + self.bn4(self.conv4(inner)))
        logits: Tensor = self.linear(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))
        return logits
