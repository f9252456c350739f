"""The cut of a candidate out of a network: parameters are sliced, and size attributes are set to match."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import CellType, FunctionType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from raprune.channels.code import edit_code
from raprune.channels.graph import ChannelGraph, KeptPositions
from raprune.channels.members import CodeEdit
from raprune.channels.multihead import make_cut
from raprune.channels.positions import IndexArray
from raprune.channels.transfer import arrays_on
from raprune.errors import RecipeError
from raprune.records import Candidate

Positions = Mapping[str, Mapping[int, IndexArray]]
"""Positions that stay, in order, by parameter or buffer name and axis."""

NumberOnModule = tuple[str, str, int | None, int]
"""Module, attribute, place in the attribute if it is a tuple or a list, and value."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def cut(model: ModuleT, graph: ChannelGraph, candidate: Candidate) -> ModuleT:
    """Return a new network that has only the candidate's channels; `model` is unchanged and shares no tensor with it.

    `nn.Identity` takes the place of the blocks in `candidate.identity`.

    Raises:
        RecipeError: if the candidate names a group, a channel or a block that the graph does not have, or empties a
            group.
    """
    graph = without_blocks(graph, candidate.identity)
    positions, numbers = kept_positions(graph, candidate.kept), sizes_of(graph, candidate.kept)
    smaller = slice_parameters(model, positions, numbers, candidate.identity, graph.edits if positions else ())
    if graph.scales:
        _rescale(smaller, graph, candidate.kept)
    return smaller


def without_blocks(graph: ChannelGraph, identity: Sequence[str]) -> ChannelGraph:
    """Return the graph of the network without the blocks `identity`, which are all gates of `graph`.

    Raises:
        RecipeError: if one is no gate of the graph.
    """
    for name in identity:
        if name not in graph.gates:
            raise RecipeError(
                f"The candidate leaves out the block {name!r}, which this network cannot do without.",
                hint=f"Its {len(graph.gates)} blocks that can go are listed by `raprune inspect`; "
                "`raprune.channels.gates.with_gates` finds them for a graph of `raprune.trace`.",
            )
    return graph.closed(identity)


def sizes_of(graph: ChannelGraph, kept: Mapping[str, tuple[int, ...]]) -> list[NumberOnModule]:
    """Return the numbers on modules that a cut to `kept` sets anew."""
    widths = graph.widths
    new = {**widths, **{name: len(channels) for name, channels in kept.items()}}
    return [
        (a.module, a.name, a.place, size) for a in graph.attributes if (size := a.size.size(new)) != a.size.size(widths)
    ]


def _rescale(smaller: nn.Module, graph: ChannelGraph, kept: Mapping[str, tuple[int, ...]]) -> None:
    """Multiply the weights of queries, so that fused attention has the scale of the dense network."""
    positions = KeptPositions(graph, kept)
    parameters = dict(smaller.named_parameters())
    for name in dict.fromkeys(scale.parameter for scale in graph.scales):
        gain = positions.gain(name)
        if gain is not None:
            parameter = parameters[name]
            factor = torch.from_numpy(gain).to(parameter.device, parameter.dtype)
            with torch.no_grad():
                parameter.mul_(factor.view(-1, *[1] * (parameter.dim() - 1)))


def kept_positions(graph: ChannelGraph, kept: Mapping[str, tuple[int, ...]]) -> dict[str, dict[int, IndexArray]]:
    """Return the positions that stay, ascending, for every parameter and axis that loses a position.

    Raises:
        RecipeError: if `kept` names a group or a channel that the graph does not have, or empties a group.
    """
    for name, channels in kept.items():
        group = graph.by_name.get(name)
        if group is None:
            raise RecipeError(
                f"The candidate names the group {name!r}, which this network does not have.",
                hint=f"Its {len(graph.groups)} groups are listed by `raprune inspect`.",
            )
        if not channels or min(channels) < 0 or max(channels) >= group.num_channels:
            raise RecipeError(
                f"Group {name!r} has channels 0 to {group.num_channels - 1}; the candidate keeps {list(channels)[:8]}.",
                hint="Keep at least one channel of each group, by numbers in this range.",
            )
    stay = KeptPositions(graph, kept)
    positions: dict[str, dict[int, IndexArray]] = {}
    for parameter, axis in stay.sliced:
        positions.setdefault(parameter, {})[axis] = stay.of(parameter, axis)
    return positions


