"""A network as a program that runs without its Python code: a `torch.export` program, or an ONNX file.

Both begin with one capture by `torch.export`, on the CPU in float32, with a dynamic batch. The libraries of the extra
`raprune[export]` are imported where they are needed, and nowhere else.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import re
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from raprune import __version__
from raprune.errors import ModelError, UsageError

TORCH, ONNX = "torch", "onnx"
FILES = {TORCH: "model.pt2", ONNX: "model.onnx"}
"""Format -> name of its file."""
NEEDED = {TORCH: (), ONNX: ("onnx", "onnxscript", "onnxruntime")}
"""Format -> modules that it needs besides PyTorch."""
INPUT = "images"
"""Name of the input of an ONNX file."""

LARGEST_FILE = 1_800_000_000
"""Bytes of weights above which an ONNX file has a second file for them: protobuf allows 2 GB."""
_LOGGERS = (
    *("torch.onnx", "torch._export", "torch.export", "torch._dynamo", "torch._inductor", "torch.utils.cpp_extension"),
    *("onnxscript", "onnx_ir", "onnxruntime"),
)
"""Loggers of exporters and compilers, which write pages about a network that they refuse."""

_MOST_LINES, _MOST_CHARACTERS = 3, 400
"""Maximum length of the quoted beginning of an exporter's message."""

Runner = Callable[[Tensor], list[Tensor]]
"""Runs images `(B, C, H, W)`, float32 on the CPU, and returns all output tensors in their order."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Facts about a network that its users need, written into its file."""

    network: str
    trial_id: str
    image_shape: Sequence[int]
    """`(C, H, W)`."""
    classes: Sequence[str]
    mean: Sequence[float]
    """Mean of each channel, for pixels in [0, 1]."""
    std: Sequence[float]
    """Standard deviation of each channel, for pixels in [0, 1]."""
    task: str = "classification"
    output: str = "logits"
    """Name of the output of a network that gives one tensor; others are named by their keys."""

    def properties(self) -> dict[str, str]:
        """Key -> text; `classes`, `mean`, `std` and `image_shape` are JSON."""
        return {
            "classes": json.dumps(list(self.classes)),
            "mean": json.dumps(list(self.mean)),
            "std": json.dumps(list(self.std)),
            "image_shape": json.dumps(list(self.image_shape)),
            "normalisation": "(pixel / 255 - mean) / std",
            "task": self.task,
            "network": self.network,
            "trial_id": self.trial_id,
            "raprune": __version__,
        }


def check_installed(kind: str) -> None:
    """Refuse a format whose libraries are not installed.

    Raises:
        UsageError: with the command that installs them.
    """
    missing = missing_for(kind)
    if missing:
        raise UsageError(
            f"--format {kind} needs {', '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed.",
            hint='Install the extra: pip install "raprune[export]", or in a clone of the repository: '
            "uv sync --extra export",
        )


def missing_for(kind: str) -> list[str]:
    """Return the modules that a format needs and that are not installed."""
    return [name for name in NEEDED.get(kind, ()) if importlib.util.find_spec(name) is None]


def on_cpu(model: nn.Module) -> nn.Module:
    """Return a copy of the network on the CPU, in float32 and evaluation mode."""
    return copy.deepcopy(model).to("cpu", torch.float32).eval()


def capture(model: nn.Module, image_shape: Sequence[int]) -> ExportedProgram:
    """Capture the graph of a network that is on the CPU, for batches of any size.

    Raises:
        ModelError: if PyTorch cannot capture it.
    """
    # Two images: a dimension of size 1 could be taken for one that is broadcast.
    example = torch.zeros(2, *image_shape)
    # A hook that parts the images into several inputs is not in the signature of `forward`, which the exporter reads.
    whole = _TakesImages(model) if model._forward_pre_hooks else model
    with quiet(), explained(TORCH):
        return torch.export.export(whole, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))


