"""The workload of a search: the dense network and its data, on one device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raprune.data.arrays import ImageShape
from raprune.data.batches import DeviceSplit
from raprune.data.dataset import Dataset, Split
from raprune.data.host import HostSplit, ImageSplit
from raprune.data.items import DrawnSplit
from raprune.data.residence import device_memory, fits
from raprune.data.stream import StreamReader, ThreadReader
from raprune.data.streamed import StreamedSplit
from raprune.errors import ModelError
from raprune.models import build_model, load_weights
from raprune.models.given import given_model, load_arrays
from raprune.models.memory_format import layout_for
from raprune.models.teacher import Teacher, load_teacher
from raprune.spec.job import SearchSpec
from raprune.training.cpu_memory import keep_freed_memory
from raprune.training.epoch import Epoch
from raprune.training.loop import ALONE, Checkpoints, Ranks, train
from raprune.training.tasks import task_named
from raprune.training.tasks.inputs import parting_inputs, parts_images
from raprune.training.tasks.task import Task, in_float32

WeightArrays = dict[str, npt.NDArray[Any]]
"""A state dict as arrays, which the object store holds without a copy."""


class Workload:
    """The dense network in evaluation mode, and its data, on `device`. Build it with `build_workload`.

    A split is placed when it is first asked for, so that a process that trains nothing places no training split.
    Processes that share a card leave their splits on the host, where all processes of a node share one copy. A copy on
    the card for all of them (CUDA IPC) would need a process that holds the images and outlives the others, with half a
    gigabyte for its context, and gain, by estimate, a percent of an evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        device: torch.device,
        spec: SearchSpec,
        reader: StreamReader | None = None,
        card_share: float = 1.0,
        teacher: WeightArrays | None = None,
    ) -> None:
        self._teacher_weights = teacher
        self.model = model
        self.data = data
        self.device = device
        self.spec = spec
        self._reader = reader or ThreadReader()
        self._card_share = card_share

    @property
    def task(self) -> Task:
        """The task that the network is trained for and judged by."""
        return task_named(self.spec.task)

    @cached_property
    def layout(self) -> torch.memory_format:
        """Memory layout of the batches: channels-last where the network allows it."""
        return layout_for(self.model, self.example_input())

    @cached_property
    def teacher(self) -> nn.Module:
        """The network that teaches finalists, in evaluation mode: the dense one, unless the job names another.

        Another one is built when it is first asked for, because only fine-tuning needs it.

        Raises:
            UsageError, ModelError: as `load_teacher`.
        """
        spec = self.spec.teacher
        if not spec.name:
            return self.model
        data = self.data
        teacher = load_teacher(
            spec,
            num_classes=data.num_classes,
            fits=partial(_fits, self.task, data.num_classes),
            expected=self.task.expected(data.num_classes),
            image_shape=data.image_shape,
            mean=data.mean,
            std=data.std,
            is_float=data.has_floats,
            weights=self._teacher_weights,
        )
        return teacher.to(self.device)

    def teacher_weights(self) -> WeightArrays | None:
        """A copy of the weights of a teacher other than the dense network, for `build_workload` elsewhere."""
        if not self.spec.teacher.name:
            return None
        network = cast(Teacher, self.teacher).network
        return {key: value.detach().cpu().numpy().copy() for key, value in network.state_dict().items()}

    @property
    def augment(self) -> str:
        """Training augmentation that suits the data."""
        return self.data.augment

    @cached_property
    def training(self) -> ImageSplit | StreamedSplit | DrawnSplit:
        """The whole training split, for `raprune.training.loop.train`: placed when it is first asked for.

        It is stored on the device if it fits there, else on the host, or it is streamed; all give the same batches of
        the same images. Items with random transforms are drawn anew in each epoch.
        """
        if self.data.drawn is not None:
            return DrawnSplit(self.data.drawn, self.place(_rows(self.data.train, slice(0))))
        if self.data.stream is None:
            return self.hold(self.data.train)
        return StreamedSplit(self.data.stream, self._reader, self.place(_rows(self.data.train, slice(0))))

    @cached_property
    def validation(self) -> ImageSplit:
        return self.hold(self.data.validation)

    @cached_property
    def test(self) -> ImageSplit | None:
        return None if self.data.test is None else self.hold(self.data.test)

    def sample(self, count: int, generator: torch.Generator) -> DeviceSplit:
        """Draw `count` training images without replacement onto the device; all of them if there are no more.

        Only these images are copied. Where the training split is streamed, they come from the part in memory.
        """
        return self._drawn(self.data.train, count, generator)

    def _drawn(self, split: Split, count: int, generator: torch.Generator) -> DeviceSplit:
        if count >= len(split):
            return self.place(split)
        rows = torch.randperm(len(split), generator=generator)[:count]
        return self.place(_rows(split, rows.numpy()))

    def calibration(self, count: int, generator: torch.Generator) -> DeviceSplit:
        """Draw `count` of the images that methods look at onto the device: training images, unless there are others.

        Others have no labels.
        """
        images = self.data.calibration
        return self.sample(count, generator) if images is None else self._drawn(images, count, generator)

    def example_input(self) -> Tensor:
        """The first training image, normalised: `(1, C, H, W)`."""
        first = _rows(self.data.train, slice(1))
        x, _ = next(DeviceSplit.place(first, self.data.mean, self.data.std, self.device).batches(1))
        return x

    def weights(self) -> WeightArrays:
        """A copy of the dense network's parameters and buffers, for `build_workload` elsewhere."""
        return {key: value.detach().cpu().numpy().copy() for key, value in self.model.state_dict().items()}

    @property
    def weights_hash(self) -> str:
        """Hash of the dense network's weights, as `hash_of` computes it."""
        return hash_of(self.weights())

    def place(self, split: Split) -> DeviceSplit:
        """The images of `split` on the workload's device, normalised and laid out like all others."""
        return DeviceSplit.place(split, self.data.mean, self.data.std, self.device, layout=self.layout)

    def hold(self, split: Split) -> ImageSplit:
        """`split` on the device if it fits there (`raprune.data.residence`), else on the host, with equal batches."""
        kind = DeviceSplit.place if self._has_room(split) else HostSplit.hold
        return kind(split, self.data.mean, self.data.std, self.device, layout=self.layout)

    def _has_room(self, split: Split) -> bool:
        return fits(split.images.nbytes, device_memory(self.device), share=self._card_share)


