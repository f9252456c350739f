"""A pretend CUDA device: tensors that say they are on `cuda:0` and compute on the CPU.

Python code takes the branches that it takes on a GPU. As on a GPU, an operation on tensors of both devices raises, a
CUDA tensor does not turn into an array, and a generator of the CPU draws no numbers on the card. The card counts what
makes code slow on a GPU: launches, and the places at which the CPU waits for the card. It also counts the bytes of its
live tensors. A CUDA graph records the operations of its capture, during which the CPU must not wait, and repeats them
on the same memory when it is replayed. No kernel of CUDA runs, and the order of the work is that of the calls.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import raprune

DEVICE = torch.device("cuda:0")
PACKAGE = f"{Path(raprune.__file__).parent}/"

WITHOUT_KERNEL = {
    *("detach", "alias", "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "narrow"),
    *("unsqueeze", "squeeze", "as_strided", "split", "split_with_sizes", "chunk", "unbind", "lift_fresh", "unfold"),
    *("diagonal", "_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_"),
    *("unsafe_split", "reshape", "is_same_size", "is_pinned"),
}
"""Operations that only describe memory."""
WAITING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "unique_dim", "_unique2", "masked_select"}
"""Operations whose result the CPU needs: a value, or a size that depends on values."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass
class Counts:
    """Counts of what code does with the card."""

    launches: int = 0
    """Number of kernels."""
    waits: Counter[str] = field(default_factory=Counter)
    """Number of times that the CPU waits for the card, by kind and place in the code."""
    copies: int = 0
    """Number of copies from pinned memory, for which nobody waits."""

    @property
    def num_waits(self) -> int:
        return sum(self.waits.values())


class Card:
    """The pretend device: its counts and its memory."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        """Bytes of the card."""
        self.counts = Counts()
        self.used = 0
        """Bytes of all live tensors."""
        self.peak = 0
        """Largest value of `used` since the card exists, or since it was last set."""
        self.recording: list[Callable[[], None]] | None = None
        """Operations of the graph that is being captured."""
        self.written: dict[int, tuple[Tensor, Tensor]] | None = None
        """Tensors that the capture has changed, and their values before it, by the place of their memory."""
        self._live: dict[int, tuple[int, int]] = {}

    @contextmanager
    def counted(self) -> Iterator[Counts]:
        """Count anew within the context."""
        before, self.counts = self.counts, Counts()
        try:
            yield self.counts
        finally:
            self.counts = before

    def wait(self, kind: str) -> None:
        """Count one wait, at the line of raprune that causes it."""
        if self.recording is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({kind})")
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        place = "no line" if frame is None else f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"
        self.counts.waits[f"{kind} at {place}"] += 1

    def hold(self, tensor: Tensor, data: Tensor) -> None:
        """Count the memory of `data` for as long as `tensor` lives; several tensors may share it."""
        storage = data.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place == 0:
            return
        holders, _ = self._live.get(place, (0, size))
        if holders == 0:
            self.used += size
            self.peak = max(self.peak, self.used)
        self._live[place] = holders + 1, size
        weakref.finalize(tensor, self._release, place)

    def _release(self, place: int) -> None:
        holders, size = self._live[place]
        if holders == 1:
            del self._live[place]
            self.used -= size
        else:
            self._live[place] = holders - 1, size


_card: Card | None = None
"""The card of the present `pretend_cuda`."""


def _present() -> Card:
    assert _card is not None, "a tensor of the pretend device is used outside of `pretend_cuda`"
    return _card


class CudaTensor(Tensor):
    """A tensor on the pretend device; `data_on_cpu` holds its values."""

    data_on_cpu: Tensor

    @staticmethod
    def __new__(cls, data: Tensor, requires_grad: bool = False) -> CudaTensor:
        made: CudaTensor = Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            layout=data.layout,
            device=torch.device("cpu"),
            requires_grad=requires_grad,
        )
        made.data_on_cpu = data
        _present().hold(made, data)
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CudaTensor({tuple(self.shape)}, {self.dtype})"

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.data_on_cpu.untyped_storage()

    def data_ptr(self) -> int:
        return self.data_on_cpu.data_ptr()

    def tolist(self) -> Any:
        _present().wait("tolist")
        return self.data_on_cpu.tolist()

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        _present().wait("copy to the CPU")
        return _on_cpu(self.detach()).clone(memory_format=memory_format)

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, layout = kwargs.get("device"), kwargs.get("dtype"), kwargs.get("memory_format")
        for argument in args:
            if isinstance(argument, Tensor):
                device, dtype = argument.device, argument.dtype
            elif isinstance(argument, torch.dtype):
                dtype = argument
            elif isinstance(argument, str | torch.device):
                device = argument
        changes = {name: value for name, value in (("dtype", dtype), ("memory_format", layout)) if value is not None}
        found = Tensor.to(self, **changes) if changes else self
        on_cpu = device is not None and torch.device(device).type == "cpu"
        return found.cpu() if on_cpu else found

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            with torch.no_grad():
                copied: Tensor = CudaTensor(self.data_on_cpu.detach().clone())
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if getattr(self, "_is_param", False) else copied
        found: Tensor = memo[id(self)]
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


def _on_cpu(value: Any) -> Any:
    return value.data_on_cpu if isinstance(value, CudaTensor) else value


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation that the card takes part in."""
    card, name = _present(), func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    _count_waits(card, name, args, tensors)
    if name in WAITING - {"nonzero", "unique_dim", "_unique2", "masked_select"}:
        return func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    if name not in WITHOUT_KERNEL:
        card.counts.launches += 1
    if name == "copy_":
        _computed(card, func, tree_map(_on_cpu, args), kwargs)
        return args[0]
    to_card = _is_cuda(kwargs.get("device"))
    if name == "_to_copy":
        changes = {key: kwargs[key] for key in kwargs.keys() - {"device", "non_blocking", "pin_memory"}}
        return CudaTensor(_computed(card, func, (_on_cpu(args[0]),), changes))
    _check_devices(func, name, args, tensors, kwargs)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "cpu"}
    kwargs = {key: _on_cpu(value) for key, value in kwargs.items() if key != "pin_memory"}
    found = _computed(card, func, tree_map(_on_cpu, args), kwargs)
    known = {id(tensor.data_on_cpu): tensor for tensor in tensors if isinstance(tensor, CudaTensor)}
    if not known and not to_card:
        return found

    def on_card(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, CudaTensor):
            return value
        return known[id(value)] if id(value) in known else CudaTensor(value)

    return tree_map(on_card, found)