class _TakesImages(nn.Module):
    """A network with several inputs that a hook makes from a batch of images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)


def write_torch(program: ExportedProgram, path: Path, description: Description) -> None:
    """Write a `torch.export` program. `torch.export.load` reads it without the network's Python code.

    Raises:
        ModelError: if it cannot be written.
    """
    extra: dict[str, Any] = {f"{key}.txt": text for key, text in description.properties().items()}
    with quiet(), explained(TORCH):
        torch.export.save(program, path, extra_files=extra)


def open_torch(path: Path) -> Runner:
    """Return the program of a file, run by PyTorch."""
    with quiet():
        module = torch.export.load(path).module()

    def run(images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            return output_tensors(module(images))

    return run


def write_onnx(program: ExportedProgram, path: Path, description: Description) -> int:
    """Write an ONNX file by PyTorch's exporter; return the version of its operator set.

    Raises:
        ModelError: if an operation has no translation to ONNX.
    """
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    with quiet(), explained(ONNX):
        names = _output_names(program, description.output)
        exported = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=names)
        assert exported is not None, "no file was named, so the program is returned"
        model = exported.model
        for value in (*model.graph.inputs, *model.graph.outputs):
            _name_batch(value)
        model.metadata_props.update(description.properties())
        exported.save(path, external_data=weights > LARGEST_FILE)
    return int(model.opset_imports[""])


def open_onnx(path: Path, *, threads: int) -> Runner:
    """Return the network of a file, run by ONNX Runtime on so many CPU threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads of one network that wait in a loop would slow down the other network that is timed beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with explained(ONNX):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {INPUT: images.numpy()})]

    return run


def runtime(kind: str) -> str:
    """Return the library that runs the format here, with its version."""
    name, title = {TORCH: ("torch", "PyTorch"), ONNX: ("onnxruntime", "ONNX Runtime")}[kind]
    return f"{title} {metadata.version(name)}"


def output_tensors(outputs: Any) -> list[Tensor]:
    """Return the tensors among the outputs of a network, in their order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _output_names(program: ExportedProgram, alone: str) -> list[str]:
    """Return the names of the outputs of a program: their keys, or `alone` for the only one."""
    spec = program.call_spec.out_spec
    assert spec is not None, "a program has outputs"
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(range(spec.num_leaves), spec))
    return ["_".join(re.sub(r"\W", "", str(key)) for key in path) or alone for path, _ in paths]


# A graph of `onnx_ir`, which has no stub files.
def _name_batch(value: Any) -> None:
    """Give the first axis the name `batch`, in place of the number of a symbol."""
    if value.shape:
        value.shape = type(value.shape)(["batch", *list(value.shape)[1:]])


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters: what matters of their messages is in their errors."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # PyTorch prints the graph of a network that it refuses to the standard error.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def explained(kind: str) -> Iterator[None]:
    """Turn an error of an exporter, which may be pages long, into one that fits on a screen and names the operation.

    Raises:
        ModelError: in place of any other error.
    """
    try:
        yield
    except Exception as error:
        raise refused(kind, error) from error


def refused(kind: str, error: BaseException) -> ModelError:
    """Return the error for a network that the exporter of a format does not take."""
    chain = [error, *_causes(error)]
    operation = next(filter(None, (_operation(str(cause)) for cause in reversed(chain))), None)
    place = next(filter(None, map(_place, reversed(chain))), None)
    stop = (f" at {operation}" if operation else "") + (f" in {place}" if place else "")
    return ModelError(
        f"The network cannot be exported to {kind}"
        + (f": the exporter stops{stop}" if stop else "")
        + f". {type(error).__name__}: {_plain(str(chain[-1]))}",
        hint="Nothing was written. Write this part of the network with other operations, or export another format; "
        "recipe takes every network.",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
        yield cause


_OPERATIONS = (
    r"OpOverload\(op='([\w.:]+)'",
    r"torch\.ops\.(\w+\.\w+)",
    r"\b(aten[.:]{1,2}\w+)",
    r"\b((?!c10|std|torch)\w+::\w+)",
)
"""Patterns of the name of an operation in messages of exporters, the most certain first."""


def _operation(text: str) -> str | None:
    found = (re.search(pattern, text) for pattern in _OPERATIONS)
    return next((match[1] for match in found if match is not None), None)


def _place(error: BaseException) -> str | None:
    """Return the line of the user's code that was reached last: in the message of an error, or in its traceback."""
    told = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', str(error))
    went = [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    for frames in (told, went):
        own = [f"{Path(file).name}, line {line}, in {name}" for file, line, name in frames if _is_users(file)]
        if own:
            return own[-1]
    return None


def _is_users(file: str) -> bool:
    """True if a file belongs to neither Python, nor an installed library, nor raprune."""
    installed = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(Path(__file__).parents[1]))
    return not file.startswith((*installed, "<"))


def _plain(text: str) -> str:
    """Return the beginning of a message, on one line and without colours."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    joined = " ".join(lines[:_MOST_LINES])
    return joined if len(joined) <= _MOST_CHARACTERS else f"{joined[:_MOST_CHARACTERS]}…"


OPENERS: Mapping[str, Callable[[Path, int], Runner]] = {
    TORCH: lambda path, threads: open_torch(path),
    ONNX: lambda path, threads: open_onnx(path, threads=threads),
}
