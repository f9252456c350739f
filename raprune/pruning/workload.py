"""The workload of a search: the dense network and its data, on one device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raprune.data.batches import DeviceSplit
from raprune.data.dataset import Dataset, Split
from raprune.data.stream import StreamReader, ThreadReader
from raprune.data.streamed import StreamedSplit
from raprune.errors import ModelError
from raprune.models import build_model, load_weights
from raprune.models.memory_format import layout_for
from raprune.spec.job import SearchSpec
from raprune.training.cpu_memory import keep_freed_memory
from raprune.training.loop import ALONE, Checkpoints, Epoch, Ranks, train

WeightArrays = dict[str, npt.NDArray[Any]]
"""A state dict as arrays, which the object store holds without a copy."""


class Workload:
    """The dense network in evaluation mode, and its data, on `device`. Build it with `build_workload`."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        device: torch.device,
        spec: SearchSpec,
        reader: StreamReader | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.device = device
        self.spec = spec
        self._reader = reader or ThreadReader()

    @cached_property
    def layout(self) -> torch.memory_format:
        """Memory layout of the batches: channels-last where the network allows it."""
        return layout_for(self.model, self.example_input())

    @property
    def augment(self) -> str:
        """Training augmentation that suits the data."""
        return self.data.augment

    @cached_property
    def train(self) -> DeviceSplit:
        """Training images on the device: all of them, or a sample where the split is streamed."""
        return self.place(self.data.train)

    @property
    def training(self) -> DeviceSplit | StreamedSplit:
        """The training split, for `raprune.training.loop.train`."""
        if self.data.stream is None:
            return self.train
        return StreamedSplit(self.data.stream, self._reader, self.train)

    @cached_property
    def validation(self) -> DeviceSplit:
        return self.place(self.data.validation)

    @cached_property
    def test(self) -> DeviceSplit | None:
        return None if self.data.test is None else self.place(self.data.test)

    def example_input(self) -> Tensor:
        """The first training image, normalised: `(1, C, H, W)`."""
        first = Split(self.data.train.images[:1], self.data.train.labels[:1])
        x, _ = next(DeviceSplit.place(first, self.data.mean, self.data.std, self.device).batches(1))
        return x

    def weights(self) -> WeightArrays:
        """A copy of the dense network's parameters and buffers, for `build_workload` elsewhere."""
        return {key: value.detach().cpu().numpy().copy() for key, value in self.model.state_dict().items()}

    @property
    def weights_hash(self) -> str:
        """As `hash_of`."""
        return hash_of(self.weights())

    def place(self, split: Split) -> DeviceSplit:
        """The images of `split` on the workload's device, normalised and laid out like all others."""
        return DeviceSplit.place(split, self.data.mean, self.data.std, self.device, layout=self.layout)


def build_workload(
    spec: SearchSpec,
    *,
    data: Dataset,
    device: str,
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    reader: StreamReader | None = None,
) -> Workload:
    """The network of `spec` for `data` on `device`, in evaluation mode.

    Its weights are `weights` if given, else those of the file `spec.weights`, else random under `spec.seed`
    (to be trained by `train_dense`). A streamed training split is read by `reader`, or by threads of this process.

    Raises:
        UsageError: if the network's name is unknown or its weights are missing.
        ModelError: if it cannot be built or loaded, or does not run on these images.
    """
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = build_model(spec.model, num_classes=data.num_classes, image_shape=data.image_shape)
    if weights is not None:
        model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in weights.items()})
    elif spec.weights is not None:
        load_weights(model, spec.weights)
    workload = Workload(model.to(device).eval(), data, torch.device(device), spec, reader)
    _check_runs(workload)
    return workload


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

    What each epoch came to.
    """
    return train(
        workload.model,
        workload.training,
        spec.dense,
        augment=workload.augment,
        seed=spec.seed,
        ranks=ranks,
        checkpoints=checkpoints,
        on_epoch=on_epoch,
    )


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
    expected = (1, workload.data.num_classes)
    if not isinstance(output, Tensor) or tuple(output.shape) != expected:
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"model.name {name!r} gives {came} for one image; the data's {workload.data.num_classes} classes need "
            f"logits of shape {expected}.",
            hint="The network must return one logit for each class; look at model.arguments and the labels.",
        )