def _computed(card: Card, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run the operation on the tensors' values, and record it if a graph is being captured."""
    if card.written is not None:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            # The schemas of batch norms do not say that they change their running statistics.
            running = argument.name.startswith("running_")
            if running or (argument.alias_info is not None and argument.alias_info.is_write):
                for tensor in tree_leaves(value):
                    card.written.setdefault(tensor.data_ptr(), (tensor, tensor.clone()))
    found = func(*args, **kwargs)
    if card.recording is not None:
        arguments = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor) and id(leaf) not in arguments]
        is_view = func.overloadpacket.__name__ in WITHOUT_KERNEL

        def again() -> None:
            repeated = func(*args, **kwargs)
            new = [leaf for leaf in tree_leaves(repeated) if isinstance(leaf, Tensor) and id(leaf) not in arguments]
            for old, value in zip(made, new, strict=True):
                old.copy_(value)

        if not is_view:
            card.recording.append(again)
    return found


def _count_waits(card: Card, name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    if name in WAITING:
        card.wait(name)
    elif name in ("copy_", "_to_copy"):
        target, source = (args[0], args[1]) if name == "copy_" else (None, args[0])
        if target is not None and not isinstance(target, CudaTensor):
            card.wait("copy to the CPU")
        elif not isinstance(source, CudaTensor) and source.dim() > 0:
            # Nobody waits for a copy from pinned memory; `pretend_cuda` marks tensors in it.
            if getattr(source, "is_in_pinned_memory", False):
                card.counts.copies += 1
            else:
                card.wait("copy from pageable memory")
    elif name in INDEXING and isinstance(args[0], CudaTensor):
        indices = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)]
        if any(index.dtype == torch.bool for index in indices):
            card.wait("index by a mask")
        if not all(isinstance(index, CudaTensor) for index in indices):
            card.wait("index from the CPU")


def _check_devices(func: Any, name: str, args: tuple[Any, ...], tensors: list[Tensor], kwargs: dict[str, Any]) -> None:
    """Raise as CUDA does if the operation mixes devices; a single number may be on the CPU."""
    others = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor) and tensor.dim() > 0]
    if len(others) == len(tensors):
        others = []
    elif name in INDEXING:
        others = [] if isinstance(args[0], CudaTensor) else [args[0]]
    if others:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device, cuda:0 and cpu: {func} {shapes}")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")


