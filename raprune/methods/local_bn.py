"""Batch-norm scales compared within their layer, and a transfer of the pruned channels' constants.

Local normalisation pruning of batch-norm networks, ICANN 2019, doi 10.1007/978-3-030-30484-3_28. One threshold over
the scales of a whole network removes layers whose scales are all small. After sparse training (`gammas.py`) the paper
compares a channel with its own layer, g_c = (|gamma_c| - min |gamma|) / (max |gamma| - min |gamma|), prunes where g_c
is at most a threshold, transfers the effect of the pruned channels' betas, and fine-tunes by distillation.

We had only the paper's abstract, which names local normalisation, the transfer of beta and distillation; the formulas
are ours. Also ours: the mixture with the size among all layers (`mu`; 0 is network slimming), the sum of g over the
layers that scale the same channels, normalised again, and 1 for channels that no layer scales, so that they are removed
last.

The transfer. A channel of scale 0 is constant, act(beta). Without this channel, the output of each of its readers
changes by a constant, which the reader's bias, or the running mean of the batch norm behind it, can absorb. `analytic`
needs no data: delta_m = sum_c act(beta_c) * sum of the taps K[m, c], exact away from zero padding; `measured` is the
mean over images.

Measured on ResNet-20, CIFAR-10 (JPEG), not fine-tuned, validation accuracy. One epoch of sparse training, slimming's
threshold at 80 % FLOPs: 57.9 % without a transfer, 72.2 % with the analytic, 71.5 % with the measured one; re-estimated
batch norms absorb the constants and also the changed variances, 75.8 % with or without a transfer, which is then useful
for layers without a batch norm behind them. Three epochs, repaired, one threshold at 70 and 50 % FLOPs: 69.9 and 39.6 %
for mu = 1, 67.7 and 42.1 % for mu = 0.5, 67.5 and 28.1 % for network slimming.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raprune.channels.graph import ChannelGraph, KeptPositions
from raprune.channels.members import Group
from raprune.methods.gammas import ScaleSizes, SparseTrained, largest, scales, sizes
from raprune.methods.method import Batches, Cut, Scores, reestimate_batch_norm


@dataclass(frozen=True, kw_only=True)
class LocalBN(SparseTrained):
    """The score (1 - mu) |gamma_c| / max |gamma| + mu g_c."""

    title: ClassVar[str] = "batch-norm scales normalised within their layer, beta transferred (local BN; ICANN 2019)"
    data_free: ClassVar[bool] = True
    comparable: ClassVar[bool] = True

    mu: float = field(default=1.0, metadata={"search": {"low": 0.0, "high": 1.0}})
    """Weight of g_c; 1 - mu is the weight of the size among all layers."""
    beta: Literal["analytic", "measured", "none"] = field(
        default="analytic", metadata={"repair": True, "search": {"choices": ("analytic", "measured", "none")}}
    )
    """Transfer of the constants of pruned channels: `analytic` as if images had no border, `measured` as the mean over
    the calibration images, or `none`."""
    reestimate: bool = field(default=True, metadata={"repair": True})
    """True if batch norms are re-estimated after the transfer."""

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        gammas = scales(model)
        top = largest(gammas)
        return {group.name: self._mixture(group, sizes(group, gammas), top) for group in graph.groups}

    def _mixture(self, group: Group, found: list[ScaleSizes], top: float) -> ScaleSizes:
        if not found:
            return np.ones(group.num_channels)
        everywhere = np.mean(found, axis=0) / top
        here = normalised(np.sum([normalised(size) for size in found], axis=0))
        mixture: ScaleSizes = (1 - self.mu) * everywhere + self.mu * here
        return mixture

    def repair(self, model: nn.Module, batches: Batches, cut: Cut) -> None:
        if self.beta == "analytic" and all(group.maskable for group in cut.graph.groups):
            # Without borders a constant channel is constant at all positions of every image.
            weight = next(model.parameters())
            blank = torch.zeros(1, *cut.graph.input_shape, device=weight.device, dtype=weight.dtype)
            with borderless(model), borderless(reference := ablated(cut)):
                transfer_constants(model, reference, [blank], cut)
        elif self.beta != "none":
            transfer_constants(model, ablated(cut), (images for images, _ in batches()), cut)
        if self.reestimate:
            reestimate_batch_norm(model, batches)


def normalised(size: ScaleSizes) -> ScaleSizes:
    """Scale sizes from 0 (smallest) to 1 (largest); all 1 if the sizes are equal, so that none is pruned."""
    low, high = size.min(), size.max()
    return np.ones_like(size) if high == low else (size - low) / (high - low)


def ablated(cut: Cut) -> nn.Module:
    """Return the dense network with scale 0 for the pruned channels; unscaled channels have zero weights instead."""
    model = copy.deepcopy(cut.dense).eval()
    for name in cut.identity:
        model.set_submodule(name, nn.Identity())
    gammas = scales(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    positions = KeptPositions(cut.graph, cut.kept)
    for group in cut.graph.groups:
        scaled = [member for member in group.members if member.parameter in gammas]
        for member in scaled or (group.members if group.maskable else ()):
            tensor = tensors[member.parameter].detach()
            gone = torch.as_tensor(positions.removed(group, member), device=tensor.device)
            tensor.index_fill_(member.axis, gone, 0.0)
    return model


def transfer_constants(model: nn.Module, reference: nn.Module, images: Iterable[Tensor], cut: Cut) -> None:
    """Shift each constant of `model`, from input to output, so that the means of its tensor match `reference`.

    `images` are batches `(B, C, H, W)`, weighted by their numbers of images. `model` is left in evaluation mode.
    """
    here, there = absorbers(model), absorbers(reference)
    stays = {name: _left(cut, place) for name, place in there.items()}
    means: dict[str, list[Tensor]] = {name: [] for name in here}
    shifts: dict[str, Tensor] = {}
    weight, total = 0, 0

    def watch(name: str, x: Tensor) -> Tensor:
        means[name].append(there[name].mean(x)[stays[name].to(x.device)])
        return x

    def correct(name: str, x: Tensor) -> Tensor:
        shift = means[name].pop(0) - here[name].mean(x)
        shifts[name] = shifts.get(name, torch.zeros_like(shift)) + weight * shift
        # The later layers get the corrected tensor.
        return here[name].shifted(x, shift)

    model.eval()
    with torch.no_grad(), ExitStack() as stack:
        for name, place in here.items():
            stack.callback(there[name].hook(partial(watch, name)).remove)
            stack.callback(place.hook(partial(correct, name)).remove)
        for batch in images:
            weight = len(batch)
            total += weight
            reference(batch)
            model(batch)
    for name, shift in shifts.items():
        here[name].absorb(shift / total)


@dataclass(frozen=True)
class Absorber:
    """A layer that can absorb a constant: a batch norm at its input, by its running mean; a convolution or linear layer
    at its output, by its bias."""

    name: str
    module: nn.modules.batchnorm._BatchNorm | nn.modules.conv._ConvNd | nn.Linear

    @property
    def normalises(self) -> bool:
        return isinstance(self.module, nn.modules.batchnorm._BatchNorm)

    @property
    def constant(self) -> Tensor | None:
        if isinstance(self.module, nn.modules.batchnorm._BatchNorm):
            return self.module.running_mean
        return None if self.module.bias is None else self.module.bias.detach()

    @property
    def parameter(self) -> str:
        return f"{self.name}.{'running_mean' if self.normalises else 'bias'}".removeprefix(".")

    def hook(self, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Call `change` with the tensor that the constant belongs to; the result replaces the tensor."""
        if self.normalises:
            return self.module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))
        return self.module.register_forward_hook(lambda _, inputs, output: change(output))

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over all axes but the channels, shape `(C,)`."""
        axis = self._axis(x)
        return x.mean([dim for dim in range(x.dim()) if dim != axis], dtype=torch.float64)

    def shifted(self, x: Tensor, shift: Tensor) -> Tensor:
        """Add `shift`, shape `(C,)`, to the channels of `x`."""
        shape = [1] * x.dim()
        shape[self._axis(x)] = -1
        return x + shift.to(x.dtype).view(shape)

    def absorb(self, shift: Tensor) -> None:
        """Change the constant as if `shift`, shape `(C,)`, were added to the tensor."""
        constant = self.constant
        assert constant is not None
        constant.add_((-shift if self.normalises else shift).to(constant.dtype))

    def _axis(self, x: Tensor) -> int:
        return x.dim() - 1 if isinstance(self.module, nn.Linear) else 1


def absorbers(model: nn.Module) -> dict[str, Absorber]:
    """Return every layer that can absorb a constant, by its name."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.conv._ConvNd, nn.Linear)
    found = (Absorber(name, module) for name, module in model.named_modules() if isinstance(module, kinds))
    return {absorber.name: absorber for absorber in found if absorber.constant is not None}


@contextmanager
def borderless(model: nn.Module) -> Iterator[None]:
    """Make convolutions pad with the image's edge instead of zeros within the context."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    padded = [m for m in model.modules() if isinstance(m, kinds) and m.padding_mode == "zeros"]
    for module in padded:
        module.padding_mode = "replicate"
    try:
        yield
    finally:
        for module in padded:
            module.padding_mode = "zeros"


def _left(cut: Cut, absorber: Absorber) -> Tensor:
    """Return the positions of a dense layer's constant that the cut layer still has."""
    constant = absorber.constant
    assert constant is not None
    sliced = any(member.parameter == absorber.parameter for group in cut.graph.groups for member in group.members)
    # The constant has one axis, which is the first of its parameter.
    stays = KeptPositions(cut.graph, cut.kept).of(absorber.parameter, 0) if sliced else np.arange(len(constant))
    return torch.from_numpy(stays)
