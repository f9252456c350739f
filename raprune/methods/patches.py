"""Patches: the parts of a layer's input that its outputs at some positions are computed from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.transfer import arrays_on

PATCHES = 32768
"""Minimum number of patches per layer, if there are that many; `PATCHES_A_WEIGHT` per weight of a filter may be more.

Measured on ResNet-56 at 30 % of the FLOPs, divergence of the predictions from the dense network's: 20 per weight
without a minimum give 0.459, 200 give 0.408; on 2,048 images instead of 1,024, 200 give 0.389, these values 0.387."""
PATCHES_A_WEIGHT = 40
"""Minimum number of patches per weight of a filter."""
CHUNK = 2**24
"""Maximum number of entries of patches in memory at a time."""
ROWS = 4096
"""Maximum number of patches in a product of float32; the sums over products are in float64."""
SAMPLES_A_COLUMN = 4
"""Number of patches per weight of a filter below which products are in float64."""


def products_in(dtype: torch.dtype, samples: int, columns: int) -> torch.dtype:
    """Return the type of products of patches for weights of type `dtype`: float32 if samples are many, else float64.

    CPUs multiply float64 at half the speed of float32, GPUs at a half to a 64th. Measured for the refit of ResNet-56
    at 50 % of the FLOPs, 512 images: products in float32 and sums in float64 give the same accuracy on 2,400 images,
    0.8917, and weights that differ by 3e-4. With fewer samples than columns the two differ wildly, because a ridge of
    1e-6 is as small as the rounding of float32.
    """
    many = samples >= SAMPLES_A_COLUMN * columns
    return torch.float32 if dtype != torch.float64 and many else torch.float64


class PatchReader:
    """Reader of the patches of one input of a linear layer or convolution, plain or transposed.

    The positions of an image's output are numbered with the last axis fastest; those of a linear layer are all axes
    between the first and the last.
    """

    def __init__(self, module: nn.Module, x: Tensor, sizes: tuple[int, ...]) -> None:
        """Prepare the input `x` of `module`; `sizes` are the sizes of the axes of the output's positions."""
        self._taps: Tensor | None = None
        self._inside: Tensor | None = None
        if isinstance(module, nn.Linear):
            self._rows_BPC = x.reshape(len(x), -1, x.shape[-1])
            self.entries = x.shape[-1]
            return
        conv = cast(nn.Conv2d, module)
        if not conv.transposed:
            mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
            x = functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        self._rows_BPC = x.flatten(2).transpose(1, 2)
        self._taps, self._inside = _taps(conv, tuple(x.shape[2:]), sizes, x.device)
        self.entries = x.shape[1] * math.prod(conv.kernel_size)
        """Number of entries of a patch."""

    def read(self, images: Tensor, places: Tensor) -> Tensor:
        """Return the patches of the outputs at `places` of `images`, both `(N,)`: shape `(N, taps, channels)`."""
        if self._taps is None:
            return self._rows_BPC[images, places][:, None]
        read_NTC = self._rows_BPC[images[:, None], self._taps[places]]
        return read_NTC if self._inside is None else read_NTC * self._inside[places][:, :, None]


