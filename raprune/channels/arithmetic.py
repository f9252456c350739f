"""The arithmetic of a proof: float64 throughout, the same noise for every width, and norms as fixed scales.

It changes operations of PyTorch while they run, so that the network's own code stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from raprune.channels.softmax import FUSED, SOFTMAX, SoftmaxInputs
from raprune.channels.statistics import SYMMETRIC, ChannelStatistics

aten = torch.ops.aten

_LOW = (torch.float16, torch.bfloat16, torch.float32)


class NormScales:
    """The scale of every call of a layer norm or group norm, recorded in one network and used again in another.

    A norm then is `x / scale * weight + bias` in both networks. Nothing runs across the channels any more, so that a
    network whose removed channels are zeroed and the cut network must agree.
    """

    def __init__(self) -> None:
        self._scales: list[float] = []
        self._next: int | None = None
        self.statistics = ChannelStatistics()
        self.softmax = SoftmaxInputs()

    def __bool__(self) -> bool:
        """True if a norm ran, or a statistic over a smaller number of channels."""
        return bool(self._scales) or self.statistics.used

    def replay(self) -> NormScales:
        """Use the recorded scales from the first one on; return this object."""
        self._next = 0
        self.statistics.replay()
        self.softmax.replay()
        return self

    def of(self, x: Tensor) -> float:
        """Return the scale of the next call: the root mean square of `x` while recording."""
        if self._next is None:
            self._scales.append(float(x.square().mean().sqrt()) or 1.0)
            return self._scales[-1]
        self._next += 1
        # Another number of calls comes from another path through the network: its outputs differ anyway.
        return self._scales[self._next - 1] if self._next <= len(self._scales) else 1.0


class ProofArithmetic(TorchDispatchMode):
    """Run operations in float64 without chance; with `norms`, layer and group norms only scale."""

    def __init__(self, norms: NormScales | None = None) -> None:
        super().__init__()
        self._norms = norms
        self._weights = WeakIdKeyDictionary()
        """Tensors that are computed from parameters alone; filled with `norms` only."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in shadow.py: otherwise the first call imports the compiler

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        packet = func.overloadpacket
        if self._norms is not None and packet is aten.native_layer_norm:
            return _scaled(self._norms, args[0], args[2], args[3], args[0].dim() - len(args[1]))
        if self._norms is not None and packet is aten.native_group_norm:
            return _scaled(self._norms, args[0], args[1], args[2], 1)
        if self._norms is not None and self._is_weight(args, kwargs):
            if packet in _STATISTICS_OF_WEIGHTS:
                return self._weight(_fixed_statistic(packet, args, func(*args, **kwargs)))
            out = func(*args, **kwargs)
            if packet in (aten.div, aten._weight_norm_interface):  # a filter of zeros has no direction
                out = pytree.tree_map(torch.nan_to_num, out)
            return self._weight(out)
        if self._norms is not None and packet in SOFTMAX:
            self._norms.softmax.softmax(args[0], int(args[1]))
        elif self._norms is not None and packet is FUSED:
            self._norms.softmax.attention(args, kwargs)
        if packet is aten.native_dropout:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if kwargs.get("dtype") in _LOW:
            kwargs["dtype"] = torch.float64
        if func._schema.is_mutable:
            out = func(*args, **kwargs)
        else:
            out = _raised(func(*(_raised(value) for value in args), **kwargs))
            if self._norms is not None and packet in _REDUCTIONS and _is_reduction(args):
                out = self._norms.statistics.of(_REDUCTIONS[packet], args, kwargs, out)
        # One value in place of noise, because a cut network draws fewer numbers than the dense one.
        return out.fill_(_NOISE[packet]) if packet in _NOISE else out

    def _is_weight(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """True if all tensors among the arguments are parameters, or computed from parameters."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        return bool(tensors) and all(isinstance(t, nn.Parameter) or t in self._weights for t in tensors)

    def _weight(self, out: Any) -> Any:
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self._weights[value] = True
        return out


def _is_reduction(args: tuple[Any, ...]) -> bool:
    """True for a reduction of floating-point values; `max(a, b)` of two tensors is none."""
    return bool(args[0].is_floating_point()) and not (len(args) > 1 and isinstance(args[1], Tensor))


def _fixed_statistic(packet: Any, args: tuple[Any, ...], out: Any) -> Any:
    """Return a mean of zero and a deviation of one in place of the statistics of a weight.

    A cut changes the statistics over the input channels of a filter, as it changes those of a layer norm.
    """
    if packet is aten.native_batch_norm:
        shape = [-1 if dim == 1 else 1 for dim in range(args[0].dim())]
        scaled = args[0] if args[1] is None else args[0] * args[1].view(shape)
        return (scaled if args[2] is None else scaled + args[2].view(shape), *out[1:])
    if packet is aten.var_mean:
        return torch.ones_like(out[0]), torch.zeros_like(out[1])
    return torch.zeros_like(out) if packet is aten.mean else torch.ones_like(out)


def _raised(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype in _LOW else value
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        return type(value)(_raised(item) for item in value)
    return value


def _scaled(norms: NormScales, x: Tensor, weight: Any, bias: Any, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output of a norm that only scales, and two statistics that nothing reads."""
    out = x / norms.of(x)
    for vector, operation in ((weight, torch.mul), (bias, torch.add)):
        if isinstance(vector, Tensor):
            out = operation(out, vector.view(*vector.shape, *[1] * (x.dim() - first - vector.dim())))
    return out, out.new_zeros(1), out.new_ones(1)


_REDUCTIONS = {getattr(aten, name): name for name in SYMMETRIC}
_STATISTICS_OF_WEIGHTS = {aten.mean, aten.var, aten.std, aten.var_mean, aten.native_batch_norm}

_NOISE = {
    getattr(aten, name): value
    for value, names in ((1.0, "bernoulli bernoulli_"), (0.5, "rand randn rand_like randn_like normal_ uniform_"))
    for name in names.split()
}