def slice_parameters(
    model: ModuleT,
    kept: Positions,
    numbers: Sequence[NumberOnModule] = (),
    identity: Sequence[str] = (),
    edits: Sequence[CodeEdit] = (),
) -> ModuleT:
    """Return a new network whose parameters and buffers keep only the positions of `kept`; size attributes match.

    `numbers` are further attributes to set: module, name, place in a tuple or list or None, and value. `nn.Identity`
    takes the place of the modules `identity`. `edits` are changes of the modules' code.

    Raises:
        RecipeError: if `kept` names a parameter that the network does not have, or positions outside its shape, or if
            the code has no such call.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, axes in kept.items():
        if name not in tensors:
            raise RecipeError(
                f"The recipe slices {name!r}, which this network does not have.",
                hint="Pass the dense network that the recipe was made from.",
            )
        for axis, positions in axes.items():
            shape = tuple(tensors[name].shape)
            if axis >= len(shape) or (len(positions) and int(positions.max()) >= shape[axis]):
                raise RecipeError(
                    f"The recipe keeps position {int(positions.max())} of axis {axis} of {name!r}, of shape {shape}.",
                    hint="Pass the dense network that the recipe was made from.",
                )
    distinct = {id(positions): positions for axes in kept.values() for positions in axes.values()}
    device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
    indices = dict(zip(distinct, arrays_on(device, list(distinct.values())), strict=True))

    def sliced(name: str, tensor: Tensor) -> Tensor:
        smaller = tensor
        for axis, positions in kept.get(name, {}).items():
            smaller = smaller.index_select(axis, indices[id(positions)])
        return smaller if smaller is not tensor else tensor.clone()

    smaller = rebuild(model, sliced)
    put_identity(smaller, identity)
    rows = {name.rpartition(".")[0].partition(PARAMETRIZED)[0]: None for name in kept} | {
        name.removesuffix(".weight").partition(PARAMETRIZED)[0]: axes[0]
        for name, axes in kept.items()
        if 0 in axes and (name.endswith(".weight") or f"{PARAMETRIZED}.original" in name)
    }
    for name, module in smaller.named_modules():
        if name in rows:
            _fix_sizes(module, rows[name])
            if isinstance(module, nn.MultiheadAttention):
                make_cut(module)
    for owner, attribute, place, value in numbers:
        _set_number(smaller.get_submodule(owner), attribute, place, value)
    edit_code(smaller, edits)
    return smaller


def put_identity(model: nn.Module, names: Sequence[str]) -> None:
    """Put `nn.Identity` in the place of the modules `names` of `model`, in its mode."""
    for name in names:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, nn.Identity().train(getattr(owner, child).training))


def _set_number(module: nn.Module, name: str, place: int | None, value: int) -> None:
    """Set an attribute, or one entry of a tuple or list."""
    if place is None:
        setattr(module, name, value)
        return
    old = getattr(module, name)
    new = [*old[:place], value, *old[place + 1 :]]
    setattr(module, name, new if isinstance(old, list) else type(old)(new))


def rebuild(model: ModuleT, tensor_for: Callable[[str, Tensor], Tensor]) -> ModuleT:
    """Copy the network with new tensors: `tensor_for(name, tensor)` for each parameter and buffer.

    Parameters stay parameters, and shared parameters stay shared. The old network is neither changed nor referred to.
    """
    memo = _Memo()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            memo[id(parameter)] = nn.Parameter(tensor_for(name, parameter.detach()), parameter.requires_grad)
        for name, buffer in model.named_buffers():
            memo[id(buffer)] = tensor_for(name, buffer)
    new = _clone(model, memo)
    while memo.closures:
        _fill(*memo.closures.pop(), memo)
    return cast(ModuleT, new)


class _Memo(dict[int, Any]):
    """New objects by the ids of the old ones, and the closures of new functions that are still empty."""

    def __init__(self) -> None:
        super().__init__()
        self.closures: list[tuple[CellType, CellType]] = []


def _clone(module: Any, memo: _Memo) -> Any:
    """Copy a module tree with the tensors of `memo`, as `copy.deepcopy` does, but in a tenth of the time."""
    known = memo.get(id(module))
    if known is not None:
        return known
    if isinstance(module, torch.jit.ScriptModule):
        memo[id(module)] = new = copy.deepcopy(module)
        pairs = zip([*new.parameters(), *new.buffers()], [*module.parameters(), *module.buffers()], strict=True)
        for mine, old in pairs:
            mine.data = memo[id(old)].data
        return new
    # Not its own __new__: that of a torch.fx.GraphModule makes another class, without the generated forward().
    new = object.__new__(module.__class__)
    memo[id(module)] = new
    state = new.__dict__
    for key, value in module.__dict__.items():
        if key == "_modules":
            state[key] = {k: None if child is None else _clone(child, memo) for k, child in value.items()}
        elif key in ("_parameters", "_buffers"):
            state[key] = {k: None if t is None else memo[id(t)] for k, t in value.items()}
        elif value is None or type(value) in _SHARED:
            state[key] = value
        elif type(value) is OrderedDict and not value:
            state[key] = OrderedDict()
        else:
            state[key] = _copied(value, memo)
    return new


def _copied(value: Any, memo: _Memo) -> Any:
    """Copy an attribute; functions, alone or in a dict or list, then hold the new modules and tensors."""
    known = memo.get(id(value))
    if known is not None:
        return known
    if isinstance(value, FunctionType) and value.__closure__:
        return _rebound(value, memo)
    if isinstance(value, Tensor) and value.grad_fn is not None:  # a weight that an old hook computed
        return value.detach().clone()
    if type(value) in (dict, OrderedDict) and any(isinstance(v, FunctionType) for v in value.values()):
        memo[id(value)] = new = type(value)()
        new.update((k, _copied(v, memo)) for k, v in value.items())
        return new
    if type(value) in (list, tuple) and any(isinstance(v, FunctionType) for v in value):
        return type(value)(_copied(v, memo) for v in value)
    return copy.deepcopy(value, memo)


def _rebound(function: FunctionType, memo: _Memo) -> FunctionType:
    """Copy a function whose closure may hold modules, tensors and attributes of the old network."""
    cells = tuple(CellType() for _ in function.__closure__ or ())
    new = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    new.__kwdefaults__, new.__qualname__, new.__module__ = (
        function.__kwdefaults__,
        function.__qualname__,
        function.__module__,
    )
    new.__dict__.update(function.__dict__)
    memo[id(function)] = new
    memo.closures += zip(function.__closure__ or (), cells, strict=True)
    return new


def _fill(old: CellType, new: CellType, memo: _Memo) -> None:
    """Fill the closure of a new function: modules, tensors and functions are copied with the network.

    Everything else that is no attribute of the network belongs to the code around it, such as the list of a hook.
    """
    with contextlib.suppress(ValueError):  # an empty closure: a name without a value yet
        held = old.cell_contents
        owned = isinstance(held, nn.Module | Tensor | FunctionType)
        new.cell_contents = _copied(held, memo) if owned else memo.get(id(held), held)


PARAMETRIZED = ".parametrizations.weight"
"""Part of the names of the parameters that a weight is computed from (`torch.nn.utils.parametrize`)."""

_SHARED = {bool, int, float, str, torch.dtype, torch.device}


def _fix_sizes(module: nn.Module, rows: IndexArray | None) -> None:
    """Make the size attributes of PyTorch's own layers agree with their sliced parameters.

    `rows` are the positions that stay on the first axis of the weight; None means all positions.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        weight = None
    if isinstance(module, nn.modules.conv._ConvNd) and weight is not None:
        if rows is not None:
            # A depthwise convolution loses whole blocks. A grouped convolution keeps every block and loses rows of each
            # block; with one input channel per block, only this difference tells the two kinds apart.
            size = (module.in_channels if module.transposed else module.out_channels) // module.groups
            module.groups = len(np.unique(rows // size))
        if module.transposed:
            module.in_channels, module.out_channels = (weight.shape[0], weight.shape[1] * module.groups)
        else:
            module.out_channels, module.in_channels = (weight.shape[0], weight.shape[1] * module.groups)
    elif isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        statistics = weight if weight is not None else module.running_mean
        if statistics is not None:
            module.num_features = statistics.shape[0]
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = weight.shape[0]
        module.num_groups = min(module.num_groups, module.num_channels)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
    elif isinstance(module, nn.Embedding) and weight is not None:
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.PReLU) and weight is not None:
        module.num_parameters = weight.shape[0]
