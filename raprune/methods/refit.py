"""Least squares: the layers of a cut network take over what the missing channels did.

Every convolution and linear layer gets the weights W that bring its outputs closest to those of the dense network,

    min  || X W - Y ||^2  +  ridge * sum_i || x_i ||^2 || w_i - w0_i ||^2,

with X the patches that it reads (centred where a bias or a batch norm can hold the mean), Y the dense network's outputs
there, and W0 its weights before. The ridge is proximal: what the patches do not determine stays as it was.

He, Zhang, Sun: "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017 (arXiv 1707.06168) refit this
way, front to back, and at the end of a residual branch fit the sum with the shortcut, as `asymmetric` does here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from raprune.methods.method import Batches, Cut
from raprune.tracing.graph import ChannelGraph

ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
CHUNK = 16384
"""Patches that are in memory at a time."""


def refit(
    model: nn.Module,
    batches: Batches,
    cut: Cut,
    *,
    asymmetric: bool = True,
    ridge: float = 1e-6,
    patches: int = 20,
    seed: int = 0,
    joins: bool = True,
    rescale: bool = False,
) -> None:
    """Refit `model`, which `cut` describes, in place by least squares against the outputs of the dense network.

    Asymmetric: each layer is fitted on what it gets from the layers before it, which are cut and refitted already, so
    that errors do not pile up; and the last layer of a residual branch makes up for the error of the stream that it is
    added to. Symmetric: on what it would get from the dense network.

    `patches` for each weight of a filter are drawn from the batches, or all there are.
    """
    images = torch.cat([x for x, _ in batches()])
    modes = {module: module.training for network in (model, cut.dense) for module in network.modules()}
    try:
        model.eval()
        cut.dense.eval()
        with torch.no_grad():
            layers = _layers(model, cut, images, patches, seed)
            if not joins or not asymmetric:
                for layer in layers.values():
                    layer.joins = False
            if asymmetric:
                _front_to_back(model, cut.dense, images, batches, layers, ridge, rescale)
            else:
                _against_dense(cut.dense, batches, layers, ridge, rescale)
    finally:
        for module, training in modes.items():
            module.training = training


def _front_to_back(model, dense, images, batches, layers, ridge, rescale) -> None:
    targets: dict[str, list[Tensor]] = {name: [] for name in layers}
    offset = 0

    def on_output(name: str, x: Tensor, y: Tensor) -> None:
        layer = layers[name]
        if not layer.joins:
            targets[name].append(layer.sample(y, offset))

    def on_sum(name: str, own: Tensor, other: Tensor) -> None:
        targets[name].append(layers[name].sample(own + other, offset))

    with _Pass(dense, layers, on_output=on_output, on_sum=on_sum):
        for x, _ in batches():
            dense(x)
            offset += len(x)

    inputs: dict[str, Tensor] = {}

    def before(name: str, x: Tensor) -> None:
        layer = layers[name]
        if layer.joins:
            inputs[name] = x
            return
        moments = _Moments(layer)
        moments.add(x, targets[name])
        moments.solve(ridge, rescale)

    def join(name: str, own: Tensor, other: Tensor) -> Tensor:
        layer = layers[name]
        target = torch.cat(targets[name])
        target = target - layer.sample_cut(other)
        x = inputs.pop(name)
        moments = _Moments(layer)
        moments.add(x, [layer.before_norm(target, x)])
        moments.solve(ridge, rescale)
        y = layer.cut.forward(x)
        if layer.norm is not None:
            y = layer.norm.forward(y)
        return y + other

    with _Pass(model, layers, before=before, on_sum=join):
        model(images)


def _against_dense(dense, batches, layers, ridge, rescale) -> None:
    moments = {name: _Moments(layer) for name, layer in layers.items()}
    offset = 0

    def on_output(name: str, x: Tensor, y: Tensor) -> None:
        layer = layers[name]
        moments[name].add(layer.kept_inputs(x), [layer.sample(y, offset)], offset)

    with _Pass(dense, layers, on_output=on_output):
        for x, _ in batches():
            dense(x)
            offset += len(x)
    for m in moments.values():
        m.solve(ridge, rescale)


class _Moments:
    def __init__(self, layer: _Layer) -> None:
        self.layer = layer
        self.count = 0

    def add(self, x: Tensor, target: list[Tensor], offset: int = 0) -> None:
        layer = self.layer
        y = torch.cat(target).double()
        images, places = layer.rows(offset, len(x))
        w0 = layer.weight().double()  # groups, p, m
        if self.count == 0:
            g, p, m = w0.shape
            self.gram = x.new_zeros(g, p, p, dtype=torch.float64)
            self.cross = x.new_zeros(g, p, m, dtype=torch.float64)
            self.sum_x = x.new_zeros(g, p, dtype=torch.float64)
            self.sum_r = x.new_zeros(g, m, dtype=torch.float64)
            self.square = x.new_zeros(g, m, dtype=torch.float64)
        flat = layer.flat(x)
        for start in range(0, len(y), CHUNK):
            part = slice(start, start + CHUNK)
            read = layer.patches(flat, x, images[part], places[part]).double()  # groups, n, p
            wanted = y[part].unflatten(1, (len(w0), -1)).transpose(0, 1)
            rest = wanted - read @ w0 - layer.bias().double()
            self.gram += read.mT @ read
            self.cross += read.mT @ rest
            self.sum_x += read.sum(1)
            self.sum_r += rest.sum(1)
        self.count += len(y)

    def solve(self, ridge: float, rescale: bool) -> None:
        layer = self.layer
        mean_x, mean_r = self.sum_x / self.count, self.sum_r / self.count
        gram, cross = self.gram, self.cross
        if layer.centred:
            gram = gram - self.count * mean_x[:, :, None] * mean_x[:, None, :]
            cross = cross - self.count * mean_x[:, :, None] * mean_r[:, None, :]
        change = solved(gram, cross, ridge)
        weight = layer.weight().double() + change
        layer.set_weight(weight)
        if layer.centred:
            shift = mean_r - (mean_x[:, None, :] @ change)[:, 0]
            layer.shift(shift.flatten())


def solved(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """`(gram + ridge * diag(gram))^-1 cross`; rows of zeros give zeros. The ridge grows until it can be factored."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    dead = diagonal <= 1e-12 * diagonal.amax(-1, keepdim=True).clamp(min=1e-300)
    scale = torch.where(dead, 0.0, diagonal.clamp(min=1e-300).rsqrt())
    scaled = gram * scale[:, :, None] * scale[:, None, :]
    scaled.diagonal(dim1=-2, dim2=-1).copy_(torch.ones_like(diagonal))
    while True:
        damped = scaled.clone()
        damped.diagonal(dim1=-2, dim2=-1).add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            return scale[:, :, None] * torch.cholesky_solve(cross * scale[:, :, None], factor)
        ridge = max(10 * ridge, 1e-12)


