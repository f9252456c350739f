"""ResNet-56 without its weights: the search space, and what becomes of a proposal."""

from __future__ import annotations

import numpy as np
import torch

from raprune.channels.cache import cached_trace
from raprune.cost.flops import CostModel
from raprune.methods import method_named, searched_settings
from raprune.models import build_model
from raprune.pruning.allocate import by_default
from raprune.records import Candidate, Metrics, Proposal, Trial, TrialState
from raprune.sampling.space import SearchSpace, search_space
from raprune.spec.job import ModelSpec, SearchSpec


class Resnet:
    """ResNet-56 for images of 32 x 32: its search space, and what becomes of a proposal."""

    def __init__(self) -> None:
        model = build_model(ModelSpec(name="cifar-resnet56"), num_classes=10, image_shape=(3, 32, 32)).eval()
        self._cost = CostModel(cached_trace(model, torch.zeros(1, 3, 32, 32)))
        self._noise = np.random.default_rng(0)

    def space(self, spec: SearchSpec) -> SearchSpace:
        settings = {name: searched_settings(method_named(name)) for name in spec.methods}
        return search_space(spec, self._cost, allocations=by_default(), settings=settings)

    def trial(self, proposal: Proposal, *, seconds: float) -> Trial:
        """The record of a proposal: what stays is the first channels, and wider networks are more accurate."""
        names, channels = self._cost.group_names, self._cost.num_channels
        fraction = proposal.target.flops or 1.0
        ratios = np.array([proposal.keep_ratios.get(name, fraction**0.5) for name in names])
        widths = np.clip((ratios * channels).round().astype(np.int64), 1, channels)
        flops, params = int(self._cost.flops(widths)), int(self._cost.params(widths))
        flops_fraction = flops / self._cost.dense_flops
        accuracy = 0.93 - 0.05 / flops_fraction**0.5 * float(np.exp(self._noise.normal(0.0, 0.15)))
        metrics = Metrics(
            accuracy=min(max(accuracy, 0.1), 0.93),
            loss=1.0 - accuracy,
            flops=flops,
            params=params,
            flops_fraction=flops_fraction,
            params_fraction=params / self._cost.dense_params,
        )
        kept = {name: tuple(range(width)) for name, width in zip(names, widths.tolist(), strict=True)}
        return Trial(
            trial_id=proposal.trial_id,
            proposal=proposal,
            state=TrialState.COMPLETE,
            candidate=Candidate(proposal.method, kept, proposal.settings),
            metrics=metrics,
            accuracy_after_cut=0.1,
            accuracy_after_repair=metrics.accuracy,
            seconds=seconds,
            worker="host:1",
        )