class _Graph:
    """`torch.cuda.CUDAGraph` of the card."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.operations: list[Callable[[], None]] = []

    def replay(self) -> None:
        """Repeat the operations on the memory that they used when they were captured; one launch."""
        _present().counts.launches += 1
        with torch.no_grad():
            for operation in self.operations:
                operation()

    def reset(self) -> None:
        self.operations.clear()


@contextmanager
def _captured(graph: _Graph, **kwargs: Any) -> Iterator[None]:
    """`torch.cuda.graph`. A capture changes no tensor from before it; here it computes, and takes the changes back."""
    card, written = _present(), dict[int, tuple[Tensor, Tensor]]()
    state = torch.get_rng_state()
    card.recording, card.written = graph.operations, written
    try:
        yield
    finally:
        card.recording = card.written = None
        torch.set_rng_state(state)
        for tensor, before in written.values():
            tensor.copy_(before)


class _Stream:
    """`torch.cuda.Stream`: there is only one order of the work."""

    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: _Stream) -> None:
        pass

    def is_capturing(self) -> bool:
        return _present().recording is not None

    def synchronize(self) -> None:
        _present().wait("synchronize")


class _Event:
    """`torch.cuda.Event` with the clock of the CPU."""

    def __init__(self, enable_timing: bool = False, **kwargs: Any) -> None:
        self._seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        _present().wait("synchronize")

    def elapsed_time(self, end: _Event) -> float:
        return 1e3 * (end._seconds - self._seconds)


class _Card(TorchDispatchMode):
    """Sends operations that make tensors on the card, or move them there, to `_run`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        used = any(isinstance(leaf, CudaTensor) for leaf in tree_leaves((args, kwargs)))
        if used or _is_cuda(kwargs.get("device")):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


class _Autocast(torch.amp.autocast_mode.autocast):
    """Autocast of the CPU in place of the card's, because the tensors' values are on the CPU."""

    def __init__(self, device_type: str, **kwargs: Any) -> None:
        super().__init__("cpu", **kwargs)


def _pinned(self: Tensor, device: Any = None) -> Tensor:
    found = self.clone()
    found.is_in_pinned_memory = True  # type: ignore[attr-defined]
    return found


def _placed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let `torch.tensor` and `torch.as_tensor` make tensors on the card."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, CudaTensor):
            return data
        found = function(data, *args, **kwargs)
        return found.to(device) if _is_cuda(device) else found

    return made


def _grouped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let PyTorch's optimisers and its clipping of gradients see the card, where C++ sees the CPU."""

    def grouped(tensors: Any, with_indices: bool = False) -> dict[Any, Any]:
        found = function(tensors, with_indices)
        on_card = any(isinstance(leaf, CudaTensor) for leaf in tree_leaves(tensors))
        return {(DEVICE if on_card else device, dtype): lists for (device, dtype), lists in found.items()}

    return grouped


@contextmanager
def pretend_cuda(
    memory: int = 80 * 2**30, *, bfloat16: bool = True, capability: tuple[int, int] = (9, 0)
) -> Iterator[Card]:
    """Give the process a card of `memory` bytes within the context; its tensors are not used after it.

    `bfloat16` is what `torch.cuda.is_bf16_supported` says, `capability` the card's compute capability.
    """
    global _card
    card = Card(memory)
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    replaced: dict[str, Any] = {
        # Tensors of inference mode have no version, which tensor subclasses need.
        "torch.inference_mode": torch.no_grad,
        "torch.autocast": _Autocast,
        "torch.tensor": _placed(torch.tensor),
        "torch.as_tensor": _placed(torch.as_tensor),
        "torch.Tensor.pin_memory": _pinned,
        "torch._C._group_tensors_by_device_and_dtype": _grouped(torch._C._group_tensors_by_device_and_dtype),
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_name": lambda device=None: "pretend",
        "torch.cuda.get_device_capability": lambda device=None: capability,
        "torch.cuda.get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "torch.cuda.set_rng_state": lambda state, device="cuda": None,
        "torch.cuda.manual_seed": lambda seed: None,
        "torch.cuda.manual_seed_all": lambda seed: None,
        "torch.cuda.is_bf16_supported": lambda including_emulation=True: bfloat16,
        "torch.cuda.mem_get_info": lambda device=None: (memory - card.used, memory),
        "torch.cuda.memory_reserved": lambda device=None: card.used,
        "torch.cuda.memory_allocated": lambda device=None: card.used,
        "torch.cuda.synchronize": lambda device=None: card.wait("synchronize"),
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.CUDAGraph": _Graph,
        "torch.cuda.graph": _captured,
        "torch.cuda.graph_pool_handle": lambda: (0, 0),
        "torch.cuda.Stream": _Stream,
        "torch.cuda.stream": lambda stream: nullcontext(),
        "torch.cuda.set_stream": lambda stream: None,
        "torch.cuda.current_stream": lambda device=None: _Stream(),
        "torch.accelerator.current_stream": lambda device=None: _Stream(),
        "torch.cuda.Event": _Event,
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch(name, value))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(partial(torch.__future__.set_overwrite_module_params_on_conversion, overwrite))
        stack.enter_context(_Card())
        before, _card = _card, card
        try:
            yield card
        finally:
            _card = before
