"""Small networks and their readers' inputs, for the tests of methods that score channels at the readers' inputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from raprune.channels.graph import ChannelGraph
from raprune.methods.activations import GroupReader, readers, watching
from tests.channels.networks import build
from tests.channels.proved import proved

DATA = torch.Generator().manual_seed(2)
BATCHES = [(torch.randn(n, 3, 8, 8, generator=DATA, dtype=torch.float64), torch.zeros(n)) for n in (6, 3)]


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    yield from BATCHES


def network(name: str) -> tuple[nn.Module, ChannelGraph]:
    return build(name).double().eval(), proved(name)[1]


def channel_axis(module: nn.Module, x: Tensor) -> int:
    return x.dim() - 1 if isinstance(module, nn.Linear) else 1


def part(reader: GroupReader, x: Tensor, positions: np.ndarray) -> Tensor:
    """Return the layer's output for these input positions alone, without bias and mean: `(outputs, channels)`."""
    module, axis = reader.module, channel_axis(reader.module, x)
    alone = torch.zeros_like(x).index_copy(
        axis, torch.as_tensor(positions), x.index_select(axis, torch.as_tensor(positions))
    )
    y = module(alone) - module(torch.zeros_like(x))
    y = y.movedim(channel_axis(module, y), -1).flatten(0, -2)
    return y - y.mean(dim=0)


def seen_by(model: nn.Module, graph: ChannelGraph) -> list[tuple[GroupReader, Tensor]]:
    """Return every reader with its input over all batches."""
    seen = readers(model, graph)
    inputs: dict[int, list[Tensor]] = {}
    with torch.no_grad(), watching(model, seen, lambda number, x: inputs.setdefault(number, []).append(x)):
        for x, _ in batches():
            model(x)
    return [(reader, torch.cat(inputs[number])) for number, reader in enumerate(seen)]


def line(*slopes: float) -> nn.Module:
    """Build a network whose channel c is slopes[c] times the input; both outputs of the head add the channels up."""
    model = nn.Sequential(nn.Conv2d(1, len(slopes), 1), nn.Flatten(), nn.Linear(len(slopes), 2))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor(slopes).view(-1, 1, 1, 1))
        model.get_parameter("2.weight").fill_(1.0)
    return model


def two_images() -> Iterator[tuple[Tensor, Tensor]]:
    yield torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64)
