"""Networks that a Python session gives as objects, and how they travel to the workers.

A network travels in two parts: its structure as bytes of cloudpickle, in which every parameter and buffer of the state
dict is an empty place, and its weights as arrays. cloudpickle takes a class of `__main__` or of a notebook's cell by
value, with its code, and a class of an importable module by reference, so that each node needs that module. Instead of
a network, a function that builds it can be given: then the function travels, and each worker calls it.

The bytes go from the driver to its workers, in memory. No file of a run holds them, and none is ever unpickled.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raprune.errors import ModelError, UsageError
from raprune.plugins import GIVEN
from raprune.spec.job import ModelSpec

NOT_TRAVELLING = (
    "Give a function without arguments that builds the network, and the trained weights as weights=network.state_dict()"
)
"""Remedy for a network that cannot be pickled."""


@dataclass(frozen=True, eq=False)
class GivenModel:
    """A network as its driver hands it to the workers; `build` makes a new one of it in any process."""

    name: str
    """`object:` and the name of the class or of the function."""
    content: bytes
    """Pickled structure or function."""
    travels: str
    """One sentence that says how structure and weights travel."""
    is_function: bool
    reference: str | None = None
    """`module:name` of the class or function that each node has to import; None if its code travels."""
    is_trained: bool = True
    """False if the network is to be trained first."""
    weights: Mapping[str, npt.NDArray[Any]] | None = None
    """Weights, on the driver alone: None on every worker, and for a function whose network is to be trained first."""

    def __getstate__(self) -> dict[str, object]:
        # The weights travel apart, in the object store, once for each node and not with each task.
        return vars(replace(self, weights=None))

    def build(self) -> nn.Module:
        """A new network; what the state dict holds is zero if the structure travelled.

        Raises:
            ModelError: if the class or function cannot be imported or fails here.
        """
        try:
            loaded = _Unpickler(io.BytesIO(self.content)).load()
            built = loaded() if self.is_function else loaded
        except Exception as error:
            raise ModelError(
                f"{self.name}: making the network in another process raised {type(error).__name__}: {error}",
                hint=f"Its code needs {self.reference or 'everything that it imports'} on every node.",
            ) from error
        if not isinstance(built, nn.Module):
            raise ModelError(
                f"{self.name} returned {type(built).__name__}, not a torch.nn.Module.",
                hint="The function must build and return the network.",
            )
        return built


def give_model(
    model: nn.Module | Callable[[], nn.Module],
    *,
    weights: Mapping[str, Tensor] | None = None,
    is_trained: bool = True,
) -> GivenModel:
    """The network, or the function that builds it, ready to travel. `model` is not changed.

    `weights` is a state dict that replaces the network's own weights. `is_trained` is False for a network that is to
    be trained first.

    Raises:
        UsageError: if `model` is neither a network nor a function.
        ModelError: if it cannot travel, or `weights` do not fit.
    """
    network: nn.Module | None = None
    named: object = model
    if isinstance(model, nn.Module):
        network, named = _plain(model), type(_plain(model))
    elif not (issubclass(model, nn.Module) if isinstance(model, type) else callable(model)):
        raise UsageError(
            f"model: a {type(model).__name__} is no network.",
            hint="Give a torch.nn.Module, a function that builds one, or a name of `raprune models`.",
        )
    name = GIVEN + getattr(named, "__qualname__", type(named).__name__).rpartition(".")[2]
    content = _pickled(model if network is None else network, name, network)
    reference = _reference(named)
    code = "by value, with its code," if reference is None else f"by reference, as {reference},"
    what = "the function that builds it" if network is None else "its structure"
    given = GivenModel(
        name=name,
        content=content,
        travels=f"{name.removeprefix(GIVEN)}: {what} travels to the workers by cloudpickle, {code} "
        f"{len(content) / 1024:,.0f} KiB; its weights travel as arrays.",
        is_function=network is None,
        reference=reference,
    )
    if not is_trained and weights is not None:
        raise UsageError("weights: given, but the network is to be trained first.", hint="Leave one of them out.")
    if network is None and weights is None and is_trained:
        network = given.build()
    if weights is not None:
        _check_fit(given, weights)
    state = network.state_dict() if weights is None and network is not None else weights
    arrays = None if state is None else {key: _array(key, value) for key, value in state.items()}
    return replace(given, is_trained=is_trained, weights=arrays)


def given_model(spec: ModelSpec) -> GivenModel | None:
    """The object behind a job's network; None if the job names its network.

    Raises:
        UsageError: if the job's network was an object of a Python session that is not there now.
    """
    if isinstance(spec.given, GivenModel):
        return spec.given
    if spec.name.startswith(GIVEN):
        raise UsageError(
            f"model.name {spec.name!r}: the network is an object of a Python session, and no file holds its code.",
            hint="Give it again in Python: raprune.search(model, train, test, resume=RUN), or "
            "raprune.Run(RUN, model=model).",
        )
    return None


def _plain(model: nn.Module) -> nn.Module:
    """The network inside of what `torch.compile` and data parallelism wrap around it."""
    inner = getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return _plain(inner)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _plain(model.module)
    return model


def _array(name: str, tensor: Tensor) -> npt.NDArray[Any]:
    try:
        return tensor.detach().cpu().numpy().copy()
    except TypeError:
        raise ModelError(
            f"model: {name} is {tensor.dtype}, which NumPy has no type for.",
            hint="Give the network in float32: model.float().",
        ) from None


def _reference(named: object) -> str | None:
    """`module:name` of a class or function that travels by reference."""
    module, name = getattr(named, "__module__", None), getattr(named, "__qualname__", "")
    found: object = sys.modules.get(module or "")
    if module in (None, "__main__") or not name or "<" in name:
        return None
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is named else None


def _check_fit(given: GivenModel, weights: Mapping[str, Tensor]) -> None:
    try:
        given.build().load_state_dict(dict(weights))
    except (RuntimeError, TypeError) as error:
        lines = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise ModelError(
            f"weights: they do not fit {given.name}: {lines}",
            hint="Give the state dict of this network: weights=network.state_dict().",
        ) from None


def _pickled(value: object, name: str, network: nn.Module | None) -> bytes:
    buffer = io.BytesIO()
    try:
        state = {} if network is None else network.state_dict(keep_vars=True)
        _Pickler(buffer, state).dump(value)
    except ModelError:
        raise
    except Exception as error:
        # Whatever the user's objects raise when they are pickled.
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"model: {name.removeprefix(GIVEN)} cannot travel to the workers: {type(error).__name__}: {first}",
            hint=f"{NOT_TRAVELLING}, or name a function of an installed module: package.module:function.",
        ) from error
    return buffer.getvalue()


class _Pickler(cloudpickle.Pickler):
    """Pickles a network with an empty place instead of each tensor of its state dict."""

    def __init__(self, file: io.BytesIO, state: Mapping[str, Tensor]) -> None:
        super().__init__(file)
        self._names: dict[int, str] = {}
        for key, tensor in state.items():
            if nn.parameter.is_lazy(tensor):
                raise ModelError(
                    f"model: {key} has no shape yet: its layer is lazy.",
                    hint="Run the network once on a batch before you give it.",
                )
            self._names.setdefault(id(tensor), key)

    def persistent_id(self, value: object) -> tuple[object, ...] | None:
        if not isinstance(value, Tensor) or id(value) not in self._names:
            return None
        is_parameter = isinstance(value, nn.Parameter)
        return self._names[id(value)], is_parameter, tuple(value.shape), value.dtype, value.requires_grad


class _Unpickler(pickle.Unpickler):
    """Reads what `_Pickler` wrote in this session; every empty place becomes a tensor of zeros."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._made: dict[str, Tensor] = {}

    def persistent_load(self, place: Any) -> Tensor:
        name, is_parameter, shape, dtype, requires_grad = place
        if name not in self._made:
            # Zeros, because latency is measured on networks without weights, and denormal numbers are slow.
            zeros = torch.zeros(shape, dtype=dtype)
            self._made[name] = nn.Parameter(zeros, requires_grad=requires_grad) if is_parameter else zeros
        return self._made[name]


def load_arrays(model: nn.Module, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Load a state dict of arrays into `model`, strictly. The arrays are copied: Ray may have mapped them read-only."""
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in weights.items()})