@dataclass
class _Layer:
    """A layer that is refitted, and what the dense network's pass found out about it."""

    name: str
    dense: nn.Module
    cut: nn.Module
    outputs: Tensor
    """Of the dense layer's output channels, those that stay."""
    inputs: Tensor
    norm: nn.Module | None = None
    """The batch norm of the cut network that takes its output."""
    joins: bool = False
    """Whether its output, or its batch norm's, is added to something."""
    chosen: Tensor | None = None
    """Which positions of each image's output are looked at: `(images, positions)`."""

    @property
    def groups(self) -> int:
        return getattr(self.cut, "groups", 1)

    @property
    def centred(self) -> bool:
        return self.cut.bias is not None or self.norm is not None

    def weight(self) -> Tensor:
        """groups, p, m; p = channel-major."""
        return self.cut.weight.detach().unflatten(0, (self.groups, -1)).flatten(2).mT

    def set_weight(self, weight: Tensor) -> None:
        self.cut.weight.copy_(weight.mT.reshape(self.cut.weight.shape))

    def bias(self) -> Tensor:
        if self.cut.bias is None:
            return torch.zeros((), device=self.cut.weight.device)
        return self.cut.bias.detach().unflatten(0, (self.groups, 1, -1))

    def shift(self, shift: Tensor) -> None:
        if self.norm is not None:
            self.norm.running_mean.sub_(shift)
        else:
            self.cut.bias.add_(shift)

    def before_norm(self, target: Tensor, x: Tensor) -> Tensor:
        if self.norm is None:
            return target
        norm = self.norm
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        offset = -norm.running_mean.double() * scale
        if norm.affine:
            scale, offset = scale * norm.weight.double(), offset * norm.weight.double() + norm.bias.double()
        return (target.double() - offset) / scale

    def rows(self, offset: int, count: int) -> tuple[Tensor, Tensor]:
        chosen = self.chosen[offset : offset + count]
        images = torch.arange(count, device=chosen.device)[:, None].expand_as(chosen)
        return images.reshape(-1), chosen.reshape(-1)

    def sample(self, y: Tensor, offset: int) -> Tensor:
        images, places = self.rows(offset, len(y))
        return self._at(y, images, places)[:, self.outputs]

    def sample_cut(self, y: Tensor) -> Tensor:
        return self._at(y, *self.rows(0, len(y)))

    def _at(self, y: Tensor, images: Tensor, places: Tensor) -> Tensor:
        if isinstance(self.cut, nn.Linear):
            return y.reshape(len(y), -1, y.shape[-1])[images, places]
        return y.flatten(2).transpose(1, 2)[images, places]

    def kept_inputs(self, x: Tensor) -> Tensor:
        axis = x.dim() - 1 if isinstance(self.cut, nn.Linear) else 1
        width = x.shape[axis] // self.groups
        kept = torch.cat([self.inputs + g * width for g in range(self.groups)])
        return x.index_select(axis, kept)

    def flat(self, x: Tensor) -> Tensor:
        if isinstance(self.cut, nn.Linear):
            return x.reshape(len(x), -1, x.shape[-1])
        mode = "constant" if self.cut.padding_mode == "zeros" else self.cut.padding_mode
        padded = functional.pad(x, self.cut._reversed_padding_repeated_twice, mode=mode)
        self.sizes = padded.shape[2:]
        return padded.flatten(2).transpose(1, 2)

    def patches(self, flat: Tensor, x: Tensor, images: Tensor, places: Tensor) -> Tensor:
        """groups, n, p"""
        if isinstance(self.cut, nn.Linear):
            return flat[images, places][None]
        read_NTC = flat[images[:, None], self._taps(places)]
        return read_NTC.unflatten(2, (self.groups, -1)).permute(2, 0, 3, 1).flatten(2)

    def _taps(self, places: Tensor) -> Tensor:
        conv = self.cut
        flat = places.new_zeros(len(places), 1)
        size_of = [
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, dilation, stride in zip(
                self.sizes, conv.kernel_size, conv.dilation, conv.stride, strict=True
            )
        ]
        for axis, size in enumerate(self.sizes):
            place = places // math.prod(size_of[axis + 1 :]) % size_of[axis]
            taps = torch.arange(conv.kernel_size[axis], device=places.device) * conv.dilation[axis]
            along = (place * conv.stride[axis])[:, None] + taps
            flat = (flat[:, :, None] * size + along[:, None, :]).flatten(1)
        return flat


