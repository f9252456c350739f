"""Exported files are written for the dense and the condensed network, compared with PyTorch, and timed side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raprune.cost.conditions import device_name
from raprune.cost.stopwatch import Repeats, Stopwatch
from raprune.data.arrays import Split
from raprune.data.batches import DeviceSplit
from raprune.data.dataset import Dataset
from raprune.data.host import ImageSplit
from raprune.errors import ModelError
from raprune.models.programs import (
    FILES,
    ONNX,
    OPENERS,
    Description,
    Runner,
    capture,
    on_cpu,
    runtime,
    write_onnx,
    write_torch,
)
from raprune.pruning.quantising import INT8, INT8_FILE, quantise
from raprune.results.exports import BatchTimes, ExportProof, ProvedFile

IMAGES = 256
"""Maximum number of validation images on which a file is compared with PyTorch."""
JUDGED = 2000
"""This number where a file is quantised: its accuracy is then a figure of its own, with a standard error of 1 point."""
CALIBRATION = 256
"""Maximum number of the job's calibration images that a quantisation sees."""
BATCH = 32
"""Number of images in a batch of the comparison; the first image is also run alone."""
TOLERANCE = 1e-3
"""Maximum difference of an output in float32, relative to the largest output of the PyTorch network."""
TIMED = (1, 32)
"""Numbers of images in the timed batches."""
OFTEN = Repeats(most=100, least=5, limit_s=1.0)


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of a file are from those of the PyTorch network on the same images."""

    max_difference: float
    relative_difference: float
    """`max_difference` over the PyTorch network's largest absolute output."""
    equal_top1: int
    """Number of images of equal prediction."""
    accuracy: float
    """Top-1 accuracy of the file, in [0, 1]."""
    reference_accuracy: float
    """Top-1 accuracy of the PyTorch network, in [0, 1]."""


def write_programs(
    formats: Sequence[str],
    folder: Path,
    *,
    model: nn.Module,
    dense: nn.Module,
    data: Dataset,
    description: Description,
    calibration: ImageSplit | None = None,
) -> ExportProof:
    """Write `model` to `folder` in each of `formats`, and prove each file.

    The file is compared with the PyTorch network on validation images of `data`, and timed beside the `dense` network
    that is exported alike. With images for a `calibration`, the ONNX file is also written in int8 and measured in the
    same way; int8 is not exact, so its difference is told and not refused. The networks may be on any device; they are
    copied to the CPU.

    Raises:
        ModelError: if a format does not take the network, or a file in float32 computes something else.
    """
    small, whole = on_cpu(model), on_cpu(dense)
    images = _spread(data, IMAGES if calibration is None else JUDGED)
    program, dense_program = (capture(network, data.image_shape) for network in (small, whole))
    beside = folder / "dense"
    beside.mkdir()
    proving = _Proving(small, images, torch.get_num_threads())
    for kind in formats:
        path, dense_path = folder / FILES[kind], beside / FILES[kind]
        opset = None
        if kind == ONNX:
            opset = write_onnx(program, path, description)
            write_onnx(dense_program, dense_path, description)
        else:
            write_torch(program, path, description)
            write_torch(dense_program, dense_path, description)
        proving.add(kind, path, dense_path, opset)
        if kind == ONNX and calibration is not None:
            quantised = folder / INT8_FILE
            quantise(path, quantised, calibration)
            proving.add(kind, quantised, dense_path, opset, precision=INT8)
    return ExportProof(
        network=description.network,
        images=len(images),
        accuracy=proving.accuracy,
        device=device_name(torch.device("cpu")),
        threads=proving.threads,
        files=proving.files,
    )


