"""What a method is: some hooks, each with a default, or a path of its own.

    regularize -> score -> allocate (the searcher's widths, or by `damage`) -> cut -> repair

A method that trains while it cuts (`path`) takes the place of the last three steps.
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

from raprune.channels.graph import ChannelGraph

Scores = dict[str, npt.NDArray[np.float64]]
"""Group name -> one score a channel, shape `(num_channels,)`; higher means keep."""

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives the calibration batches afresh at each call: images `(B, C, H, W)`, normalised, and labels `(B,)`."""


Kept = Mapping[str, tuple[int, ...]]
"""Group name -> ascending channels that stay."""


@dataclass(frozen=True)
class Network:
    """A network on its way to being condensed."""

    model: nn.Module
    graph: ChannelGraph
    """Of `model` as it is now: its groups have the channels that are left, counted from 0."""
    kept: Kept
    """For every group, the channels of the dense network that `model` still has, in its order."""


@dataclass(frozen=True)
class Cut:
    """How a network was cut: out of which one, and what stays."""

    dense: nn.Module
    """The network before the cut, in evaluation mode."""
    graph: ChannelGraph
    """Of `dense`."""
    kept: Kept
    """Channels of `dense`; a group that is not named is whole."""


@dataclass(frozen=True, kw_only=True)
class Regularizer(ABC):
    """A training phase of the whole network, before anything is cut. Equal ones give the same network, trained once.

    Its fields, and nothing else, say what the phase does.
    """

    epochs: float
    lr: float
    """Peak learning rate."""

    @abstractmethod
    def __call__(self, model: nn.Module) -> None:
        """Add the penalty's gradient to the parameters' `grad`: called between the backward pass and the step."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One network of a path."""

    network: Network
    epochs: float
    """Of training since the dense network."""
    settings: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """What tells this network from others of the path that keep the same channels."""


class Bench(Protocol):
    """What a method that trains while it cuts may use."""

    @property
    def seed(self) -> int:
        """Of this run of the method."""

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The calibration batches (`Batches`)."""

    def training(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Every image of the training split once, without augmentation, in the same order each time.

        Images `(B, C, H, W)` and labels `(B,)`. A split that does not fit into memory is read from its files anew by
        each call, so iterate once.
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
        """The widths that a group of so many channels may come to in this job, ascending; all of them is the last."""

    def correct(self, model: nn.Module, images: int | None = None) -> Tensor:
        """Which images of the validation split, or of one fixed part of it, are classified rightly: bool `(N,)`."""

    def cut(self, network: Network, kept: Kept) -> Network:
        """A smaller network with only the channels `kept` of `network`, counted as `network.graph` does."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to condense a network. Its fields are its hyper-parameters.

    A field whose metadata has a `"search"` entry is searched over: `{"low": a, "high": b, "log": bool}` for numbers,
    `{"choices": (...)}` for anything else. `"repair": True` says that only `repair` reads the field, so that scores
    are shared over its values. Hooks know torch and groups, and neither Ray nor the store.
    """

    title: ClassVar[str] = ""
    """One line: what it does, and whose it is."""
    data_free: ClassVar[bool] = False
    """Whether `score` never looks at the batches."""
    seeded: ClassVar[bool] = False
    """Whether another seed gives other scores; they are then not shared between candidates."""
    comparable: ClassVar[bool] = False
    """Whether scores of different groups are ranked together as they are, not divided by their group's mean."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, names = getattr(self, entry.name), entry.metadata.get("search", {}).get("choices", ())
            # Numbers may lie outside of what is searched; a name that nobody knows cannot be meant.
            if isinstance(value, str) and names and value not in names:
                raise ValueError(f"{entry.name} {value!r}: no such choice. Valid: {', '.join(map(str, names))}.")

    def regularize(self) -> Regularizer | None:
        """How the network is trained before it is scored and cut; None: not at all."""
        return None

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        """One finite score a channel for every group of `graph`; higher means keep. `model` is left unchanged.

        A group's scores do not depend on which other groups are in `graph`: they are computed in parts.
        """
        raise TypeError(f"{type(self).__name__} has no score")

    def priced_at(self, num_channels: int) -> tuple[int, ...]:
        """For a group of so many channels, after how many removals `priced` wants to know what they cost; default none.

        What is measured: the lowest-scored channels of that group alone are cut and the network repaired.
        """
        return ()

    def priced(self, scores: npt.NDArray[np.float64], prices: Mapping[int, float]) -> npt.NDArray[np.float64]:
        """A group's scores, `(num_channels,)`, in the same order, once those costs are known: number of channels gone
        -> mean Kullback-Leibler divergence of the predictions from the dense network's, in nats."""
        return scores

    def damage(self, scores: Scores) -> Scores:
        """Group name -> predicted damage when its m lowest-scored channels go, m = 0 .. num_channels; ascending.

        Default: the sum of the scores that go, as a share of the group's.
        """
        return {name: _share_of_sum(values) for name, values in scores.items()}

    def repair(self, model: nn.Module, batches: Batches, cut: Cut) -> None:
        """Mend the weights of a network that was cut, in place. Default: batch-norm re-estimation."""
        reestimate_batch_norm(model, batches)

    def path(self, dense: Network, widths: Mapping[str, int], bench: Bench) -> Iterator[Step]:
        """The networks on the way from `dense` to one with at most `widths` channels in each group, which is the last.

        Only for methods that train while they cut. `dense` is left unchanged.
        """
        raise TypeError(f"{type(self).__name__} has no path: it is scored and cut")

    @classmethod
    def has_path(cls) -> bool:
        """Whether the method trains while it cuts."""
        return cls.path is not Method.path

    def behind_scores(self) -> dict[str, bool | int | float | str]:
        """The hyper-parameters that scores and prices depend on."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if not entry.metadata.get("repair")}


def _share_of_sum(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    ascending = np.sort(scores - min(0.0, float(scores.min())))
    return np.concatenate([[0.0], np.cumsum(ascending)]) / max(float(ascending.sum()), 1e-30)


def reestimate_batch_norm(model: nn.Module, batches: Batches) -> None:
    """Set every batch norm's running mean and variance to their average over `batches`, in place.

    Cutting channels changes the statistics of every later layer; without this step a cut network cannot be judged.
    Each batch counts by its images. A batch of one image is left out, as it may leave one value a channel, which has
    no variance.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not layers:
        return
    momenta = {layer: layer.momentum for layer in layers}
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    seen = 0
    with torch.no_grad():
        for images, _ in batches():
            if len(images) == 1:
                continue
            seen += len(images)
            for layer in layers:
                layer.momentum = len(images) / seen
            model(images)
    for layer, momentum in momenta.items():
        layer.momentum = momentum
    for module, training in was_training.items():
        module.training = training
