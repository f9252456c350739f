"""What the layers that read a group's channels get to see: the channels as they are after activation and pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raprune.channels.graph import ChannelGraph, IndexArray
from raprune.methods.method import Batches, Scores


@dataclass(frozen=True)
class Reader:
    """A layer that reads a group: `indices[c]` are the positions of channel c on its input's channel axis."""

    group: str
    module: nn.Module
    indices: IndexArray

    def channels(self, x: Tensor) -> Tensor:
        """Of the layer's input `x`, or anything of its shape: the group's channels, `(B, channels, positions)`."""
        x = x.movedim(-1, 1) if isinstance(self.module, nn.Linear) else x
        x_BCP = x.flatten(2) if x.dim() > 2 else x[:, :, None]
        positions = torch.as_tensor(self.indices, device=x.device)
        count, multiplicity = positions.shape
        return x_BCP[:, positions.reshape(-1)].reshape(len(x), count, multiplicity * x_BCP.shape[2])


def readers(model: nn.Module, graph: ChannelGraph) -> list[Reader]:
    """Every linear layer and convolution that reads a group.

    Layers that go through channels one by one (norms, depthwise convolutions) are no readers: what they pass on is read
    further down.
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
                # A position on the weight's axis is one in every group of a grouped convolution.
                firsts = np.arange(groups) * module.weight.shape[1]
                indices = (member.indices[:, :, None] + firsts).reshape(group.num_channels, -1)
                found.append(Reader(group.name, module, indices))
    return found


def score_by_readers(
    model: nn.Module, graph: ChannelGraph, batches: Batches, rate: Callable[[Tensor], Tensor]
) -> Scores:
    """The mean over images of what `rate` gives, each reader's divided by its norm and a group's readers added up.

    `rate` takes what a reader sees of a group, shape `(B, channels, positions)`, and gives one value an image and
    channel, shape `(B, channels)`. A group without a reader gets equal scores.
    """
    seen = readers(model, graph)
    totals = [torch.zeros(len(reader.indices), dtype=torch.float64) for reader in seen]

    def see(number: int, x: Tensor) -> None:
        totals[number] += rate(seen[number].channels(x)).double().sum(dim=0).cpu()

    with torch.no_grad(), watching(model, seen, see):
        for images, _ in batches():
            model(images)
    return added(graph, seen, totals)


def added(graph: ChannelGraph, seen: list[Reader], totals: list[Tensor]) -> Scores:
    """A group's readers' totals added up, each divided by its Euclidean norm so that no layer drowns the others."""
    scores: Scores = {group.name: np.zeros(group.num_channels) for group in graph.groups}
    for reader, total in zip(seen, totals, strict=True):
        scores[reader.group] += (total / total.norm().clamp(min=1e-30)).numpy()
    return scores


@contextmanager
def watching(model: nn.Module, seen: list[Reader], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside, in evaluation mode, `see(number of the reader, its layer's input)` is called at each pass."""
    modes = {module: module.training for module in model.modules()}
    handles = []
    for number, reader in enumerate(seen):

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], number: int = number) -> None:
            see(number, inputs[0])

        handles.append(reader.module.register_forward_pre_hook(hook))
    model.eval()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
