"""The operations of a forward pass, and their arguments as functions of the widths.

One pass under a `TorchDispatchMode` records each operation that PyTorch runs, whether a layer, a function or an
operator called it. The same is done for a few networks of other widths. An argument that differs between these
networks is compared with the sizes of the traced axes (`ChannelGraph.factors`): it is proportional to one of them, or
differs from it by a constant.
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
"""Operations that are left out, besides views: they depend on memory layouts, and so on widths."""
_ROUNDED = 9
_KEPT_VALUES = 1_000_000


@dataclass(frozen=True)
class TensorTemplate:
    """A tensor argument, described by everything that the time of its operation depends on."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    """Axes from the outermost in memory to the innermost."""
    expanded: tuple[bool, ...]
    """True for each axis along which one element stands for all."""
    dtype: torch.dtype
    device: torch.device
    value: Tensor | None = None
    """Values of an index or a mask, which cannot be replaced by ones."""

    @classmethod
    def of(cls, tensor: Tensor) -> TensorTemplate:
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
        """Make a tensor of this template; its values are those of `filled`."""
        if self.value is not None:
            is_same = tuple(shape) == self.shape
            return self.value if is_same else torch.zeros(tuple(shape), dtype=self.dtype, device=self.device)
        stored = [1 if one else size for size, one in zip(shape, self.expanded, strict=True)]
        laid = filled([stored[axis] for axis in self.order], self.dtype, self.device)
        return laid.permute([self.order.index(axis) for axis in range(len(stored))]).expand(tuple(shape))


def filled(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor to be timed with: ones on a CPU, random numbers in [0.5, 1.5) on a GPU.

    No operation in place makes ones denormal, however often it is repeated; CPUs are slow with denormal numbers. A GPU
    is not, but takes less power for equal numbers, and then runs at a higher clock. All are valid variances.
    """
    if device.type == "cpu" or not dtype.is_floating_point:
        return torch.ones(tuple(shape), dtype=dtype, device=device)
    return torch.rand(tuple(shape), dtype=dtype, device=device) + 0.5


@dataclass(frozen=True)
class OperationCall:
    """One call of an operation in a forward pass."""

    operation: Any
    """A `torch._ops.OpOverload`."""
    module: str
    """Name of the innermost module that ran the operation."""
    leaves: tuple[Any, ...]
    """Leaves of the tree of arguments; a tensor is a `TensorTemplate`."""
    tree: pytree.TreeSpec


@dataclass(frozen=True)
class SizeRule:
    """Rule by which a number of an operation's arguments follows a factor: proportional, or at a constant distance."""

    factor: int
    """Index in the operation's own factors."""
    dense: int
    """The number in the dense network."""
    is_proportional: bool

    def at(self, size: float, dense_size: float) -> int:
        """Return the number for a factor of size `size`."""
        if self.is_proportional:
            return max(1, round(self.dense * size / dense_size))
        return max(0, round(self.dense + size - dense_size))


@dataclass(frozen=True)
class SizedCall:
    """An operation whose arguments can be made for any widths."""

    call: OperationCall
    factors: tuple[int, ...]
    """Indices in `ChannelGraph.factors`, at most two."""
    rules: Mapping[tuple[int, int], SizeRule]
    """Rule of each (leaf, axis of the tensor, or -1 for a number); all other arguments are constant."""
    known: bool = True
    """True if every argument that differs between widths follows a factor. Otherwise the operation is used as at full
    width."""

    @property
    def signature(self) -> tuple[Any, ...]:
        """A key that is equal for operations that take equally long at equal sizes of their factors."""
        leaves = tuple(
            (leaf.shape, leaf.order, leaf.expanded, leaf.dtype) if isinstance(leaf, TensorTemplate) else repr(leaf)
            for leaf in self.call.leaves
        )
        return str(self.call.operation), str(self.call.tree), leaves, tuple(sorted(self.rules.items(), key=str))

    @property
    def form(self) -> tuple[Any, ...]:
        """A key that is equal for operations that differ in nothing but sizes."""
        leaves = tuple(
            (len(leaf.shape), leaf.order, leaf.expanded, leaf.dtype)
            if isinstance(leaf, TensorTemplate)
            else type(leaf)
            if type(leaf) is int
            else repr(leaf)
            for leaf in self.call.leaves
        )
        return str(self.call.operation), str(self.call.tree), leaves

    def made(
        self,
        sizes: Sequence[float],
        dense_sizes: Sequence[float],
        run: Callable[..., object] | None = None,
    ) -> Callable[[], object]:
        """Return a function that runs the operation on new tensors, with its factors at `sizes`.

        `run` takes the place of the operation.
        """

        def number(leaf: int, axis: int, dense: int) -> int:
            rule = self.rules.get((leaf, axis))
            return dense if rule is None else rule.at(sizes[rule.factor], dense_sizes[rule.factor])

        leaves: list[Any] = []
        for i, leaf in enumerate(self.call.leaves):
            if isinstance(leaf, TensorTemplate):
                leaves.append(leaf.make([number(i, axis, size) for axis, size in enumerate(leaf.shape)]))
            else:
                leaves.append(number(i, -1, leaf) if type(leaf) is int else leaf)
        arguments, keywords = pytree.tree_unflatten(leaves, self.call.tree)
        run = run or self.call.operation
        return lambda: run(*arguments, **keywords)


