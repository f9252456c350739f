"""Maxout units on a network's own layers: the maximum over k adjacent channels replaces these channels.

Goodfellow, Warde-Farley, Mirza, Courville, Bengio: "Maxout Networks", ICML 2013 (arXiv 1302.4389). The maximum is a
forward hook on a module, so that the network's class, code and state dict do not change. The hook is copied, pickled
and rebuilt together with its module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


def insert(model: nn.Module, candidates: Mapping[str, int]) -> None:
    """Add, in place, a maximum over k adjacent channels behind each module of `candidates` (name -> k); 1 removes it.

    A module that already has a maximum gets the new maximum instead; a module that is not named does not change.

    Raises:
        ValueError: if there is no such module, or its number of channels is no multiple of k.
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
    """Return the number of candidates per maxout unit, by the name of each module that has a maximum behind it."""
    return {
        name: hook.candidates
        for name, module in model.named_modules()
        for hook in module._forward_hooks.values()
        if isinstance(hook, _Maximum)
    }


def units(module: nn.Module, output: Tensor, candidates: int) -> tuple[Tensor, int]:
    """Split the channel axis of `output` into units and candidates; return the result and the candidates' axis."""
    axis = output.dim() - 1 if isinstance(module, nn.Linear) else 1
    return output.unflatten(axis, (-1, candidates)), axis + 1


@dataclass(frozen=True)
class _Maximum:
    """The forward hook that takes the maximum."""

    candidates: int

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        split, axis = units(module, output, self.candidates)
        # Not amax: its backward pass reads its own output, which an in-place ReLU behind the module would change.
        return split.max(dim=axis).values
