"""Shadow tensors: for each activation, the channel that each of its elements came from.

One forward pass under a `TorchDispatchMode` keeps two kinds of shadow:

* The shadow of an activation is an integer tensor of the same shape. An element's value is the *id* of its channel, or
  0 if the element is a position that cannot be removed. An activation without a shadow carries no channels.
* The shadow of a parameter gives, for each of its axes, the position on that axis that an element came from
  (`ParameterShadow`), so that a view, a transpose or a chunk of a weight can be traced back.

Every axis position of every parameter has its own id. The rules (`rules.py`) run data movement on the shadow as on the
data, *couple* ids that must be removed together, and *freeze* ids that must stay. Coupling only records pairs; the
classes are computed once, at the end (in `trace.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from raprune.channels.head_shadows import HeadShadows
from raprune.channels.ids import AxisUse, ParameterShadow, Shadow, compact, line, varies
from raprune.channels.parts import SizedPart, numbers_of, sized_parts
from raprune.channels.positions import IndexArray

NO_CHANNEL = 0
"""The id of a position that cannot be removed."""


@dataclass(frozen=True)
class CostRecord:
    """A cost seen in the pass: `total` is the product of a constant and of the sizes of the axes with these ids."""

    module: str
    total: int
    axes: tuple[IndexArray, ...]
    """Ids of the axes of parameters; negative ids are those of heads."""
    widths: tuple[IndexArray, ...] = ()
    """Ids of axes of activations, which stand for the width of every head."""


@dataclass(frozen=True)
class FreezeRecord:
    """Ids that must stay, and the reason."""

    ids: IndexArray
    module: str
    reason: str
    in_heads: bool = False
    """True if it was seen on a tensor whose positions are heads and widths: the ids stand for the widths only."""


class Tracer(TorchDispatchMode):
    """Observer of one forward pass; afterwards `pairs`, `freezes`, `costs` and `axis_base` hold the observations."""

    def __init__(
        self, model: nn.Module, rules: dict[Any, Callable[..., None]], head_rule: Callable[[TracedCall], None]
    ) -> None:
        super().__init__()
        self._rules = rules
        self._head_rule = head_rule
        self.heads = HeadShadows()
        self._shadows = WeakIdKeyDictionary()
        self.modules = dict(model.named_modules())
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        # The references keep the ids: a buffer that forward() replaces would leave its id to the next tensor.
        self._tensors = [*parameters.values(), *buffers.values()]
        self._names = {id(p): name for name, p in parameters.items()}
        self._names |= {id(b): name for name, b in buffers.items() if id(b) not in self._names}
        self.buffers = set(buffers)
        self._module_names = {id(module): name for name, module in self.modules.items()}
        self._numbers: dict[str, dict[int, list[str]]] = {}
        self._stack: list[str] = [""]
        self._next_id = 1
        self.shapes = {name: tuple(t.shape) for source in (parameters, buffers) for name, t in source.items()}
        self.axis_base: dict[tuple[str, int], int] = {}
        """Id of position 0 of each (parameter, axis) that a rule used; the ids of the other positions follow."""
        self.written: dict[tuple[str, int], str] = {}
        """Module of each (parameter, axis) whose positions are channels that a layer writes."""
        self.pairs: list[tuple[IndexArray, IndexArray]] = []
        self.pairs_in_heads: list[int] = []
        """Indices in `pairs` of the pairs that were seen on tensors whose positions are heads and widths."""
        self.freezes: list[FreezeRecord] = []
        self.across: list[IndexArray] = []
        """Ids across which a normalisation ran: masking such a channel is not the same as removing it."""
        self.summed: list[IndexArray] = []
        """Ids over which a statistic of activations was taken."""
        self.contracted: list[IndexArray] = []
        """Ids over which a product of two activations ran, which reads them as a layer does."""
        self.normed: list[tuple[IndexArray, IndexArray | None]] = []
        """Ids of the channels that a norm ran over, and of its weights for them, None without weights, in order."""
        self.fused = 0
        """Number of fused attentions."""
        self._places = WeakIdKeyDictionary()
        self.reduced: set[tuple[str, int]] = set()
        """Every (parameter, axis) over which a statistic was taken: it is no channel unless a layer uses it as one."""
        self.sized: dict[tuple[str, str, int | None], SizedPart] = {}
        """Numbers on modules that are the sizes of parts of an axis, by module, attribute and place."""
        self.costs: list[CostRecord] = []
        self.costs_before = 0
        """Number of costs before the operation that is running."""
        self.used: set[str] = set()

    # -- what the rules read and write -------------------------------------------------------------------------------

    def shadow(self, value: Any) -> Shadow | None:
        """Return the shadow of a parameter or an activation; None if the tensor carries no channels."""
        if not isinstance(value, Tensor):
            return None
        known = self._shadows.get(value)
        if known is not None:
            return cast(Shadow, known)
        name = self._names.get(id(value))
        if name is None:
            return None
        self.used.add(name)
        shadow = ParameterShadow(name, value.shape)
        self._shadows[value] = shadow
        return shadow

    def activation(self, value: Any) -> Tensor | None:
        """Return the shadow of a tensor that is not a parameter; None if there is none."""
        shadow = self.shadow(value)
        return shadow if isinstance(shadow, Tensor) else None

    def set_shadow(self, value: Tensor, shadow: Shadow | None) -> None:
        """Attach `shadow` to `value`; a shadow without any channel is dropped."""
        if shadow is None or (isinstance(shadow, Tensor) and not bool(compact(shadow).any())):
            self._shadows.pop(value, None)
        else:
            self._shadows[value] = shadow

    def pass_on(self, value: Tensor, shadow: Tensor) -> None:
        """Attach a shadow that is known to carry channels, without checking its ids."""
        self._shadows[value] = shadow

    def axis(self, value: Any, dim: int) -> AxisUse | None:
        """Return the parameter axis that runs along `dim` of a (viewed) parameter; None if there is no such axis."""
        shadow = self.shadow(value)
        if not isinstance(shadow, ParameterShadow):
            return None
        dim %= value.dim()
        if id(value) in self._names:
            return AxisUse(shadow.name, dim, self.axis_ids(shadow.name, dim))
        found = shadow.axis_along(dim)
        if found is None:
            return None
        axis, positions = found
        return AxisUse(shadow.name, axis, self.axis_ids(shadow.name, axis)[positions.numpy()])

    def axis_ids(self, parameter: str, axis: int) -> IndexArray:
        """Return the ids of all positions of a parameter's axis."""
        size = self.shapes[parameter][axis]
        base = self.axis_base.setdefault((parameter, axis), self._next_id)
        if base == self._next_id:
            self._next_id += size
        return np.arange(base, base + size)

    @property
    def num_ids(self) -> int:
        return self._next_id

    def couple(self, left: IndexArray | Tensor, right: IndexArray | Tensor, why: str = "meets fixed slots") -> None:
        """Couple the ids of `left` and `right`, position by position; an id that meets 0 stays."""
        a, b = _numpy(left), _numpy(right)
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        a, b = a.reshape(-1), b.reshape(-1)
        if len(a) > 4096:
            # One number per pair, because unique rows take ten times as long.
            a, b = np.divmod(np.unique(a * self._next_id + b), self._next_id)
        if not (a.all() and b.all()):
            fixed = (a == NO_CHANNEL) | (b == NO_CHANNEL)
            self.freeze(np.maximum(a, b)[fixed], why)
            a, b = a[~fixed], b[~fixed]
        if self.heads.running:
            self.pairs_in_heads.append(len(self.pairs))
        self.pairs.append((a, b))

    def freeze(self, ids: IndexArray | Tensor, reason: str) -> None:
        """Freeze the channels of `ids`, with `reason`, in the module that is running."""
        unique = np.unique(_numpy(ids))
        unique = unique[unique != NO_CHANNEL]
        if len(unique):
            self.freezes.append(FreezeRecord(unique, self._stack[-1], reason, self.heads.running))

    def freeze_if_used(self, value: Tensor, ids: IndexArray, reason: str) -> None:
        """Freeze channels as soon as an operation uses `value`, or the network returns it."""
        self._places[value] = (ids, reason)

    def freeze_used(self, value: object) -> None:
        """Freeze the channels that wait for the use of a value."""
        if isinstance(value, Tensor) and value in self._places:
            self.freeze(*self._places.pop(value))

    def freeze_named(self, parameter: str, reason: str) -> None:
        """Freeze all axes of a parameter."""
        for axis in range(len(self.shapes[parameter])):
            self.freeze(self.axis_ids(parameter, axis), reason)

    def freeze_value(self, value: Any, reason: str) -> None:
        """Freeze all channels of an activation, or all axes of a parameter."""
        shadow = self.shadow(value)
        if isinstance(shadow, ParameterShadow):
            self.freeze_named(shadow.name, reason)
        elif shadow is not None:
            self.freeze(compact(shadow), reason)

    def fix_axis(self, use: AxisUse | None, value: Any, reason: str) -> None:
        """Freeze one axis of a parameter, because the axis that it meets carries no channels."""
        if use is None:
            self.freeze_value(value, reason)
        else:
            self.freeze(use.ids, reason)

    def channels(self, value: Any, dim: int, reason: str) -> Tensor | None:
        """Return the ids along `dim` of an activation; if they also change along another axis, freeze it: None."""
        ids = self.activation(value)
        if ids is None:
            return None
        if any(varies(ids, other) for other in range(ids.dim()) if other != dim):
            self.freeze(compact(ids), reason)
            return None
        return line(ids, dim)

    def write(self, use: AxisUse, out: Tensor, dim: int, ids: IndexArray | None = None) -> None:
        """Record that `out` holds, along `dim`, the channels that a parameter's axis writes.

        `ids` are the ids along `dim`, if the channels are there several times.
        """
        self.written.setdefault((use.parameter, use.axis), self._stack[-1])
        shape = [-1 if d == dim else 1 for d in range(out.dim())]
        self.pass_on(out, torch.from_numpy(use.ids if ids is None else ids).view(shape).expand(out.shape))

    def split_heads(self, x: Tensor, out: Tensor, ids: Tensor, kept: int, others: Iterable[int]) -> None:
        """Give head ids to the axes `others` of the split `out` of `x`, whose axis `kept` has the widths.

        `ids` are the ids of the elements of `out`.
        """
        # Of a tensor that was split before, several elements have one id.
        known = self.heads.own(x)
        own = known.reshape(out.shape) if known is not None else ids
        layers, small = [], compact(own)
        for dim in others:
            heads = self.heads.new_ids(out.shape[dim])
            layer = torch.from_numpy(heads).view([-1 if d == dim else 1 for d in range(out.dim())]).expand(out.shape)
            tags = layer
            for d, size in enumerate(small.shape):
                tags = tags.narrow(d, 0, min(size, tags.shape[d]))
            self.heads.tag(small.numpy().reshape(-1), tags.numpy().reshape(-1))
            self.heads.record_split(self._stack[-1], heads, line(ids, kept).numpy())
            if known is None and self.heads.layers(x):
                self.heads.freeze(heads, self._stack[-1], "heads of a tensor whose channels met others before")
            layers.append(layer)
        self.heads.set_layers(out, layers)
        self.heads.set_own(out, own)

    def count(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any, axes: Iterable[Any]) -> None:
        """Record the FLOPs of an operation: PyTorch's own count, and the ids along the axes that determine it."""
        counter = flop_registry.get(func.overloadpacket)
        if counter is not None:
            total = _flops(counter, args, kwargs, out)
            arrays = tuple(_numpy(ids) for ids in axes if ids is not None)
            self.costs.append(CostRecord(self._stack[-1], total, arrays))

    # -- the pass ----------------------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise PyTorch would wrap the method below to disable the compiler, and import the compiler for it at the
        # first call, which takes 5 to 10 seconds. Nothing is compiled here.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        strides = args[0].stride() if args and isinstance(args[0], Tensor) else ()
        out = func(*args, **kwargs)
        tracked = [value for value in _tensors(args, kwargs) if self.shadow(value) is not None]
        self.heads.enter(_tensors(args, kwargs))
        if self._places:
            for value in _tensors(args, kwargs):
                self.freeze_used(value)
        self.costs_before = len(self.costs)
        if not tracked and not self.heads.running:
            self.count(func, args, kwargs, out, ())
            return out
        if tracked:
            self._apply_rule(func, args, kwargs, out, strides, tracked)
        else:
            self.count(func, args, kwargs, out, ())
        if self.heads.running:
            self._head_rule(TracedCall(self, func, args, kwargs, out, strides))
            self.heads.running = False
        return out

    def _apply_rule(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        strides: tuple[int, ...],
        tracked: list[Tensor],
    ) -> None:
        """Let the operation's rule move, couple or freeze the ids; without a rule they freeze."""
        rule = self._rules.get(func.overloadpacket) or self._rules.get(str(func.overloadpacket))
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = self._rules["pointwise"]
        if rule is None:
            for value in tracked:
                self.freeze_value(value, f"{func.overloadpacket} has no rule")
            for value in _tensors((out,), {}):
                self.set_shadow(value, None)
            self.count(func, args, kwargs, out, ())
        else:
            rule(TracedCall(self, func, args, kwargs, out, strides))

    @property
    def module(self) -> str:
        """Name of the module that is running."""
        return self._stack[-1]

    @property
    def running(self) -> nn.Module:
        """The module that is running."""
        return self.modules[self.module]

    @property
    def numbers(self) -> dict[int, list[str]]:
        """Names of the attributes of the running module that may be numbers of channels, by value."""
        known = self._numbers.get(self.module)
        if known is None:
            known = self._numbers[self.module] = {}
            for name, value in numbers_of(self.modules[self.module]):
                known.setdefault(value, []).append(name)
        return known

    def size_parts(self, parts: Sequence[IndexArray], heads: IndexArray | None = None) -> list[SizedPart] | None:
        """Record the numbers of the running module that are the sizes of the parts of an axis; None without any."""
        found = sized_parts(self.modules[self.module], self.module, parts, heads)
        for part in found or ():
            self.record_part(part)
        return found

    def record_part(self, part: SizedPart) -> None:
        """Record a number on a module; channels that have one number are coupled, so that they stay equally many."""
        known = self.sized.setdefault((part.module, part.name, part.place), part)
        if known is not part and len(known.ids) == len(part.ids) and not np.array_equal(known.ids, part.ids):
            self.couple(known.ids, part.ids)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep track of the running module within the context."""

        def enter(module: nn.Module, _: Any) -> None:
            self._stack.append(self._module_names.get(id(module), self._stack[-1]))

        def leave(module: nn.Module, *_: Any) -> None:
            self._stack.pop()

        handles = []
        for module in self.modules.values():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class TracedCall:
    """One call of an operation, as a rule sees it."""

    tracer: Tracer
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    strides: tuple[int, ...]
    """Strides of the first argument before the operation, which may change them in place."""

    @property
    def name(self) -> str:
        return str(self.func.overloadpacket).removeprefix("aten.")

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by position or by name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


def _flops(counter: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Evaluate PyTorch's own FLOP formula of an operation with the shapes of its arguments."""
    formula = getattr(counter, "__wrapped__", None)
    if formula is None or kwargs or not isinstance(out, Tensor):
        return int(counter(*args, **kwargs, out_val=out))
    # The wrapper turns tensors into shapes by walking all arguments as trees, which takes a tenth of a trace's time.
    return int(formula(*(a.shape if isinstance(a, Tensor) else a for a in args), out_shape=out.shape))


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))


def _numpy(ids: IndexArray | Tensor) -> IndexArray:
    return ids if isinstance(ids, np.ndarray) else cast(IndexArray, ids.numpy())
