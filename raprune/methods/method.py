"""What a method is: up to four hooks, each with a default."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raprune.tracing.graph import ChannelGraph

Scores = dict[str, npt.NDArray[np.float64]]
"""Group name -> one score a channel, shape `(num_channels,)`; higher means keep."""

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives the calibration batches afresh at each call: images `(B, C, H, W)`, normalised, and labels `(B,)`."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to condense a network. Its fields are its hyper-parameters.

    A field whose metadata has a `"search"` entry is searched over: `{"low": a, "high": b, "log": bool}` for numbers,
    `{"choices": (...)}` for anything else. Hooks know torch and groups, and neither Ray nor the store.
    """

    title: ClassVar[str] = ""
    """One line: what it does, and whose it is."""
    data_free: ClassVar[bool] = False
    """Whether `score` never looks at the batches."""
    seeded: ClassVar[bool] = False
    """Whether another seed gives other scores; they are then not shared between candidates."""

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        """One finite score a channel for every group of `graph`; higher means keep. `model` is left unchanged."""
        raise TypeError(f"{type(self).__name__} has no score")

    def repair(self, model: nn.Module, batches: Batches) -> None:
        """Mend the weights of a network that was cut, in place. Default: batch-norm re-estimation."""
        reestimate_batch_norm(model, batches)


def reestimate_batch_norm(model: nn.Module, batches: Batches) -> None:
    """Set every batch norm's running mean and variance to their average over `batches`, in place.

    Cutting channels changes the statistics of every later layer; without this step a cut network cannot be judged.
    Each batch counts by its images. A batch of one image is left out, as it may leave one value a channel, which has
    no variance.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not layers:
        return
    momenta = {layer: layer.momentum for layer in layers}
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    seen = 0
    with torch.no_grad():
        for images, _ in batches():
            if len(images) == 1:
                continue
            seen += len(images)
            for layer in layers:
                layer.momentum = len(images) / seen
            model(images)
    for layer, momentum in momenta.items():
        layer.momentum = momentum
    for module, training in was_training.items():
        module.training = training
