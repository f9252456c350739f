"""The training phases that methods ask for before they score: each is trained once, and shared by its key."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from raprune.channels.cut import rebuild
from raprune.channels.graph import ChannelGraph
from raprune.methods import Method, Regularizer
from raprune.pruning.keys import base_key, network_content, phase_spec
from raprune.pruning.workload import Workload
from raprune.results.stages import OnWork, Work
from raprune.spec.job import SearchSpec
from raprune.store.scores import Arrays, Statistics
from raprune.training.epoch import Epoch
from raprune.training.loop import ALONE, Checkpoints, Ranks, train


@dataclass(frozen=True)
class DenseInputs:
    """The dense network with all that is computed of it before a candidate is cut: training phases and scores."""

    workload: Workload
    graph: ChannelGraph
    spec: SearchSpec
    statistics: Statistics
    on_work: OnWork | None = None
    """Hears how far the training of a method and the scores of groups are; None if nobody listens."""


class Phases:
    """The dense networks of one workload as each method scores and cuts them."""

    def __init__(self, inputs: DenseInputs) -> None:
        self._inputs = inputs
        self._bases: dict[Regularizer, nn.Module] = {}

    def key(self, method: Method) -> str:
        """Key of the weights that the method's training phase gives."""
        return base_key(method, self.network, self._inputs.spec, augment=self._inputs.workload.augment)

    @cached_property
    def network(self) -> dict[str, Any]:
        """The dense network and its data, as the part of a key."""
        return network_content(self._inputs.workload, self._inputs.graph)

    def base(self, method: Method) -> tuple[nn.Module, float]:
        """Return the network that the method scores and cuts, after the method's training phase; and its epochs."""
        regularizer = method.regularize()
        if regularizer is None:
            return self._inputs.workload.model, 0.0
        if regularizer not in self._bases:
            weights = self._inputs.statistics.once(self.key(method), lambda: self.train(method))
            model = rebuild(self._inputs.workload.model, lambda name, tensor: tensor.clone())
            model.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
            self._bases[regularizer] = model.eval()
        return self._bases[regularizer], regularizer.epochs

    def train(
        self,
        method: Method,
        *,
        ranks: Ranks = ALONE,
        checkpoints: Checkpoints | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> Arrays:
        """Return the dense network's weights after the method's training phase. With several `ranks`, each calls this.

        Raises:
            ModelError: if the training diverges.
        """
        regularizer = method.regularize()
        assert regularizer is not None, "the method asks for no training"
        model = rebuild(self._inputs.workload.model, lambda name, tensor: tensor.clone())
        train(
            model,
            self._inputs.workload.training,
            phase_spec(self._inputs.spec, regularizer),
            augment=self._inputs.workload.augment,
            seed=self._inputs.spec.seed,
            task=self._inputs.workload.task,
            regularize=regularizer,
            ranks=ranks,
            checkpoints=checkpoints,
            on_epoch=on_epoch or telling(self._inputs.on_work, type(method).__name__.lower()),
        )
        return {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}


def telling(on_work: OnWork | None, what: str) -> Callable[[Epoch], None] | None:
    """Callback that tells `on_work` of the epochs of the training `what`; None if nobody listens."""
    if on_work is None:
        return None
    return lambda epoch: on_work(Work(what=what, done=epoch.reached, total=math.ceil(epoch.epochs), unit="epochs"))
