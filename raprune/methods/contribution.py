"""Contributions of channels to the outputs of the layers that read them, and the Gram matrices of these contributions.

Output i of a layer is the sum over its input channels c of z_ic, the part of the convolution or product that runs over
the channel's own weights. The matrix sum_i z_ic z_id is sufficient to choose channels by their contributions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raprune.channels.graph import ChannelGraph
from raprune.channels.inputs import call
from raprune.channels.transfer import arrays_on
from raprune.methods.activations import GroupReader, readers, watching
from raprune.methods.least_squares import refit
from raprune.methods.method import Batches, Cut, Method, Scores
from raprune.methods.patches import PatchReader

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]

BLOCK = 2**23
"""Maximum number of entries of the products of weights in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class ContributionMethod(Method):
    """A method that orders channels by their contributions, and repairs by least squares."""

    comparable: ClassVar[bool] = True

    positions: int = 10
    """Number of random positions of each calibration image at which outputs are sampled."""

    def errors(self, gram_CC: Matrix) -> Vector:
        """Return for each channel of a group the error once this channel and all channels before it are removed."""
        raise TypeError(f"{type(self).__name__} has no errors")

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        found = merged(graph, contributions(model, graph, batches, positions=self.positions))
        return {name: self.errors(gram_CC) for name, gram_CC in found.items()}

    def damage(self, scores: Scores) -> Scores:
        return {name: np.concatenate([[0.0], np.sort(values)]) for name, values in scores.items()}

    def repair(self, model: nn.Module, batches: Batches, cut: Cut) -> None:
        refit(model, batches, cut)


@dataclass(frozen=True)
class Contribution:
    """Contributions of a group's channels to one layer that reads them."""

    reader: GroupReader
    gram: Matrix
    """sum_i (z_ic - mean z_c) (z_id - mean z_d), each output channel with its own mean; shape `(C, C)`."""
    energy: float
    """Energy of the layer's whole output: sum_i (y_i - mean y)^2."""


def contributions(model: nn.Module, graph: ChannelGraph, batches: Batches, *, positions: int) -> list[Contribution]:
    """Return the contributions to every reader of a group, at `positions` random positions of each image or at all.

    Means are subtracted, because a bias or the batch norm after the layer can represent them.
    """
    sums = [_Sums(reader, positions) for reader in readers(model, graph)]
    with torch.no_grad(), watching(model, [], lambda number, x: None), _passing(sums):
        for images, _ in batches():
            call(model, images)
    return [one.contribution() for one in sums]


def merged(graph: ChannelGraph, found: list[Contribution]) -> dict[str, Matrix]:
    """Return for each group the sum of its readers' matrices, each divided by its layer's energy.

    If no layer reads a group, all of its channels get the same contribution.
    """
    total = {group.name: np.zeros((group.num_channels, group.num_channels)) for group in graph.groups}
    for one in found:
        total[one.reader.group] += one.gram / max(one.energy, 1e-30)
    read = {one.reader.group for one in found}
    return {name: gram_CC if name in read else np.eye(len(gram_CC)) / len(gram_CC) for name, gram_CC in total.items()}


class _Sums:
    """Sums over the batches for one reader."""

    def __init__(self, reader: GroupReader, positions: int) -> None:
        self.reader = reader
        self._positions = positions
        # Each reader has its own generator, so that its positions do not depend on the other readers.
        self._generator = torch.Generator().manual_seed(0)
        module = reader.module
        weight = module.get_parameter("weight").detach().double()
        weight_MIT = (weight.transpose(0, 1) if getattr(module, "transposed", False) else weight)[..., None].flatten(2)
        outputs, inputs = weight_MIT.shape[:2]
        groups = getattr(module, "groups", 1)
        # For each convolution group: the positions of the channels in its input, and its weights; K = taps per channel.
        self._parts = []
        for number, weight_of_group in enumerate(weight_MIT.chunk(groups)):
            (mine,) = arrays_on(
                weight.device, [reader.indices[reader.indices // inputs == number].reshape(len(reader.indices), -1)]
            )
            self._parts.append((mine, weight_of_group[:, mine - number * inputs].flatten(2)))
        channels = len(reader.indices)
        self._gram_CC = weight.new_zeros(channels, channels)
        self._x = [weight.new_zeros(weight_MCK.shape[1:]) for _, weight_MCK in self._parts]
        self._y_M = weight.new_zeros(outputs)
        self._energy = weight.new_zeros(())
        self._count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        module = self.reader.module
        y_last = y if isinstance(module, nn.Linear) else y.movedim(1, -1)
        y_BSM = y_last.reshape(len(y), -1, len(self._y_M))
        images, places = self._drawn(len(x), y_BSM.shape[1], x.device)
        y_NM = y_BSM[images, places].double()
        read_NIT = PatchReader(module, x, tuple(y_last.shape[1:-1])).read(images, places).transpose(1, 2)
        for (indices, weight_MCK), x_CK in zip(self._parts, self._x, strict=True):
            x_NCK = read_NIT[:, indices].double().flatten(2)
            self._gram_CC += _together(x_NCK, weight_MCK)
            x_CK += x_NCK.sum(dim=0)
        self._y_M += y_NM.sum(dim=0)
        self._energy += y_NM.pow(2).sum()
        self._count += len(y_NM)

    def contribution(self) -> Contribution:
        gram_CC = self._gram_CC
        for (_, weight_MCK), x_CK in zip(self._parts, self._x, strict=True):
            sums_CM = torch.einsum("ck,mck->cm", x_CK, weight_MCK)
            gram_CC = gram_CC - sums_CM @ sums_CM.T / max(self._count, 1)
        energy = float(self._energy - self._y_M.pow(2).sum() / max(self._count, 1))
        return Contribution(self.reader, ((gram_CC + gram_CC.T) / 2).cpu().numpy(), max(energy, 0.0))

    def _drawn(self, images: int, available: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw indices of images and of positions in them, shape `(N,)` each."""
        if available <= self._positions:
            places = torch.arange(available, device=device).expand(images, available)
        else:
            drawn = torch.randint(available, (images, self._positions), generator=self._generator)
            (places,) = arrays_on(device, [drawn.numpy()])
        return torch.arange(images, device=device).repeat_interleave(places.shape[1]), places.reshape(-1)


def _together(x_NCK: Tensor, weight_MCK: Tensor) -> Tensor:
    """Return sum_i z_ic z_id over all positions and output channels, shape `(C, C)`, without computing the z."""
    channels, size = weight_MCK.shape[1:]
    x_NP, weight_MP = x_NCK.flatten(1), weight_MCK.flatten(1)
    rows = max(1, BLOCK // (channels * size * size))
    found = []
    for start in range(0, channels, rows):
        part = slice(start * size, (start + rows) * size)
        products = (x_NP[:, part].T @ x_NP) * (weight_MP[:, part].T @ weight_MP)
        found.append(products.unflatten(1, (-1, size)).sum(dim=2).unflatten(0, (-1, size)).sum(dim=1))
    return torch.cat(found)


@contextmanager
def _passing(sums: list[_Sums]) -> Iterator[None]:
    """Within the context, add every pass of a reader to its sums."""
    handles = []
    for one in sums:

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, one: _Sums = one) -> None:
            one.add(inputs[0], output)

        handles.append(one.reader.module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
