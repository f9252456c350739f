"""Inputs of the layers that read a group's channels: the channels after activation and pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raprune.channels.evaluating import evaluating
from raprune.channels.graph import ChannelGraph
from raprune.channels.inputs import call
from raprune.channels.multihead import projections_called
from raprune.channels.positions import IndexArray
from raprune.channels.transfer import arrays_on
from raprune.methods.method import Batches, Scores


@dataclass(frozen=True)
class GroupReader:
    """A layer that reads a group: `indices[c]` are the positions of channel c on the channel axis of its input."""

    group: str
    module: nn.Module
    indices: IndexArray

    def channels(self, x: Tensor) -> Tensor:
        """Return the group's channels in `x`, `(B, channels, positions)`; `x` has the shape of the layer's input."""
        x = x.movedim(-1, 1) if isinstance(self.module, nn.Linear) else x
        x_BCP = x.flatten(2) if x.dim() > 2 else x[:, :, None]
        positions = arrays_on(x.device, [self.indices])[0]
        count, multiplicity = positions.shape
        return x_BCP[:, positions.reshape(-1)].reshape(len(x), count, multiplicity * x_BCP.shape[2])


def readers(model: nn.Module, graph: ChannelGraph) -> list[GroupReader]:
    """Return every linear layer and convolution that reads a group.

    Layers that handle channels one by one (norms, depthwise convolutions) are not included, because later layers read
    their outputs.
    """
    found = []
    modules = dict(model.named_modules())
    for group in graph.groups:
        for member in group.members:
            owner, _, attribute = member.parameter.rpartition(".")
            module = modules[owner]
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            reads = isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and not member.writes
            groups = getattr(module, "groups", 1)
            if transposed and groups > 1:
                continue
            if attribute == "weight" and reads and member.axis == (0 if transposed else 1):
                # A position on the weight's axis stands for one position in every group of a grouped convolution.
                firsts = np.arange(groups) * module.weight.shape[1]
                indices = (member.indices[:, :, None] + firsts).reshape(group.num_channels, -1)
                found.append(GroupReader(group.name, module, indices))
    return found


def score_by_readers(
    model: nn.Module, graph: ChannelGraph, batches: Batches, rate: Callable[[Tensor], Tensor]
) -> Scores:
    """Return the mean of `rate` over images, divided by its norm for each reader, and added up over a group's readers.

    `rate` takes a group's channels at a reader's input, shape `(B, channels, positions)`, and gives one value per image
    and channel, shape `(B, channels)`. A group without a reader gets equal scores.
    """
    seen = readers(model, graph)
    totals = zero_totals(seen)

    def see(number: int, x: Tensor) -> None:
        totals[number] += rate(seen[number].channels(x)).double().sum(dim=0)

    with torch.no_grad(), watching(model, seen, see):
        for images, _ in batches():
            call(model, images)
    return added(graph, seen, totals)


def zero_totals(seen: list[GroupReader]) -> list[Tensor]:
    """Return a total of zeros for each reader, one per channel in float64, on the device of the reader's weights."""
    devices = [reader.module.get_parameter("weight").device for reader in seen]
    return [torch.zeros(len(r.indices), dtype=torch.float64, device=d) for r, d in zip(seen, devices, strict=True)]


def added(graph: ChannelGraph, seen: list[GroupReader], totals: list[Tensor]) -> Scores:
    """Add up the totals of each group's readers, each divided by its Euclidean norm so that no layer dominates."""
    scores: Scores = {group.name: np.zeros(group.num_channels) for group in graph.groups}
    for reader, total in zip(seen, totals, strict=True):
        scores[reader.group] += (total / total.norm().clamp(min=1e-30)).cpu().numpy()
    return scores


@contextmanager
def watching(model: nn.Module, seen: list[GroupReader], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the context, in evaluation mode, call `see(index of the reader, its layer's input)` in each pass."""
    handles = []
    for number, reader in enumerate(seen):

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], number: int = number) -> None:
            see(number, inputs[0])

        handles.append(reader.module.register_forward_pre_hook(hook))
    try:
        with evaluating(model), projections_called(model):
            yield
    finally:
        for handle in handles:
            handle.remove()
