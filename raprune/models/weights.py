"""Weights from a file: safetensors, or a state dict for `torch.load(weights_only=True)`; pickled models are refused."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import safetensors
import safetensors.torch
import torch
from pyarrow import fs
from torch import Tensor, nn

from raprune.errors import ModelError, UsageError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts put the state dict."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes of parameter names that DataParallel and `torch.compile` add."""
PICKLES = (b"PK", b"\x80")
"""First bytes of a file of `torch.save`, in the present and in the oldest format."""
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Prefixes of the heads of GoogLeNet and Inception that run only in training."""
DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])(?=\.)")
"""Parameter names in the public DenseNet checkpoints, which are older than torchvision's present names."""


def load_weights(model: nn.Module, path: str) -> None:
    """Load the weights of the file at `path` (local, or a URI of a pyarrow filesystem) into `model`, strictly.

    Raises:
        UsageError: if there is no such file.
        ModelError: if the file is no state dict, or does not fit `model`; the message names keys and shapes.
    """
    state = _plain_names(_read(path), model)
    _check_fit(state, model, path)
    model.load_state_dict(state, strict=False)


def _read(path: str) -> dict[str, Tensor]:
    content = _read_bytes(path)
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load(content)
        loaded: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not content.startswith(PICKLES):
            raise _unreadable(path, "the file was not written by torch.save") from error
        raise ModelError(
            f"model.weights {path}: refused: the file holds pickled objects, not only tensors; loading them would run "
            f"the code inside.",
            hint="Save the state dict in the code that wrote it: safetensors.torch.save_file(model.state_dict(), ...).",
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _unreadable(path, str(error).strip().splitlines()[0] if str(error) else "the file is empty") from error
    return _unwrap(loaded, path)


def _unreadable(path: str, reason: str) -> ModelError:
    return ModelError(
        f"model.weights {path}: cannot be read: {reason}",
        hint="Valid: a .safetensors file, or a state dict written by torch.save. The file may be cut short.",
    )


def _read_bytes(path: str) -> bytes:
    try:
        if "://" not in path:
            return Path(path).expanduser().read_bytes()
        filesystem, inner = fs.FileSystem.from_uri(path)
        with filesystem.open_input_file(inner) as file:
            content: bytes = file.read()
        return content
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(
            f"model.weights {path}: no such file.",
            hint="Give a .safetensors file or a state dict; without model.weights the network is trained first.",
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise ModelError(
            f"model.weights {path}: cannot be read: {error}", hint="Check the path and its permissions."
        ) from error


def _unwrap(loaded: Any, path: str) -> dict[str, Tensor]:
    for _ in WRAPPERS:
        if not isinstance(loaded, dict):
            break
        inner = [loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), dict)]
        if not inner:
            break
        loaded = inner[0]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(
            f"model.weights {path}: no state dict: the file holds {_describe(loaded)}.",
            hint=f"A dictionary of tensors is needed, plain or under one of: {', '.join(WRAPPERS)}.",
        )
    return loaded


def _describe(loaded: Any) -> str:
    if not isinstance(loaded, dict):
        return f"a {type(loaded).__name__}"
    return f"the keys {', '.join(str(key) for key in list(loaded)[:5])}" if loaded else "nothing"


def _plain_names(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    expected = model.state_dict().keys()
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if key in expected or not key.startswith(AUXILIARY)}
    return {key if key in expected else DENSENET.sub(r"\1\2", key): value for key, value in state.items()}


def _check_fit(state: dict[str, Tensor], model: nn.Module, path: str) -> None:
    expected = model.state_dict()
    for key, value in state.items():
        if key in expected and value.shape != expected[key].shape:
            raise ModelError(
                f"model.weights {path}: {key} has shape {_shape(value)}, the network needs {_shape(expected[key])}.",
                hint="The file was trained for another number of classes, image shape or architecture: "
                "check model.name, model.arguments and the labels of the data.",
            )
    # Old files lack the counters of batch norm, which evaluation never reads.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        parts = [
            f"{len(keys)} {word} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for keys, word in ((missing, "missing"), (unexpected, "unknown"))
            if keys
        ]
        raise ModelError(
            f"model.weights {path}: keys do not fit the network: {'; '.join(parts)}.",
            hint="The file belongs to another architecture; `raprune models` lists the names of networks.",
        )
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ModelError(
            f"model.weights {path}: {broken[0]} holds values that are not finite.",
            hint="The training that wrote the file diverged; use an earlier checkpoint.",
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"
