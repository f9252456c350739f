"""Maxout units on a network's own layers: the largest of so many adjacent channels takes their place.

Goodfellow, Warde-Farley, Mirza, Courville, Bengio: "Maxout Networks", ICML 2013 (arXiv 1302.4389). The maximum is a
forward hook behind a module, so that the network's class, code and state dict stay as they are. It is copied, pickled
and rebuilt together with its module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


def insert(model: nn.Module, candidates: Mapping[str, int]) -> None:
    """Put, in place, a maximum over so many adjacent channels behind each module that is named; 1 takes it away.

    A module that had one gets the new one instead; a module that is not named keeps what it has.

    Raises:
        ValueError: if there is no such module, or its number of channels is no multiple.
    """
    modules = dict(model.named_modules())
    for name, count in candidates.items():
        if name not in modules:
            raise ValueError(f"maxout units behind {name!r}, which this network does not have")
        weight = getattr(modules[name], "weight", None)
        if count < 1 or (isinstance(weight, Tensor) and len(weight) % count):
            channels = len(weight) if isinstance(weight, Tensor) else "an unknown number of"
            raise ValueError(f"maxout units of {count} candidates behind {name!r}, which has {channels} channels")
    for name, count in candidates.items():
        module = modules[name]
        for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, _Maximum)]:
            del module._forward_hooks[key]
        if count > 1:
            module.register_forward_hook(_Maximum(count))


def inserted(model: nn.Module) -> dict[str, int]:
    """Module -> candidates a unit, for every module with a maximum behind it."""
    return {
        name: hook.candidates
        for name, module in model.named_modules()
        for hook in module._forward_hooks.values()
        if isinstance(hook, _Maximum)
    }


def units(module: nn.Module, output: Tensor, candidates: int) -> tuple[Tensor, int]:
    """The output of `module` with its channels' axis split into units and candidates; and the axis of the latter."""
    axis = output.dim() - 1 if isinstance(module, nn.Linear) else 1
    return output.unflatten(axis, (-1, candidates)), axis + 1


@dataclass(frozen=True)
class _Maximum:
    """The forward hook."""

    candidates: int

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        split, axis = units(module, output, self.candidates)
        # Not amax, whose backward pass reads its own output: an in-place ReLU behind the module changes that.
        return split.max(dim=axis).values
