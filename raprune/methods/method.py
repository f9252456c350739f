"""The base class of methods: some hooks, each with a default, or a path of networks.

    regularize -> score -> allocate (the searcher's widths, or by `damage`) -> cut -> repair

The `path` of a method that trains while it cuts replaces the last three steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.evaluating import evaluating
from raprune.channels.graph import ChannelGraph
from raprune.channels.inputs import call

Scores = dict[str, npt.NDArray[np.float64]]
"""Scores by group name, one score per channel, shape `(num_channels,)`; higher means keep."""

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Function that gives the calibration batches at each call: normalised images `(B, C, H, W)` and the task's targets,
for classification labels `(B,)`. It may carry the task's loss: see `loss_of`."""

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Function that gives the summed loss of a network on images and their targets, one differentiable number."""


Kept = Mapping[str, tuple[int, ...]]
"""Ascending channels that stay, by group name."""


@dataclass(frozen=True)
class Network:
    """A network on the path from the dense network to a smaller one."""

    model: nn.Module
    graph: ChannelGraph
    """Graph of `model` at this point: its groups have the channels that are left, numbered from 0."""
    kept: Kept
    """Channels of the dense network that `model` still has, for every group, in the order of `model`."""


@dataclass(frozen=True)
class Cut:
    """Description of a cut: the dense network, its graph, and the channels that stay."""

    dense: nn.Module
    """The network before the cut, in evaluation mode."""
    graph: ChannelGraph
    """Graph of `dense`."""
    kept: Kept
    """Channels of `dense` that stay; a group that is not named is whole."""
    room: int | None = None
    """Bytes of the device's memory that a repair may take; None: no limit."""
    identity: tuple[str, ...] = ()
    """Names of the blocks of `dense` that are gone. `graph` is then that of the network without them, and the cut
    network has `nn.Identity` in their place."""


