"""Layers of a running network: their inputs, their outputs, and the batch norm or the sum that takes an output."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, cast

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from raprune.channels.inputs import call


@dataclass
class ObservedLayer:
    """Observation of a layer in one forward pass: its outputs, its batch norm, and its role in a residual branch."""

    outputs: list[Tensor]
    """The output of each of its runs: a head may run once for each map."""
    turn: int
    """Number of the event at which its refit is due: its first run, or the sum that ends the branch that it ends."""
    norm: str | None = None
    """The batch norm that takes its output in every run, if any."""
    added: bool = False
    """True if it ends a residual branch; never for a layer that runs several times."""


def structure_of(model: nn.Module, images: Tensor) -> tuple[dict[str, ObservedLayer], int]:
    """Return the layers that can be refitted in the order in which they run, and the bytes of the largest per image."""
    shared = Counter(id(module._parameters.get("weight")) for module in model.modules())
    names = [
        name
        for name, module in model.named_modules()
        if _can_be_refitted(module) and shared[id(module._parameters["weight"])] == 1
    ]
    ran: dict[str, ObservedLayer] = {}
    left_out: set[str] = set()
    sums: list[str] = []
    turns = count()
    sum_turns: dict[str, int] = {}
    normed_by: Counter[tuple[str, str]] = Counter()
    largest = 1

    def after(name: str, x: Tensor, y: Tensor) -> None:
        nonlocal largest
        # For example, windows of an image count as images for the layer: its rows do not belong to whole images.
        if len(y) != len(images):
            left_out.add(name)
        if name in ran:
            ran[name].outputs.append(y)
        else:
            ran[name] = ObservedLayer([y], next(turns))
        largest = max(largest, *(tensor.numel() * tensor.element_size() // len(images) for tensor in (x, y)))

    def normed(name: str, norm: str) -> None:
        ran[name].norm = norm
        normed_by[name, norm] += 1

    def added(name: str, own: Tensor, other: Tensor) -> None:
        sums.append(name)
        sum_turns[name] = next(turns)

    with LayerObserver(model, names, after=after, normed=normed, added=added):
        call(model, images)
    for name in sums:
        if sums.count(name) == len(ran[name].outputs) == 1:
            ran[name].added, ran[name].turn = True, sum_turns[name]
    # One change of the weights cannot be made up for by the norm of some of the runs.
    left_out |= {name for (name, _), runs in normed_by.items() if runs != len(ran[name].outputs)}
    return {name: here for name, here in ran.items() if name not in left_out}, largest


def _can_be_refitted(module: nn.Module) -> bool:
    """True if the module is PyTorch's own layer with its own weight, which it uses directly."""
    if module._parameters.get("weight") is None or type(module).forward not in _FORWARDS:
        return False
    groups, channels = getattr(module, "groups", 1), getattr(module, "in_channels", 1)
    return bool(groups == 1 or groups < channels)


_FORWARDS = {kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}


class LayerObserver(TorchFunctionMode):
    """Context that observes layers while a network runs, and that may change the sums that end residual branches.

    It calls `before(layer, input)`, `after(layer, input, output)`, `normed(layer, batch norm)` when a batch norm takes
    the layer's output, and `added(layer, own, other)` before the output of the layer, or of its batch norm, is added to
    another tensor. `added` is called only if nothing has read the output `own` before, so that `own` may be changed.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        *,
        before: Callable[[str, Tensor], None] | None = None,
        after: Callable[[str, Tensor, Tensor], None] | None = None,
        normed: Callable[[str, str], None] | None = None,
        added: Callable[[str, Tensor, Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self._model, self._names = model, names
        self._before, self._after, self._normed, self._added = before, after, normed, added
        self._handles: list[Any] = []
        self._from: dict[int, tuple[str, weakref.ref[Tensor], int]] = {}
        self._read: set[int] = set()

    def __enter__(self) -> LayerObserver:
        modules = dict(self._model.named_modules())
        for name in self._names:
            self._handles.append(modules[name].register_forward_pre_hook(partial(self._on_input, name)))
            self._handles.append(modules[name].register_forward_hook(partial(self._on_output, name)))
        for name, module in modules.items():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                self._handles.append(module.register_forward_hook(partial(self._on_norm, name)))
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        for handle in self._handles:
            handle.remove()

    def _on_input(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._before is not None:
            self._before(name, inputs[0])

    def _on_output(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._after is not None:
            self._after(name, inputs[0], output)
        self._note(name, output)

    def _on_norm(self, norm: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        name = self._layer_of(inputs[0])
        if name is not None:
            if self._normed is not None:
                self._normed(name, norm)
            self._note(name, output)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func.__name__ in _ADDITIONS and len(tensors) == len(args) == 2 and args[0].shape == args[1].shape:
            for own, other in (args, args[::-1]):
                name = None if id(own) in self._read else self._layer_of(own)
                if name is not None:
                    if self._added is not None:
                        self._added(name, own, other)
                    break
        if func.__name__ != "__get__":
            self._read.update(id(x) for x in tensors)
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, output: Tensor) -> None:
        self._read.discard(id(output))
        self._from[id(output)] = name, weakref.ref(output), output._version

    def _layer_of(self, x: object) -> str | None:
        """Return the layer whose output is `x`; None if an activation in place has changed `x` since."""
        name, reference, version = self._from.get(id(x), ("", None, 0))
        return name if reference is not None and reference() is x and cast(Tensor, x)._version == version else None


_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
