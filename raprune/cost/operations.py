"""The operations of a forward pass, and how their arguments follow the widths.

One pass under a `TorchDispatchMode` writes down each operation that PyTorch runs, whoever called it: a layer, a
function, an operator. The same is done for a few networks of other widths. An argument that differs between them is set
against the sizes of the traced axes (`ChannelGraph.factors`): it is a share of one, or so much more or less than it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Sizes = npt.NDArray[np.float64]

_WITHOUT_WORK = ("as_strided_", "detach", "empty", "empty_like", "empty_strided", "new_empty")
"""Beside views. Which of these run depends on memory layouts, and so on widths."""
_ROUNDED = 9
_KEPT_VALUES = 1_000_000


@dataclass(frozen=True)
class Like:
    """A tensor argument: all that its operation's time depends on."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    """Axes from the outermost in memory to the innermost."""
    expanded: tuple[bool, ...]
    """Axes along which one element stands for all."""
    dtype: torch.dtype
    device: torch.device
    value: Tensor | None = None
    """Of an index or a mask, which may not be anything."""

    @classmethod
    def of(cls, tensor: Tensor) -> Like:
        strides = tensor.stride()
        return cls(
            tuple(tensor.shape),
            tuple(sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], axis))),
            tuple(stride == 0 and size > 1 for stride, size in zip(strides, tensor.shape, strict=True)),
            tensor.dtype,
            tensor.device,
            None if tensor.is_floating_point() or tensor.numel() > _KEPT_VALUES else tensor.clone(),
        )

    def make(self, shape: Sequence[int]) -> Tensor:
        """A tensor of this kind. Ones, which no operation in place, however often repeated, makes denormal."""
        if self.value is not None:
            is_same = tuple(shape) == self.shape
            return self.value if is_same else torch.zeros(tuple(shape), dtype=self.dtype, device=self.device)
        stored = [1 if one else size for size, one in zip(shape, self.expanded, strict=True)]
        laid = torch.ones([stored[axis] for axis in self.order], dtype=self.dtype, device=self.device)
        return laid.permute([self.order.index(axis) for axis in range(len(stored))]).expand(tuple(shape))


@dataclass(frozen=True)
class Call:
    """One operation of a forward pass."""

    operation: Any
    """A `torch._ops.OpOverload`."""
    module: str
    """The innermost module that ran it."""
    leaves: tuple[Any, ...]
    """Of its arguments; tensors as `Like`."""
    tree: pytree.TreeSpec


@dataclass(frozen=True)
class Rule:
    """How one number of an operation's arguments follows a factor: as a share of it, or at a distance from it."""

    factor: int
    """Position in the operation's own factors."""
    dense: int
    is_share: bool

    def at(self, size: float, dense_size: float) -> int:
        """The number where the factor has this size."""
        if self.is_share:
            return max(1, round(self.dense * size / dense_size))
        return max(0, round(self.dense + size - dense_size))


