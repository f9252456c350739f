"""The optimiser of a training, its groups of parameters, and the course of its learning rate.

AdamW: Loshchilov, Hutter (2019), "Decoupled Weight Decay Regularization". Rates by layer: Bao et al. (2022), "BEiT",
and Clark et al. (2020), "ELECTRA". One cycle: Smith, Topin (2019), "Super-Convergence", with a linear rise and half a
cosine. Cosine: Loshchilov, Hutter (2017), "SGDR", without restarts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from raprune.spec.job import TrainSpec

SQUARES_DECAY = 0.999
"""Decay of AdamW's mean of the squared gradients, beta 2."""

STAGES = 12
"""Number of parts of a network for the learning rates by layer: the blocks of a ViT-B, for which BEiT states them."""


class Rates:
    """An optimiser and its learning rates, which change with every step."""

    def __init__(self, model: nn.Module, spec: TrainSpec) -> None:
        self.optimizer = _optimizer(model, spec)
        self.scales = [group["scale"] for group in self.optimizer.param_groups]
        device = next(model.parameters()).device
        # On CUDA tensors, which a captured step reads again each time: one for each scale.
        self._on_device = (
            {scale: torch.zeros((), device=device) for scale in self.scales} if device.type == "cuda" else None
        )

    def set(self, lr: float) -> None:
        """Set the learning rate of the next step, for the last layers."""
        if self._on_device is not None:
            for scale, value in self._on_device.items():
                value.fill_(lr * scale)
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = lr * scale if self._on_device is None else self._on_device[scale]


def _optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    groups = parameter_groups(model, spec)
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.momentum > 0, fused=True)
    on_cuda = next(model.parameters()).device.type == "cuda"
    betas = (spec.momentum, SQUARES_DECAY)
    adamw = torch.optim.AdamW(groups, lr=spec.lr, betas=betas, fused=True, capturable=on_cuda)
    # PyTorch would warn of steps that are not captured, as the first ones are; the fused step is as fast with it.
    adamw._warned_capturable_if_run_uncaptured = True
    return adamw


def parameter_groups(model: nn.Module, spec: TrainSpec) -> list[dict[str, Any]]:
    """Return the trained parameters of `model`, by weight decay and by the `scale` of their learning rate.

    Weight decay on a bias or a norm's scale does not simplify the function. With AdamW every parameter with only one
    axis longer than 1 counts as one, such as a class token or the scale of a layer's output.
    """
    scales = layer_scales(model, spec.layer_decay)
    groups: dict[tuple[bool, float], list[Tensor]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            axes = parameter.ndim if spec.optimizer == "sgd" else sum(size > 1 for size in parameter.shape)
            groups.setdefault((axes > 1, scales[name]), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": spec.weight_decay if decays else 0.0, "scale": scale}
        for (decays, scale), parameters in groups.items()
    ]


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter, by name: 1 for the last layer, less for those before.

    Layers are the modules with a parameter of two or more axes, in the order in which the network defines them. All
    but the last one are divided into `STAGES` parts of equal length; each part has `decay` times the rate of the next.
    Other parameters, such as those of norms, belong to the layer before them.
    """
    layer_of: dict[str, int] = {}
    last = -1
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        last += any(parameter.ndim > 1 for parameter in own.values())
        layer_of |= {f"{name}.{key}".removeprefix("."): max(last, 0) for key in own}
    return {
        name: 1.0 if layer >= last else decay ** (STAGES - layer * STAGES // last) for name, layer in layer_of.items()
    }


def rate(step: int, total: int, spec: TrainSpec) -> float:
    """Return the learning rate at `step` of `total`."""
    course = cosine if spec.schedule == "cosine" else one_cycle
    return spec.lr * (spec.final_lr + (1 - spec.final_lr) * course(step, total, spec.warm_up))


def one_cycle(step: int, total: int, warm_up: float) -> float:
    """Return the fraction of the peak learning rate at `step`, in (0, 1]: linear up, then half a cosine down."""
    rising = max(1, round(warm_up * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - rising) / (total + 1 - rising)))


def cosine(step: int, total: int, warm_up: float) -> float:
    """Return the fraction of the peak learning rate at `step`, in (0, 1]: half a cosine, damped during the warm-up."""
    rising = max(1, round(warm_up * total))
    return min(1.0, (step + 1) / rising) * 0.5 * (1 + math.cos(math.pi * step / total))
