"""Scales of normalisation layers, and the training phase that makes them sparse.

Liu, Li, Shen, Huang, Yan, Zhang: "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017
(arXiv 1708.06519): the loss includes the scales gamma of the batch norms, L = cross-entropy + s * sum |gamma|, by the
sub-gradient s * sign(gamma).

Ours: layer, group and instance norms are included, and the phase starts from a trained network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from raprune.channels.members import Group
from raprune.methods.method import Method, Regularizer

ScaleSizes = npt.NDArray[np.float64]
"""|gamma| of one layer for each channel of a group, `(num_channels,)`."""

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True)
class SparseGamma(Regularizer):
    """An L1 penalty on the scale of every normalisation layer."""

    capturable: ClassVar[bool] = True

    strength: float
    """s, the weight of the penalty."""

    def __call__(self, model: nn.Module) -> None:
        for gamma in scales(model).values():
            if gamma.grad is not None:
                gamma.grad.add_(gamma.detach().sign(), alpha=self.strength)


@dataclass(frozen=True, kw_only=True)
class SparseTrained(Method):
    """A method whose network is first trained with `SparseGamma`. Methods with equal fields share one such training."""

    strength: float = 1e-3
    """s, the weight of the penalty. A scale that the loss does not hold shrinks in total by s * sum(learning rate) / (1
    - momentum), with these defaults on 45,000 images by 1.8. The published code takes 1e-4, for 160 epochs."""
    sparse_epochs: float = 20.0
    """Epochs of sparse training; with 0 the network is scored without it."""
    sparse_lr: float = 0.05
    """Peak learning rate of the sparse training."""

    def regularize(self) -> Regularizer | None:
        if self.sparse_epochs == 0:
            return None
        return SparseGamma(strength=self.strength, epochs=self.sparse_epochs, lr=self.sparse_lr)


def scales(model: nn.Module) -> dict[str, Tensor]:
    """Return the scale of each normalisation layer by parameter name, one value per channel: `(C,)`."""
    named = {f"{name}.weight": module.weight for name, module in model.named_modules() if isinstance(module, NORMS)}
    return {name: gamma for name, gamma in named.items() if gamma is not None and gamma.dim() == 1}


def sizes(group: Group, gammas: Mapping[str, Tensor]) -> list[ScaleSizes]:
    """Return |gamma| of each layer that scales the group's channels, summed over the positions of a channel."""
    return [
        gammas[member.parameter].detach().abs().double().cpu().numpy()[member.indices].sum(axis=1)
        for member in group.members
        if member.parameter in gammas
    ]


def largest(gammas: Mapping[str, Tensor]) -> float:
    """Return the largest |gamma| of the network; 1 if it has no gamma, or only zeros."""
    return max((float(gamma.detach().abs().max()) for gamma in gammas.values()), default=0.0) or 1.0
