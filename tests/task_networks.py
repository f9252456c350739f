"""A tiny network and a little data for each built-in task, for the tests of several rooms."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raprune.spec.job import SearchSpec
from tests.detectors import small_detector

CLASSES = 4
SIZE = 16

shapes: Any = import_module("jobs.shapes")


class Numbers(nn.Module):
    """A residual network that gives a row of numbers for each image."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 16, 3, padding=1)
        self.inner_norm = nn.BatchNorm2d(16)
        self.outer = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images)).relu()
        x = x + self.outer(self.inner_norm(self.inner(x)).relu())
        logits: Tensor = self.head(x.relu().mean((2, 3)))
        return logits


class Masks(nn.Module):
    """A network that gives logits of each pixel, with an auxiliary head, as torchvision's do in training."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.wide = nn.Conv2d(12, 16, 3, padding=2, dilation=2)
        self.out = nn.Conv2d(16, num_classes, 1)
        self.aux = nn.Conv2d(12, num_classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.down(images)).relu()
        maps = {"out": self.out(self.wide(x).relu()), "aux": self.aux(x)}
        size = images.shape[2:]
        return {name: nn.functional.interpolate(found, size=size, mode="bilinear") for name, found in maps.items()}


def detector(num_classes: int = CLASSES) -> nn.Module:
    """A small RetinaNet whose outputs depend on its images: torchvision's last layers begin near zero."""
    network = small_detector(num_classes)
    for layer in (
        network.get_submodule("head.classification_head.cls_logits"),
        network.get_submodule("head.regression_head.bbox_reg"),
    ):
        nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]  # a convolution
    return network


NETWORKS = {
    "classification": "Numbers",
    "multi_label": "Numbers",
    "regression": "Numbers",
    "segmentation": "Masks",
    "detection": "detector",
}
"""Task -> the name of its network in this module."""


def data(task: str, images: int = 48) -> dict[str, Any]:
    """Noisy images and targets of the task's form."""
    if task == "detection":
        return dict(shapes.detection(train=images, test=8, size=32))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 3, SIZE, SIZE), dtype=np.uint8)
    targets = {
        "classification": lambda: rng.integers(0, CLASSES, images),
        "multi_label": lambda: rng.integers(0, 2, (images, CLASSES)),
        "regression": lambda: rng.normal(size=(images, CLASSES)),
        "segmentation": lambda: rng.integers(0, CLASSES, (images, SIZE, SIZE)),
    }[task]()
    return {"train": (pixels, targets), "test": (pixels[:8], targets[:8])}


def job(task: str, **fields: Any) -> SearchSpec:
    """A job of the task on its tiny network, whose trainings are a few steps long."""
    torch.manual_seed(0)
    small = {"epochs": 0.5, "batch_size": 16, "lr": 0.01}
    defaults = {
        "task": task,
        "model": {"name": f"tests.task_networks:{NETWORKS[task]}"},
        "data": {"name": "tests.task_networks:data", "arguments": {"task": task}, "validation_fraction": 0.3},
        "dense": small,
        "finalists": {"train": small},
        "search": {"calibration_images": 24},
        "budget": {"flops": 0.6},
    }
    return SearchSpec.model_validate(defaults | fields)
