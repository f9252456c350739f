"""Sensitivity: the effect on a network's predictions of a change in the weights of some layers, to second order.

With logits z(x), a change D of the weights moves them by dz = J(x) D, J the Jacobian at these weights. The effect is

    mean over images of || dz ||^2 / 2 = mean over images and signs s of ( s^T J(x) D )^2 / 2,

with s a random vector of signs (Hutchinson: "A stochastic estimator of the trace of the influence matrix for Laplacian
smoothing splines", 1990), centred, because a shift of all logits changes no prediction. One backward pass gives s^T J
for all layers, so that many changes are looked at in one pass through the network.

LeCun, Denker, Solla: "Optimal Brain Damage", NIPS 1989, rate a change by the curvature of the loss. Ours: distances of
logits and not the curvature of the Kullback-Leibler divergence, which is nearly 0 for images that the network is
sure of however far its logits move, and changes of whole layers after a least-squares refit.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from raprune.channels.evaluating import evaluating
from raprune.channels.inputs import call, tensors_in

Key = TypeVar("Key", bound=Hashable)

SEED = 0
"""Seed of the signs: the same for every group, so that scores do not depend on how groups are divided."""


@dataclass(frozen=True)
class LayerChange:
    """A change of the weights of a convolution or linear layer, and of its bias."""

    module: str
    weight: Tensor
    """Change of the weights, in their shape."""
    bias: Tensor | None = None
    """Change of the bias, `(outputs,)`. A batch norm behind a layer without a bias can represent it."""


@dataclass(frozen=True)
class ParameterChange:
    """A change of a parameter, for parameters that are not the weights of a layer that runs as such."""

    parameter: str
    change: Tensor
    """The change, in the shape of the parameter."""


def effects_of_layers(
    model: nn.Module, changes: Mapping[Key, Sequence[LayerChange]], images: Tensor, *, batch_size: int
) -> dict[Key, float]:
    """Return the effect of each of `changes`, which may be of several layers, on `images`, `batch_size` at a time."""
    by_layer: dict[str, list[tuple[Key, LayerChange]]] = defaultdict(list)
    for key, layers in changes.items():
        for change in layers:
            by_layer[change.module].append((key, change))
    total = dict.fromkeys(changes, 0.0)
    generator = torch.Generator().manual_seed(SEED)
    if not changes:
        return total
    with evaluating(model):
        for part in images.split(batch_size):
            for key, moved in _moved(model, by_layer, part, generator).items():
                total[key] += float(moved.double().square().sum())
    return {key: value / (2 * max(1, len(images))) for key, value in total.items()}


def effects_of_parameters(
    model: nn.Module, changes: Mapping[Key, Sequence[ParameterChange]], images: Tensor
) -> dict[Key, float]:
    """Return the effect of each of `changes`, which may be of several parameters, on `images`, one at a time."""
    names = sorted({change.parameter for parts in changes.values() for change in parts})
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[name].requires_grad for name in names}
    total = dict.fromkeys(changes, 0.0)
    generator = torch.Generator().manual_seed(SEED)
    if not names:
        return total
    try:
        for name in names:
            parameters[name].requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            for image in images.split(1):
                logits = _flat(call(model, image))
                found = torch.autograd.grad(
                    logits, [parameters[name] for name in names], _signs(logits, generator), allow_unused=True
                )
                gradients = dict(zip(names, found, strict=True))
                for key, parts in changes.items():
                    along = sum(
                        float((gradient * part.change).double().sum())
                        for part in parts
                        if (gradient := gradients[part.parameter]) is not None
                    )
                    total[key] += along**2
    finally:
        for name, is_wanted in wanted.items():
            parameters[name].requires_grad_(is_wanted)
    return {key: value / (2 * max(1, len(images))) for key, value in total.items()}


def _flat(outputs: object) -> Tensor:
    """Return all outputs of a network with values and a gradient, one row for each image."""
    if isinstance(outputs, Tensor):
        return outputs.flatten(1)
    return torch.cat([value.flatten(1) for value in tensors_in(outputs) if value.requires_grad], dim=1)


def _signs(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return random signs for each image, less their mean, in the shape of `logits`."""
    signs = (2 * torch.randint(2, logits.shape, generator=generator) - 1).to(logits.device, logits.dtype)
    return signs - signs.mean(1, keepdim=True) if logits.shape[1] > 1 else signs


def _moved(
    model: nn.Module,
    by_layer: Mapping[str, list[tuple[Key, LayerChange]]],
    images: Tensor,
    generator: torch.Generator,
) -> dict[Key, Tensor]:
    """Return how far each change moves the logits of each image along its signs, `(images,)`, to first order."""
    moved: dict[Key, Tensor] = {}
    # No parameter needs a gradient: the pass back ends where the first layer adds this zero.
    zero = torch.zeros(1, device=images.device, dtype=images.dtype, requires_grad=True)

    def observe(mine: list[tuple[Key, LayerChange]], module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        x = inputs[0].detach()

        def on_gradient(gradient: Tensor) -> None:
            for key, change in mine:
                along = _by_image(gradient * _output_of(module, change, x), len(images))
                moved[key] = moved[key] + along if key in moved else along

        # A tensor of its own, so that an activation in place leaves this hook the gradient before it.
        output = output + zero.to(output.dtype)
        output.register_hook(on_gradient)
        return output

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(partial(observe, mine)) for name, mine in by_layer.items()]
    try:
        with torch.enable_grad():
            logits = _flat(call(model, images))
        torch.autograd.backward(logits, _signs(logits, generator), inputs=[zero])
    finally:
        for handle in handles:
            handle.remove()
    return moved


def _output_of(module: nn.Module, change: LayerChange, x: Tensor) -> Tensor:
    """Return the change of the layer's output for the input `x`."""
    changed = copy.copy(module)
    changed._parameters = {"weight": _fixed(change.weight.to(x.device, x.dtype)), "bias": None}
    if change.bias is not None:
        changed._parameters["bias"] = _fixed(change.bias.to(x.device, x.dtype))
    # `forward` skips the hooks.
    return changed.forward(x)


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _by_image(values: Tensor, images: int) -> Tensor:
    """Return the sum of the values of each image, `(images,)`; windows of an image follow one another."""
    if len(values) % images == 0:
        return values.reshape(images, -1).sum(1)
    return values.sum().expand(images) / images
