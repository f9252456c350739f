"""A network that takes its time without computing: what is left of a search's time is the search's own."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

FORWARD_S = 0.1
"""Seconds of a forward pass. A candidate has two: batch-norm re-estimation and validation, in one batch each."""


class Waiting(nn.Module):
    """A small convolutional network whose forward pass sleeps."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.linear = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(FORWARD_S)
        x = torch.relu(self.bn1(self.conv1(x)))
        logits: Tensor = self.linear(torch.relu(self.conv2(x)).mean(dim=(2, 3)))
        return logits


def network(num_classes: int) -> nn.Module:
    """For `--model waiting:network`."""
    return Waiting(num_classes)
