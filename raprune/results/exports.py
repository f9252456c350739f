"""An exported network and the proof that it computes what PyTorch computes: the content of `export.json`.

No torch, no ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from raprune.store.folder import Store
from raprune.store.record import ACCURACY

EXPORT_FILE = "export.json"
EXPORTS = "report/exports"
"""Folder of a run with the proof of the latest export of each network, as `<network>.json`."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BatchTimes:
    """Median times of the dense network and of the exported one for a batch, taken in turns in the same runtime."""

    batch_size: int
    dense_ms: float
    network_ms: float

    @property
    def speedup(self) -> float:
        """The dense network's time over the exported one's."""
        return self.dense_ms / self.network_ms


@dataclass(frozen=True, kw_only=True)
class ProvedFile:
    """One exported file, compared with the PyTorch network on validation images of the run."""

    file: str
    format: str
    """`torch` or `onnx`."""
    precision: str
    """`float32` or `int8`."""
    runtime: str
    """Library that ran the file, with its version."""
    opset: int | None
    """Version of the ONNX operator set; None for other formats."""
    size_bytes: int
    dense_bytes: int
    """Size of the dense network's file in the same format, in float32."""
    max_difference: float
    """Largest absolute difference of an output from the PyTorch network's."""
    relative_difference: float
    """Largest difference of an output tensor over its largest absolute value in PyTorch."""
    equal_top1: int | None
    """Number of images for which both networks predict the same class; None for other tasks than classification."""
    accuracy: float
    """Value of the task's metric for the file on these images, at most 1."""
    times: Sequence[BatchTimes]
    """By ascending batch size; the dense network is in float32."""


@dataclass(frozen=True, kw_only=True)
class ExportProof:
    """The proof of all files of one export."""

    network: str
    images: int
    """Number of validation images that all files were compared on."""
    accuracy: float
    """Value of the task's metric for the PyTorch network on these images, at most 1."""
    device: str
    """Product name of the CPU that ran the files."""
    threads: int
    files: Sequence[ProvedFile]
    metric: str = ACCURACY
    """Name of the task's metric."""

    # A JSON edge.
    def to_json(self) -> dict[str, Any]:
        """Content of `export.json`."""
        return asdict(self)


def keep_proof(store: Store, proof: ExportProof) -> None:
    """Write the proof into the run, for its report; it replaces that of an earlier export of the same network.

    Raises:
        StoreError: if the run cannot be written.
    """
    store.write_json(f"{EXPORTS}/{proof.network}.json", proof.to_json())


def read_proofs(store: Store) -> dict[str, ExportProof]:
    """Return the proof of the latest export of each network (`Trial.network`) that was exported as a program."""
    found = (_proof(store.read_json(f"{EXPORTS}/{name}")) for name in store.names(EXPORTS) if name.endswith(".json"))
    return {proof.network: proof for proof in found}


# A JSON edge: the content of a file of `report/exports`.
def _proof(content: dict[str, Any]) -> ExportProof:
    files = [
        _known(ProvedFile, file | {"times": [_known(BatchTimes, times) for times in file["times"]]})
        for file in content["files"]
    ]
    return _known(ExportProof, content | {"files": files})


def _known(kind: type[T], content: Mapping[str, object]) -> T:
    """The dataclass with the fields that it knows; another version may have written more."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    return kind(**{name: value for name, value in content.items() if name in names})