def build_workload(
    spec: SearchSpec,
    *,
    data: Dataset,
    device: str,
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    reader: StreamReader | None = None,
    card_share: float = 1.0,
    teacher: WeightArrays | None = None,
) -> Workload:
    """The network of `spec` for `data` on `device`, in evaluation mode.

    Its weights are `weights` if given, else those of the object that stands for the network or of the file
    `spec.weights`, else random under `spec.seed` (to be trained by `train_dense`). A streamed training split is read
    by `reader`, or by threads of this process. `card_share` is the fraction of a GPU's memory that belongs to this
    process, in (0, 1]. `teacher` are the weights of a teacher that the job names, if its file need not be read.

    Raises:
        UsageError: if the network's name is unknown or its weights are missing.
        ModelError: if it cannot be built or loaded, or does not run on these images.
    """
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = task_network(spec, num_classes=data.num_classes, image_shape=data.image_shape)
    given = given_model(spec.model)
    if weights is None and given is not None:
        weights = given.weights
    if weights is not None:
        load_arrays(model, weights)
    elif given is None and spec.weights is not None:
        load_weights(model, spec.weights)
    workload = Workload(model.to(device).eval(), data, torch.device(device), spec, reader, card_share, teacher)
    _check_runs(workload)
    return workload


def task_network(spec: SearchSpec, *, num_classes: int, image_shape: ImageShape) -> nn.Module:
    """The network of `spec` as `build_model` makes it, which takes the images of its task's data sets.

    Raises:
        UsageError, ModelError: as `build_model` and `task_named`.
    """
    task = task_named(spec.task)
    model = build_model(
        spec.model, num_classes=num_classes, image_shape=image_shape, takes_images=not parts_images(task)
    )
    return parting_inputs(model, task)


def hash_of(weights: Mapping[str, npt.NDArray[Any]]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def train_dense(
    workload: Workload,
    spec: SearchSpec,
    *,
    ranks: Ranks = ALONE,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train the dense network in place by `spec.dense` on the training split, and leave it in evaluation mode.

    Returns the results of each epoch.
    """
    return train(
        workload.model,
        workload.training,
        spec.dense.decided(),
        augment=workload.augment,
        seed=spec.seed,
        task=workload.task,
        ranks=ranks,
        checkpoints=checkpoints,
        on_epoch=on_epoch,
    )


def _rows(split: Split, rows: slice | npt.NDArray[np.int64]) -> Split:
    return Split(split.images[rows], split.labels[rows])


def _check_runs(workload: Workload) -> None:
    name, shape = workload.spec.model.name, "x".join(str(size) for size in workload.data.image_shape)
    try:
        with torch.inference_mode():
            output = workload.model(workload.example_input())
    except Exception as error:
        raise ModelError(
            f"model.name {name!r} does not run on images of {shape}: {type(error).__name__}: {error}",
            hint="The network may need larger images (data.image_size) or another number of channels.",
        ) from error
    if not _fits(workload.task, workload.data.num_classes, output, workload.example_input()):
        raise ModelError(
            f"model.name {name!r} gives {_shown(output)} for one image; "
            f"{workload.task.expected(workload.data.num_classes)}.",
            hint="Look at model.arguments, at the targets of the data, and at the task (--task).",
        )


def _fits(task: Task, num_outputs: int, output: object, images: Tensor) -> bool:
    """True if the task takes this output of a network."""
    try:
        return task.fits(in_float32(output), images, num_outputs)
    except (AttributeError, IndexError, KeyError, TypeError):
        # Outputs of another kind than the task looks into.
        return False


def _shown(output: object) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__
