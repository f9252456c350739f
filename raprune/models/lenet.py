"""LeNet-5 as the pruning papers use it: Caffe's variant with 20 and 50 filters and 500 hidden units.

The network of LeCun et al. (1998) differs: it has 6 and 16 filters, 120 and 84 units. On MNIST this variant has
431,080 parameters and 2.29 million multiply-adds per image, the dense figures of the pruning papers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class LeNet5(nn.Module):
    """Conv 20, pool, conv 50, pool (5x5, no padding), linear 500, ReLU, linear.

    The input is `(B, *image_shape)`, height and width at least 16; the output is logits `(B, num_classes)`.

    Raises:
        ValueError: if the images are smaller than 16x16.
    """

    def __init__(self, *, num_classes: int = 10, image_shape: tuple[int, int, int] = (1, 28, 28)) -> None:
        super().__init__()
        channels, height, width = image_shape
        if min(height, width) < 16:
            raise ValueError(f"images of {height}x{width} pixels; LeNet-5 needs at least 16x16")
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * _pooled(height) * _pooled(width), 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        # Caffe's LeNet has no activation after the convolutions.
        x = functional.max_pool2d(self.conv1(x), 2)
        x = functional.max_pool2d(self.conv2(x), 2)
        logits: Tensor = self.fc2(functional.relu(self.fc1(torch.flatten(x, 1))))
        return logits


def _pooled(size: int) -> int:
    return ((size - 4) // 2 - 4) // 2