def calls(model: nn.Module, x: Tensor) -> list[OperationCall]:
    """Return the operations that `model` runs on the batch `x`, without those that only make views."""
    recorder = _Recorder()
    with torch.no_grad(), _naming(model, recorder), recorder:
        model(x)
    return recorder.calls


def follow(runs: Sequence[Sequence[OperationCall]], factors: Sizes) -> list[SizedCall] | None:
    """Return the operations of the first run as functions of the factors; None if the runs have other operations.

    `runs[k]` are the operations of the same network at the widths at which the factors have the sizes `factors[k]`;
    `factors` has shape `(K, F)`.
    """
    if any([c.operation for c in run] != [c.operation for c in runs[0]] for run in runs[1:]):
        return None
    changing = [f for f in range(factors.shape[1]) if (factors[:, f] != factors[0, f]).any()]
    ratios = {_ratios(factors[:, f]): f for f in reversed(changing)}
    distances = {_distance(factors[:, f]): f for f in reversed(changing)}
    return [_followed(same, ratios, distances) for same in zip(*runs, strict=True)]


def _followed(
    same: Sequence[OperationCall], ratios: Mapping[tuple[float, ...], int], distances: Mapping[tuple[float, ...], int]
) -> SizedCall:
    found: dict[tuple[int, int], tuple[int, int, bool]] = {}
    for place, numbers in _numbers(same):
        series = np.array(numbers, dtype=np.float64)
        if (series == series[0]).all():
            continue
        if series[0] and (factor := ratios.get(_ratios(series))) is not None:
            found[place] = (factor, numbers[0], True)
        elif (factor := distances.get(_distance(series))) is not None:
            found[place] = (factor, numbers[0], False)
        else:
            return SizedCall(same[0], (), {}, known=False)
    largest_first = sorted(found.values(), key=lambda rule: -rule[1])
    factors = list(dict.fromkeys(factor for factor, *_ in largest_first))
    if len(factors) > 2:
        # As in a concatenation: the largest factor stands for all factors, as if they narrowed together.
        rules = {place: SizeRule(0, dense, is_proportional=True) for place, (_, dense, _) in found.items()}
        return SizedCall(same[0], tuple(factors[:1]), rules)
    rules = {
        place: SizeRule(factors.index(f), dense, is_proportional)
        for place, (f, dense, is_proportional) in found.items()
    }
    return SizedCall(same[0], tuple(factors), rules)


def _numbers(same: Sequence[OperationCall]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Yield every axis and every integer of the arguments, with its values in all runs."""
    for i, leaf in enumerate(same[0].leaves):
        if isinstance(leaf, TensorTemplate):
            for axis in range(len(leaf.shape)):
                yield (i, axis), [call.leaves[i].shape[axis] for call in same]
        elif type(leaf) is int:
            yield (i, -1), [call.leaves[i] for call in same]


def _ratios(series: Sizes) -> tuple[float, ...]:
    return tuple(np.round(series / series[0], _ROUNDED).tolist())


def _distance(series: Sizes) -> tuple[float, ...]:
    return tuple((series - series[0]).tolist())


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[OperationCall] = []
        self.modules: list[str] = []
        """Names of the modules that are running, the innermost last."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        if not is_view and func.overloadpacket.__name__ not in _WITHOUT_WORK:
            leaves, tree = pytree.tree_flatten((args, kwargs))
            kept = tuple(TensorTemplate.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
            self.calls.append(OperationCall(func, self.modules[-1] if self.modules else "", kept, tree))
        return func(*args, **kwargs)


@contextmanager
def _naming(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep the names of the running modules in the recorder within the context."""
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: recorder.modules.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: recorder.modules.pop() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
