"""A layer of a cut network that least squares refits: its targets, its normal equations, and its new weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from raprune.methods.moments import Halves, Moments, solved
from raprune.methods.patches import Patches


@dataclass
class RefittedLayer:
    """A layer of the cut network that is refitted, and its place in the network."""

    module: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None
    """The batch norm that takes the layer's output, if any."""
    added: bool
    """True if the output of the layer, or of its batch norm, is added to a tensor: the end of a residual branch."""
    inputs: Tensor
    """Positions on the dense layer's input axis (of each group) that stay."""
    outputs: Tensor
    """Outputs of the dense layer that stay."""
    patches: tuple[Patches, ...]
    """Patches of each run of the layer in a forward pass."""
    turn: int
    """Place in the order in which the layers are refitted."""
    gain: Tensor | None = None
    """Factor of each output that stays, where a cut changes the scale of queries."""
    mix: Tensor | None = None
    """Outputs of the dense layer that each output stands for, `(dense, outputs)`, where queries or keys got narrower;
    with the factors of `gain`."""

    @property
    def groups(self) -> int:
        return self.patches[0].groups

    def wanted_of(self, y: Tensor, first: int, run: int = 0) -> Tensor:
        """Return the outputs `(N, M)` that the layer should have at its patches, from the dense layer's output `y`."""
        if self.mix is not None:
            return self.patches[run].of_output(y, first) @ self.mix.to(y.dtype)
        wanted = self.patches[run].of_output(y, first)[:, self.outputs]
        return wanted if self.gain is None else wanted * self.gain.to(wanted.dtype)

    @property
    def _centred(self) -> bool:
        return self.module.bias is not None or self.norm is not None

    def fit(self, x: Tensor, wanted: Tensor, ridge: float) -> None:
        """Refit on all inputs at once; `wanted` are the target outputs at the patches, shape `(N, M)`."""
        sums = self.moments()
        self.add(sums, x, wanted)
        self.update(sums, ridge)

    def moments(self) -> Halves:
        return Halves()

    def add(self, halves: Halves, x: Tensor, wanted: Tensor, first: int = 0, run: int = 0) -> None:
        patches = self.patches[run]
        dtype = patches.dtype
        weight = self._weight().to(dtype)
        wanted_by_image = wanted.unflatten(0, (len(x), -1))
        for offset in range(min(2, len(x))):
            sums, targets = halves.parts[(first + offset) % 2], wanted_by_image[offset::2].flatten(0, 1)
            for part, read in patches.of_input(x[offset::2], first + offset, step=2):
                now = read @ weight
                if self.module.bias is not None:
                    now += self.module.bias.to(dtype).reshape(len(weight), 1, -1)
                sums.add(read, targets[part].to(dtype).unflatten(1, (len(weight), -1)).transpose(0, 1) - now)

    def update(self, halves: Halves, ridge: float) -> None:
        def system(sums: Moments) -> tuple[Tensor, Tensor]:
            return sums.gram(centred=self._centred), sums.cross(centred=self._centred)

        sums = halves.whole
        gram, cross = system(sums)
        change = solved(gram, cross, halves.ridge_for(gram.shape[-1], ridge, system))
        self.module.weight.copy_((self._weight() + change).mT.reshape(self.module.weight.shape))
        if self._centred:
            mean_x, mean_r = sums.means
            self._shift((mean_r - (mean_x[:, None, :] @ change)[:, 0]).reshape(-1))

    def wanted_before(self, other: Tensor, total: Tensor, x: Tensor, first: int = 0) -> Tensor:
        """Return the outputs, `(N, M)`, for which the end of a branch adds up to `total` with the stream `other`."""
        return self.before_norm(total.double() - self.patches[0].of_output(other, first).double(), x, first)

    def before_norm(self, y: Tensor, x: Tensor, first: int = 0) -> Tensor:
        """Return the outputs of the layer, `(N, M)`, for which its batch norm gives `y`.

        For a channel whose scale in the batch norm is nearly 0, return the present output, because it has no effect.
        """
        if self.norm is None:
            return y
        mean, variance = cast(Tensor, self.norm.running_mean), cast(Tensor, self.norm.running_var)
        scale = (variance.double() + self.norm.eps).rsqrt()
        offset = -mean.double() * scale
        if self.norm.affine:
            scale, offset = scale * self.norm.weight.double(), offset * self.norm.weight.double() + self.norm.bias
        cut_off = scale.abs() <= 1e-3 * scale.abs().max()
        now = self.patches[0].of_output(self.module.forward(x), first).double() if cut_off.any() else y
        return torch.where(cut_off, now, (y - offset) / torch.where(cut_off, 1.0, scale))

    def staying_inputs(self, x: Tensor) -> Tensor:
        """Return the part of the dense layer's input that the cut layer gets."""
        axis = x.dim() - 1 if isinstance(self.module, nn.Linear) else 1
        starts = torch.arange(self.groups, device=x.device)[:, None] * (x.shape[axis] // self.groups)
        return x.index_select(axis, (starts + self.inputs).reshape(-1))

    def _weight(self) -> Tensor:
        """Return the weights, shape `(G, P, M)`, float64."""
        return self.module.weight.double().unflatten(0, (self.groups, -1)).flatten(2).mT

    def _shift(self, shift: Tensor) -> None:
        if self.norm is not None:
            cast(Tensor, self.norm.running_mean).sub_(shift)
        else:
            cast(Tensor, self.module.bias).add_(shift)


def drawn_patches(module: nn.Module, outputs: Sequence[Tensor], images: int, seed: int) -> tuple[Patches, ...]:
    """Draw the patches of each run of a layer, of all of them together as many as of a layer that runs once.

    A run gets its part by the number of its positions, so that every position counts alike.
    """
    positions = [output.numel() for output in outputs]
    return tuple(
        Patches.drawn(module, output, images, seed + 1_000_003 * run, fraction=positions[run] / sum(positions))
        for run, output in enumerate(outputs)
    )