@dataclass(frozen=True, kw_only=True)
class Regularizer(ABC):
    """A training phase of the whole network before any cut. Equal regularizers share one trained network.

    The fields alone must determine the training.
    """

    capturable: ClassVar[bool] = False
    """True if each call does the same work on the gradients, without a wait for the device, so that a CUDA graph can
    replay it."""

    epochs: float
    lr: float
    """Peak learning rate."""

    @abstractmethod
    def __call__(self, model: nn.Module) -> None:
        """Add the penalty's gradient to the parameters' `grad`, between the backward pass and the optimiser's step."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One network of a path."""

    network: Network
    epochs: float
    """Epochs of training since the dense network."""
    settings: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Settings that distinguish this network from others of the path that keep the same channels."""


class TrainingServices(Protocol):
    """Services of the job for a method that trains while it cuts: data, training, evaluation, cutting."""

    @property
    def seed(self) -> int:
        """Seed of this run of the method."""

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the calibration batches (`Batches`)."""

    def training(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield every image of the training split once, without augmentation, in the same order each time.

        Yield images `(B, C, H, W)` and labels `(B,)`. Each call reads a split that does not fit into memory from its
        files again, so iterate once.
        """

    def train(
        self,
        model: nn.Module,
        epochs: float,
        *,
        lr: float | None = None,
        regularize: Callable[[nn.Module], None] | None = None,
        distil: bool = False,
    ) -> None:
        """Train in place with the job's fine-tuning settings; `regularize` may change the gradients before a step."""

    def allowed(self, num_channels: int) -> list[int]:
        """Return the widths, ascending, that this job allows for a group; the last is `num_channels`."""

    def metric(self, model: nn.Module, images: int | None = None) -> float:
        """Return the task's metric on the validation split, at most 1; for classification the top-1 accuracy.

        `images` limits the validation split to a fixed part of this many images.
        """

    def cut(self, network: Network, kept: Kept) -> Network:
        """Return a smaller network with only the channels `kept`, numbered as in `network.graph`."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to prune a network. The fields are the method's hyper-parameters.

    A field whose metadata has a `"search"` entry is searched over: `{"low": a, "high": b, "log": bool}` for numbers,
    `{"choices": (...)}` for other values. `"repair": True` means that only `repair` reads the field, so that scores
    are shared over its values. Hooks use torch and groups, and neither Ray nor the store.
    """

    title: ClassVar[str] = ""
    """One line with the idea and the source of the method."""
    data_free: ClassVar[bool] = False
    """True if `score` never uses the batches."""
    uses_labels: ClassVar[bool] = False
    """True if `score` or `repair` looks at the targets of the batches, or at the task's loss."""
    seeded: ClassVar[bool] = False
    """True if another seed gives other scores, which are then not shared between candidates."""
    comparable: ClassVar[bool] = False
    """True if scores of different groups are ranked together unchanged, not divided by their group's mean."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, names = getattr(self, entry.name), entry.metadata.get("search", {}).get("choices", ())
            # Numbers outside of the searched range are valid, an unknown choice is not.
            if isinstance(value, str) and names and value not in names:
                raise ValueError(f"{entry.name} {value!r}: no such choice. Valid: {', '.join(map(str, names))}.")

    def regularize(self) -> Regularizer | None:
        """Return the training phase before the network is scored and cut, or None for no such training."""
        return None

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        """Return one finite score per channel for every group of `graph`; higher means keep. `model` is not changed.

        A group's scores must not depend on the other groups in `graph`, because scores are computed in parts.
        """
        raise TypeError(f"{type(self).__name__} has no score")

    def damage(self, scores: Scores) -> Scores:
        """Return for each group the predicted damage without its m lowest-scored channels, m = 0 .. num_channels.

        The damage ascends with m. Default: the sum of the removed scores as a fraction of the group's sum.
        """
        return {name: _fraction_of_sum(values) for name, values in scores.items()}

    def repair(self, model: nn.Module, batches: Batches, cut: Cut) -> None:
        """Compensate in place, by the weights of a cut network, for the missing channels.

        Default: batch-norm re-estimation.
        """
        reestimate_batch_norm(model, batches)

    def path(self, dense: Network, widths: Mapping[str, int], services: TrainingServices) -> Iterator[Step]:
        """Yield the networks from `dense` to the last one, which has at most `widths` channels in each group.

        Only methods that train while they cut have a path. `dense` is not changed.
        """
        raise TypeError(f"{type(self).__name__} has no path: it does not train while it cuts")

    @classmethod
    def has_path(cls) -> bool:
        """True if the method trains while it cuts."""
        return cls.path is not Method.path

    @classmethod
    def needs_labels(cls) -> bool:
        """True if the method with its default settings needs targets, for its scores or because it trains."""
        return cls.uses_labels or cls.has_path() or cls().regularize() is not None

    def behind_scores(self) -> dict[str, bool | int | float | str]:
        """Return the hyper-parameters that scores depend on."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if not entry.metadata.get("repair")}


def _fraction_of_sum(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    ascending = np.sort(scores - min(0.0, float(scores.min())))
    return np.concatenate([[0.0], np.cumsum(ascending)]) / max(float(ascending.sum()), 1e-30)


def loss_of(batches: Batches) -> Loss:
    """Return the loss of the task that calibration batches belong to; cross-entropy for batches that say nothing."""
    loss: Loss = getattr(batches, "loss", _cross_entropy)
    return loss


def _cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(model(images), labels, reduction="sum")


def reestimate_batch_norm(model: nn.Module, batches: Batches) -> None:
    """Set every batch norm's running mean and variance to their average over `batches`, in place.

    Cutting channels changes the statistics of every later layer; without this step the accuracy of a cut network has
    no meaning. Batches are weighted by their numbers of images. A batch of one image is left out, because it may have
    one value per channel, and one value has no variance.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not layers:
        return
    momenta = {layer: layer.momentum for layer in layers}
    seen = 0
    with evaluating(model), torch.no_grad():
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        for images, _ in batches():
            if len(images) == 1:
                continue
            seen += len(images)
            for layer in layers:
                layer.momentum = len(images) / seen
            call(model, images)
    for layer, momentum in momenta.items():
        layer.momentum = momentum