class _Pass(TorchFunctionMode):
    """A forward pass that is watched."""

    def __init__(self, model, layers, *, before=None, on_output=None, on_sum=None, structure=None) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        self.before, self.on_output, self.on_sum, self.structure = before, on_output, on_sum, structure
        self.sources: dict[int, tuple[str, Tensor, int]] = {}

    def __enter__(self):
        self.handles = []
        names = {name: module for name, module in self.model.named_modules()}
        for name in self.layers:
            module = names[name]
            if self.before is not None:
                self.handles.append(
                    module.register_forward_pre_hook(lambda m, i, name=name: self.before(name, i[0]))
                )
            self.handles.append(module.register_forward_hook(lambda m, i, o, name=name: self._after(name, i[0], o)))
        for name, module in names.items():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self.handles.append(module.register_forward_hook(lambda m, i, o, name=name: self._norm(name, i[0], o)))
        self.handles.append(self.model.register_forward_hook(lambda m, i, o: self.sources.clear()))
        return super().__enter__()

    def __exit__(self, *a):
        for handle in self.handles:
            handle.remove()
        self.sources.clear()
        super().__exit__(*a)

    def _after(self, name, x, y):
        if self.on_output is not None:
            self.on_output(name, x, y)
        if self.structure is not None:
            self.structure("call", name, y)
        if self.structure is not None or self.layers[name].joins:
            self.sources[id(y)] = (name, y, y._version)

    def _source(self, x):
        found = self.sources.get(id(x))
        return found[0] if found is not None and found[2] == x._version else None

    def _norm(self, norm, x, y):
        name = self._source(x)
        if name is not None:
            if self.structure is not None:
                self.structure("norm", name, norm)
            self.sources[id(y)] = (name, y, y._version)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ADDITIONS and len(args) == 2 and not kwargs and self.sources:
            a, b = args
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
                for own, other in ((a, b), (b, a)):
                    name = self._source(own)
                    if name is not None:
                        if self.structure is not None:
                            self.structure("sum", name, None)
                            break
                        if self.on_sum is not None:
                            result = self.on_sum(name, own, other)
                            if result is not None:
                                return a.copy_(result) if func.__name__ in ("add_", "__iadd__") else result
                        break
        return func(*args, **(kwargs or {}))