@dataclass(frozen=True)
class SizedCall:
    """An operation whose arguments can be made for any widths."""

    call: Call
    factors: tuple[int, ...]
    """Positions in `ChannelGraph.factors`, at most two."""
    rules: Mapping[tuple[int, int], Rule]
    """(leaf, axis of the tensor or -1 for a number) -> its rule; all else stays as it is."""
    known: bool = True
    """Whether everything that differs between widths follows a factor. Else the operation is taken as it is at full
    width."""

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for operations that take equally long at equal sizes of their factors."""
        leaves = tuple(
            (leaf.shape, leaf.order, leaf.expanded, leaf.dtype) if isinstance(leaf, Like) else repr(leaf)
            for leaf in self.call.leaves
        )
        return str(self.call.operation), str(self.call.tree), leaves, tuple(sorted(self.rules.items(), key=str))

    def made(self, sizes: Sequence[float], dense_sizes: Sequence[float]) -> Callable[[], object]:
        """The operation on new tensors, with its factors at `sizes`; call it to run it."""

        def number(leaf: int, axis: int, dense: int) -> int:
            rule = self.rules.get((leaf, axis))
            return dense if rule is None else rule.at(sizes[rule.factor], dense_sizes[rule.factor])

        leaves: list[Any] = []
        for i, leaf in enumerate(self.call.leaves):
            if isinstance(leaf, Like):
                leaves.append(leaf.make([number(i, axis, size) for axis, size in enumerate(leaf.shape)]))
            else:
                leaves.append(number(i, -1, leaf) if type(leaf) is int else leaf)
        arguments, keywords = pytree.tree_unflatten(leaves, self.call.tree)
        return lambda: self.call.operation(*arguments, **keywords)


def calls(model: nn.Module, x: Tensor) -> list[Call]:
    """The operations that `model` runs on the batch `x`, without those that only make views."""
    recorder = _Recorder()
    with torch.no_grad(), _naming(model, recorder), recorder:
        model(x)
    return recorder.calls


def follow(runs: Sequence[Sequence[Call]], factors: Sizes) -> list[SizedCall] | None:
    """The operations of the first run, as functions of the factors.

    `runs[k]` are the operations of the same network at the widths where the factors have the sizes `factors[k]`; shape
    `(K, F)`. None if they are not the same operations at all widths.
    """
    if any([c.operation for c in run] != [c.operation for c in runs[0]] for run in runs[1:]):
        return None
    changing = [f for f in range(factors.shape[1]) if (factors[:, f] != factors[0, f]).any()]
    shares = {_share(factors[:, f]): f for f in reversed(changing)}
    distances = {_distance(factors[:, f]): f for f in reversed(changing)}
    return [_followed(same, shares, distances) for same in zip(*runs, strict=True)]


def _followed(
    same: Sequence[Call], shares: Mapping[tuple[float, ...], int], distances: Mapping[tuple[float, ...], int]
) -> SizedCall:
    found: dict[tuple[int, int], tuple[int, int, bool]] = {}
    for place, numbers in _numbers(same):
        series = np.array(numbers, dtype=np.float64)
        if (series == series[0]).all():
            continue
        if series[0] and (factor := shares.get(_share(series))) is not None:
            found[place] = (factor, numbers[0], True)
        elif (factor := distances.get(_distance(series))) is not None:
            found[place] = (factor, numbers[0], False)
        else:
            return SizedCall(same[0], (), {}, known=False)
    largest_first = sorted(found.values(), key=lambda rule: -rule[1])
    factors = list(dict.fromkeys(factor for factor, *_ in largest_first))
    if len(factors) > 2:
        # As in a concatenation: the largest goes for all others as well, they narrow together.
        rules = {place: Rule(0, dense, is_share=True) for place, (_, dense, _) in found.items()}
        return SizedCall(same[0], tuple(factors[:1]), rules)
    rules = {place: Rule(factors.index(f), dense, is_share) for place, (f, dense, is_share) in found.items()}
    return SizedCall(same[0], tuple(factors), rules)


def _numbers(same: Sequence[Call]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Every axis and every whole number of the arguments, each with its values in all runs."""
    for i, leaf in enumerate(same[0].leaves):
        if isinstance(leaf, Like):
            for axis in range(len(leaf.shape)):
                yield (i, axis), [call.leaves[i].shape[axis] for call in same]
        elif type(leaf) is int:
            yield (i, -1), [call.leaves[i] for call in same]


def _share(series: Sizes) -> tuple[float, ...]:
    return tuple(np.round(series / series[0], _ROUNDED).tolist())


def _distance(series: Sizes) -> tuple[float, ...]:
    return tuple((series - series[0]).tolist())


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.modules: list[str] = []
        """Those that are running, the innermost last."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        if not is_view and func.overloadpacket.__name__ not in _WITHOUT_WORK:
            leaves, tree = pytree.tree_flatten((args, kwargs))
            kept = tuple(Like.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
            self.calls.append(Call(func, self.modules[-1] if self.modules else "", kept, tree))
        return func(*args, **kwargs)


@contextmanager
def _naming(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Within it the recorder knows which module runs."""
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: recorder.modules.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: recorder.modules.pop() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
