"""Compilers of networks: `torch.compile` (Inductor), and TensorRT through Torch-TensorRT.

A compilation takes seconds to minutes. Inductor keeps what it compiled in a folder of its own
(`TORCHINDUCTOR_CACHE_DIR`), so that the same network is compiled once on a machine.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import shutil
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raprune.errors import ModelError, UsageError
from raprune.models.programs import quiet

COMPILE, TENSORRT = "compile", "tensorrt"
"""Values of `latency.runtime`."""
INSTEAD = 'Or set latency.runtime = "eager".'

_MOST_CHARACTERS = 300
"""Maximum length of the quoted beginning of a compiler's message."""
_NUMBERS = itertools.count()


def check_compiler() -> None:
    """Refuse a job whose runtime is `compile` on a machine without a C++ compiler.

    Raises:
        UsageError: with the ways to get one.
    """
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise UsageError(
            f'latency.runtime = "compile" needs a C++ compiler, and {name} is not installed.',
            hint="Install one on every node (Debian and Ubuntu: apt-get install g++), or give the path of yours in the "
            f"environment variable CXX. {INSTEAD}",
        )


def check_triton(device: torch.device) -> None:
    """Refuse the runtime `compile` on a GPU without Triton, which compiles its kernels.

    Raises:
        UsageError: with the command that installs it.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UsageError(
            'latency.runtime = "compile" needs triton on a GPU, which is not installed.',
            hint=f"Install it on every node with a GPU: pip install triton. {INSTEAD}",
        )


def check_tensorrt() -> None:
    """Refuse a job whose runtime is `tensorrt` where Torch-TensorRT is not installed.

    Raises:
        UsageError: with the command that installs it.
    """
    if importlib.util.find_spec("torch_tensorrt") is None:
        raise UsageError(
            'latency.runtime = "tensorrt" needs torch_tensorrt, which is not installed.',
            hint="Install on every node the version that is made for your PyTorch "
            f"({torch.__version__.partition('+')[0]}): pip install torch-tensorrt. {INSTEAD}",
        )


def check_nvidia(device: torch.device) -> None:
    """Refuse the runtime `tensorrt` on a device other than a GPU.

    Raises:
        UsageError: with the ways out.
    """
    if device.type != "cuda":
        raise UsageError(
            f'latency.runtime = "tensorrt" runs on NVIDIA GPUs, and latency is measured on the {device.type.upper()}.',
            hint=f"Give trials a GPU (resources.gpus_per_trial). {INSTEAD}",
        )


def compiled(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Compile the network by `torch.compile` for batches like `x`; return a function that runs `x` through it.

    Raises:
        ModelError: if the network cannot be compiled as a whole.
    """
    # Without new code all networks of a class would share one list of compiled versions, through which every call
    # would search, and which ends after eight of them.
    run = torch.compile(_new(_run), fullgraph=True, dynamic=False)
    with compiling(COMPILE), quiet():
        run(model, x)
    return lambda: run(model, x)


def compiled_operation(operation: Callable[..., object]) -> Callable[..., object]:
    """Return an operation under `torch.compile`, which compiles it once for all sizes of its arguments."""
    function: Callable[..., object] = torch.compile(_new(_operate), fullgraph=True, dynamic=True)
    return lambda *arguments, **keywords: function(operation, arguments, keywords)


def engine_of(model: nn.Module, x: Tensor) -> Callable[[Tensor], object]:
    """Return the network as engines of TensorRT for batches like `x`, in the precision of its weights.

    Parts that TensorRT does not know run in PyTorch.

    Raises:
        ModelError: if the network cannot be exported, or an engine cannot be built.
    """
    with compiling(TENSORRT), quiet():
        torch_tensorrt: Any = importlib.import_module("torch_tensorrt")
        program = torch.export.export(model, (x,))
        engine: Callable[[Tensor], object] = torch_tensorrt.dynamo.compile(
            program, inputs=[x], use_explicit_typing=True, min_block_size=1
        )
        return engine


@contextmanager
def compiling(runtime: str) -> Iterator[None]:
    """Turn an error of a compiler, which may be pages long, into one that fits on a screen.

    Raises:
        ModelError: in place of any other error but that of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = " ".join(lines[:3])
        if len(message) > _MOST_CHARACTERS:
            message = f"{message[:_MOST_CHARACTERS]}…"
        raise ModelError(
            f'latency.runtime = "{runtime}": the network cannot be compiled. {type(error).__name__}: {message}',
            hint="The compiler takes the network as a whole, and needs the headers of Python and of C++. " + INSTEAD
            if runtime == COMPILE
            else INSTEAD.removeprefix("Or ").capitalize(),
        ) from error


def _run(model: nn.Module, x: Tensor) -> object:
    return model(x)


def _operate(operation: Callable[..., object], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> object:
    return operation(*arguments, **keywords)


def _new(function: Callable[..., object]) -> Callable[..., object]:
    """Return a copy of the function with code of its own, which `torch.compile` keeps its versions with."""
    assert isinstance(function, types.FunctionType)
    name = f"{function.__name__}_{next(_NUMBERS)}"
    return types.FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)