def _layers(model: nn.Module, cut: Cut, images: Tensor, patches: int, seed: int) -> dict[str, _Layer]:
    small = dict(model.named_modules())
    stay = _staying(cut.graph, cut.kept)
    found = {}
    for name, dense in cut.dense.named_modules():
        conv = isinstance(dense, nn.modules.conv._ConvNd) and not dense.transposed
        if not (conv or isinstance(dense, nn.Linear)):
            continue
        weight = dense.weight
        if conv and dense.groups > 1 and dense.groups == dense.in_channels:
            continue
        axes = [torch.as_tensor(stay.get((f"{name}.weight", a), np.arange(weight.shape[a]))) for a in (0, 1)]
        if tuple(len(a) for a in axes) != tuple(small[name].weight.shape[:2]):
            continue
        found[name] = _Layer(name, dense, small[name], *(a.to(weight.device) for a in axes))

    calls: dict[str, int] = dict.fromkeys(found, 0)
    norms: dict[str, str] = {}
    sums: set[str] = set()
    positions: dict[str, int] = {}

    def structure(kind: str, name: str, value: Any) -> None:
        if kind == "call":
            calls[name] += 1
            linear = isinstance(found[name].cut, nn.Linear)
            positions[name] = value[0].numel() // value.shape[-1] if linear else value[0, 0].numel()
        elif kind == "norm":
            norms[name] = value
        else:
            sums.add(name)

    with _Pass(cut.dense, found, structure=structure):
        cut.dense(images[:1])
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, layer in found.items():
        if calls[name] != 1:
            continue
        layer.norm = small[norms[name]] if name in norms else None
        layer.joins = name in sums
        p = layer.cut.weight[0].numel()
        each = -(-patches * p // len(images))
        if each >= positions[name]:
            chosen = torch.arange(positions[name]).expand(len(images), -1)
        else:
            chosen = torch.randint(positions[name], (len(images), each), generator=generator)
        layer.chosen = chosen.to(images.device)
        layers[name] = layer
    return layers


def _staying(graph: ChannelGraph, kept: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, int], Any]:
    masks: dict[tuple[str, int], Any] = {}
    for group in graph.groups:
        gone = np.setdiff1d(np.arange(group.num_channels), kept.get(group.name, range(group.num_channels)))
        for m in group.members:
            size = graph.shapes[m.parameter][m.axis]
            masks.setdefault((m.parameter, m.axis), np.ones(size, dtype=bool))[m.indices[gone].reshape(-1)] = False
    return {key: np.flatnonzero(mask) for key, mask in masks.items()}