def _taps(
    conv: nn.Conv2d, inputs: tuple[int, ...], outputs: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return the positions of the input (of sizes `inputs`) that each output position reads, `(positions, taps)`.

    Transposed convolutions spread their inputs, so that not every tap meets an input: for them the second tensor is
    True where it does. Other convolutions get None, because their padded input has an entry for every tap.
    """
    taps = torch.zeros(1, 1, dtype=torch.int64, device=device)
    inside = torch.ones(1, 1, dtype=torch.bool, device=device)
    for axis, (size, count) in enumerate(zip(inputs, outputs, strict=True)):
        stride, reach = conv.stride[axis], torch.arange(conv.kernel_size[axis], device=device) * conv.dilation[axis]
        place = torch.arange(count, device=device)[:, None]
        if conv.transposed:
            spread = place + int(conv.padding[axis]) - reach
            met = (spread % stride == 0) & (spread >= 0) & (spread < size * stride)
            along = (spread // stride).clamp(0, size - 1)
            inside = (inside[:, None, :, None] & met[None, :, None, :]).flatten(0, 1).flatten(1)
        else:
            along = place * stride + reach
        taps = (taps[:, None, :, None] * size + along[None, :, None, :]).flatten(0, 1).flatten(1)
    return taps, inside if conv.transposed else None


class Patches:
    """Patches of a layer's input that determine its outputs at some positions of each image.

    `module` is a convolution, or a linear layer, whose positions are all axes between the first and the last.
    """

    def __init__(self, module: nn.Module, chosen: Tensor, sizes: tuple[int, ...]) -> None:
        self.module = module
        self.chosen = chosen
        """Chosen positions of the output for each image, shape `(images, positions)`, with the last axis fastest."""
        self._sizes = sizes
        weight = cast(Tensor, module.weight)
        self.dtype = products_in(weight.dtype, chosen.numel(), weight[0].numel())
        """Type of the patches of the input."""

    @classmethod
    def drawn(cls, module: nn.Module, output: Tensor, total: int, seed: int, *, fraction: float = 1.0) -> Patches:
        """Draw random positions, the same number in each of `total` images; all positions if there are too few.

        `fraction`: part of the usual number of patches that is drawn.
        """
        sizes = tuple(output.shape[1:-1] if isinstance(module, nn.Linear) else output.shape[2:])
        available, each = math.prod(sizes), math.ceil(fraction * cls._each(module, total))
        if each >= available:
            chosen = torch.arange(available, device=output.device).expand(total, -1)
        else:
            drawn = torch.randint(available, (total, each), generator=torch.Generator().manual_seed(seed))
            (chosen,) = arrays_on(output.device, [drawn.numpy()])
        return cls(module, chosen, sizes)

    @classmethod
    def rows(cls, module: nn.Module, output: Tensor, total: int) -> int:
        """Return the number of patches that `drawn` draws."""
        available = output[0].numel() // cast(Tensor, module.weight).shape[0]
        return total * min(available, cls._each(module, total))

    @staticmethod
    def _each(module: nn.Module, total: int) -> int:
        """Return the number of positions of each image that are wanted."""
        return -(-max(PATCHES, PATCHES_A_WEIGHT * cast(Tensor, module.weight)[0].numel()) // total)

    @property
    def groups(self) -> int:
        return cast(int, getattr(self.module, "groups", 1))

    @property
    def needed_bytes(self) -> int:
        """Bytes that reading the patches and solving for the weights takes at most."""
        columns = cast(Tensor, self.module.weight)[0].numel()
        # An entry is gathered by an index, moved to its group, and converted.
        read = min(CHUNK, self.chosen.numel() * columns) * 4 * 8
        # Sums of both halves and of all, their scaled copies, the factor, and the products that are being added.
        return read + 8 * self.groups * columns**2 * 8

    def of_output(self, y: Tensor, first: int = 0) -> Tensor:
        """Return the outputs at the positions, `(N, channels)`; `y` is the output for the images from `first` on."""
        rows = (
            y.reshape(len(y), -1, y.shape[-1]) if isinstance(self.module, nn.Linear) else y.flatten(2).transpose(1, 2)
        )
        return rows[self._places(first, len(y))]

    def of_input(self, x: Tensor, first: int = 0, *, step: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Yield parts of 0..N and their patches, shape `(groups, part, weights of a filter)`, in `dtype`.

        `x` is the input for every `step`-th image from `first` on.
        """
        images, places = self._places(first, len(x), step)
        reader = PatchReader(self.module, x, self._sizes)
        rows = max(1, CHUNK // reader.entries)
        if self.dtype == torch.float32:
            rows = min(rows, ROWS)
        for start in range(0, len(images), rows):
            part = slice(start, min(start + rows, len(images)))
            read_NTC = reader.read(images[part], places[part])
            read_GNP = read_NTC.unflatten(2, (self.groups, -1)).permute(2, 0, 3, 1).flatten(2)
            yield part, read_GNP.to(self.dtype)

    def _places(self, first: int, count: int, step: int = 1) -> tuple[Tensor, Tensor]:
        chosen = self.chosen[first : first + count * step : step]
        return torch.arange(count, device=chosen.device).repeat_interleave(chosen.shape[1]), chosen.reshape(-1)