class _Proving:
    """The files of one network that are proved so far."""

    def __init__(self, model: nn.Module, images: DeviceSplit, threads: int) -> None:
        self.threads = threads
        self.files: list[ProvedFile] = []
        self.accuracy = 0.0
        """Accuracy of the PyTorch network."""
        self._model = model
        self._images = images

    def add(self, kind: str, path: Path, dense_path: Path, opset: int | None, precision: str = "float32") -> None:
        """Compare a file with the PyTorch network, and time it beside the dense network's file.

        Raises:
            ModelError: if a file in float32 computes something else.
        """
        run, run_dense = (OPENERS[kind](file, self.threads) for file in (path, dense_path))
        found = compare(run, self._model, self._images)
        if precision == "float32":
            check_equal(found, kind)
        self.accuracy = found.reference_accuracy
        proved = ProvedFile(
            file=path.name,
            format=kind,
            precision=precision,
            runtime=runtime(kind),
            opset=opset,
            size_bytes=_size(path),
            dense_bytes=_size(dense_path),
            max_difference=found.max_difference,
            relative_difference=found.relative_difference,
            equal_top1=found.equal_top1,
            accuracy=found.accuracy,
            times=time_beside(run_dense, run, self._images),
        )
        self.files.append(proved)


def compare(run: Runner, model: nn.Module, images: DeviceSplit) -> Agreement:
    """Compare the outputs of `run` with those of `model` on all images: on the first one alone, then in batches.

    The last batch may be smaller, so that batches of up to three sizes are run.
    """
    different, largest, equal, right, reference_right = [0.0], 0.0, 0, 0, 0
    with torch.inference_mode():
        for number, (x, y) in enumerate(_batches(images)):
            wanted, came = model(x), run(x)
            if came.shape != wanted.shape:
                raise ModelError(
                    f"The exported network gives {tuple(came.shape)} for a batch of {len(x)} images; in PyTorch it "
                    f"gives {tuple(wanted.shape)}.",
                    hint="Its code may compute a shape from the size of the batch. Nothing was written.",
                )
            # NaN would be lost in a maximum of Python.
            different.append(float((came - wanted).abs().nan_to_num(nan=float("inf")).max()))
            largest = max(largest, float(wanted.abs().max()))
            if number:
                equal += int((came.argmax(1) == wanted.argmax(1)).sum())
                right += int((came.argmax(1) == y).sum())
                reference_right += int((wanted.argmax(1) == y).sum())
    most = max(different)
    return Agreement(
        max_difference=most,
        relative_difference=most / largest if largest else most,
        equal_top1=equal,
        accuracy=right / len(images),
        reference_accuracy=reference_right / len(images),
    )


def check_equal(found: Agreement, kind: str) -> None:
    """Refuse a file whose outputs are not those of PyTorch within float32's rounding.

    Predictions differ within this tolerance only where two classes are a tie.

    Raises:
        ModelError: with the difference.
    """
    if found.relative_difference > TOLERANCE:
        raise ModelError(
            f"The network exported to {kind} does not compute what PyTorch computes: outputs differ by up to "
            f"{found.max_difference:.2g}, {found.relative_difference:.1e} of the largest output (at most "
            f"{TOLERANCE:.0e} is float32's rounding).",
            hint="Nothing was written. Its code may depend on values of its input, which a program holds fixed; or it "
            "draws random numbers in evaluation mode.",
        )


def time_beside(dense: Runner, run: Runner, images: DeviceSplit) -> list[BatchTimes]:
    """Time both networks in turns, by wall time, on batches of `TIMED` sizes; few images are repeated."""
    watch = Stopwatch(torch.device("cpu"), clock=time.perf_counter)
    found = []
    for batch_size in TIMED:
        x, _ = next(images.batches(batch_size))
        x = _cycled(x, batch_size)
        dense_ms, network_ms = watch.medians([partial(dense, x), partial(run, x)], OFTEN)
        found.append(BatchTimes(batch_size=batch_size, dense_ms=float(dense_ms), network_ms=float(network_ms)))
    return found


def _batches(images: DeviceSplit) -> Iterator[tuple[Tensor, Tensor]]:
    yield next(images.batches(1))
    yield from images.batches(BATCH)


def _spread(data: Dataset, most: int) -> DeviceSplit:
    """At most `most` validation images, normalised, on the CPU: every n-th, since files may be sorted by class."""
    split = data.validation
    rows = np.unique(np.linspace(0, len(split) - 1, min(most, len(split))).round().astype(np.int64))
    return DeviceSplit.place(Split(split.images[rows], split.labels[rows]), data.mean, data.std, "cpu")


def _cycled(images: Tensor, count: int) -> Tensor:
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count].contiguous()


def _size(path: Path) -> int:
    """Bytes of a file, with the second file of an ONNX network of more than 2 GB."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
