"""Exported files are written for the dense and the condensed network, compared with PyTorch, and timed side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from raprune.cost.conditions import device_name
from raprune.cost.stopwatch import Repeats, Stopwatch
from raprune.data.arrays import Split
from raprune.data.batches import DeviceSplit
from raprune.data.dataset import Dataset
from raprune.data.host import ImageSplit
from raprune.data.targets import LABELS
from raprune.errors import ModelError
from raprune.models.programs import (
    FILES,
    ONNX,
    OPENERS,
    Description,
    Runner,
    capture,
    on_cpu,
    output_tensors,
    runtime,
    write_onnx,
    write_torch,
)
from raprune.pruning.quantising import INT8, INT8_FILE, quantise
from raprune.results.exports import BatchTimes, ExportProof, ProvedFile
from raprune.training.tasks.classification import CLASSIFICATION
from raprune.training.tasks.task import Task

IMAGES = 256
"""Maximum number of validation images on which a file is compared with PyTorch."""
JUDGED = 2000
"""This number where a file is quantised: its accuracy is then a figure of its own, with a standard error of 1 point."""
CALIBRATION = 256
"""Maximum number of the job's calibration images that a quantisation sees."""
BATCH = 32
"""Number of images in a batch of the comparison; the first image is also run alone."""
TOLERANCE = 1e-3
"""Maximum difference of an output in float32, relative to the largest value of this output in PyTorch."""
TIES = 0.02
"""Maximum difference of the metric in float32: room for some images or pixels whose classes tie."""
TIMED = (1, 32)
"""Numbers of images in the timed batches."""
OFTEN = Repeats(most=100, least=5, limit_s=1.0)


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of a file are from those of the PyTorch network on the same images."""

    max_difference: float
    relative_difference: float
    """Largest difference of an output tensor over its largest absolute value in PyTorch."""
    equal_top1: int | None
    """Number of images of equal prediction; None for other tasks than classification."""
    accuracy: float
    """Value of the task's metric for the file, at most 1."""
    reference_accuracy: float
    """Value of the task's metric for the PyTorch network, at most 1."""


def write_programs(
    formats: Sequence[str],
    folder: Path,
    *,
    model: nn.Module,
    dense: nn.Module,
    data: Dataset,
    description: Description,
    task: Task = CLASSIFICATION,
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
    proving = _Proving(small, images, task, torch.get_num_threads())
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
        metric=task.metric,
        accuracy=proving.accuracy,
        device=device_name(torch.device("cpu")),
        threads=proving.threads,
        files=proving.files,
    )


class _Proving:
    """The files of one network that are proved so far."""

    def __init__(self, model: nn.Module, images: DeviceSplit, task: Task, threads: int) -> None:
        self.threads = threads
        self.files: list[ProvedFile] = []
        self.accuracy = 0.0
        """Value of the metric for the PyTorch network."""
        self._task = task
        self._model = model
        self._images = images

    def add(self, kind: str, path: Path, dense_path: Path, opset: int | None, precision: str = "float32") -> None:
        """Compare a file with the PyTorch network, and time it beside the dense network's file.

        Raises:
            ModelError: if a file in float32 computes something else.
        """
        run, run_dense = (OPENERS[kind](file, self.threads) for file in (path, dense_path))
        found = compare(run, self._model, self._images, self._task)
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


def compare(run: Runner, model: nn.Module, images: DeviceSplit, task: Task = CLASSIFICATION) -> Agreement:
    """Compare the outputs of `run` with those of `model` on all images: on the first one alone, then in batches.

    The last batch may be smaller, so that batches of up to three sizes are run.

    Raises:
        ModelError: if outputs have other shapes.
    """
    different: dict[int, float] = {}
    largest: dict[int, float] = {}
    totals: list[Tensor | None] = [None, None]
    equal = 0
    with torch.inference_mode():
        for number, (x, y) in enumerate(_batches(images)):
            outputs, found = model(x), run(x)
            wanted = output_tensors(outputs)
            _check_shapes(found, wanted, len(x))
            for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
                # NaN would be lost in a maximum of Python.
                difference = (one.double() - other.double()).abs().nan_to_num(nan=float("inf"))
                different[place] = max(different.get(place, 0.0), float(difference.max()))
                largest[place] = max(largest.get(place, 0.0), float(other.double().abs().max()))
            if number:
                both = (_in_place(outputs, found), outputs)
                totals = [task.added(total, task.sums(one, y)) for total, one in zip(totals, both, strict=True)]
                if task.targets == LABELS:
                    equal += int((found[0].argmax(1) == wanted[0].argmax(1)).sum())
    value, reference = (task.value(total.double(), len(images)) for total in totals if total is not None)
    return Agreement(
        max_difference=max(different.values()),
        relative_difference=max(most / (largest[place] or 1.0) for place, most in different.items()),
        equal_top1=equal if task.targets == LABELS else None,
        accuracy=value,
        reference_accuracy=reference,
    )


def _check_shapes(found: Sequence[Tensor], wanted: Sequence[Tensor], images: int) -> None:
    shapes = [", ".join(str(tuple(tensor.shape)) for tensor in tensors) for tensors in (found, wanted)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"The exported network gives {shapes[0]} for a batch of {images} images; in PyTorch it gives {shapes[1]}.",
            hint="Its code may compute a shape from the size of the batch. Nothing was written.",
        )


def _in_place(outputs: Any, tensors: Sequence[Tensor]) -> Any:
    """Return the outputs of a network with `tensors` in place of its own."""
    left = iter(tensors)
    return pytree.tree_map_only(Tensor, lambda _: next(left), outputs)


def check_equal(found: Agreement, kind: str) -> None:
    """Refuse a file whose outputs, or whose metric, are not those of PyTorch within float32's rounding.

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
    if abs(found.accuracy - found.reference_accuracy) > TIES:
        raise ModelError(
            f"The network exported to {kind} reaches {found.accuracy:.2%} by the task's metric, in PyTorch "
            f"{found.reference_accuracy:.2%}.",
            hint="Nothing was written. Export another format; recipe takes every network.",
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
