"""The scores of a method for all groups: computed once for each setting, and shared by their key."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph, Group
from raprune.methods import Cut, Method, Scores
from raprune.pruning.keys import score_key
from raprune.pruning.phases import DenseInputs, Phases
from raprune.pruning.room import repair_room
from raprune.records import Candidate
from raprune.results.stages import Work
from raprune.spec.job import SearchSpec
from raprune.training.evaluate import divergence

MEASURED_IMAGES = 256
"""Images, of those for calibration, on which it is measured what cutting one group alone costs.

With 64 the refit of layers of 576 weights a filter fits noise, and widths come out the wrong way round (ResNet-20)."""


def scoring_batch(spec: SearchSpec) -> int:
    """Number of calibration images in each batch that methods look at."""
    # Two at least: batch statistics of one image are none (methods/method.py).
    return max(2, min(spec.search.batch_size, 256))


class Scoring:
    """Scores of one workload's groups, and the calibration images that they are computed on."""

    def __init__(self, inputs: DenseInputs, phases: Phases) -> None:
        self._inputs = inputs
        self._phases = phases
        self._room = repair_room(inputs.workload.device)
        generator = torch.Generator().manual_seed(inputs.spec.seed)
        self._calibration = inputs.workload.sample(inputs.spec.search.calibration, generator)

    def key(self, method: Method) -> str:
        """Key of the method's scores in the statistics."""
        base = None if method.regularize() is None else self._phases.key(method)
        images = len(self._calibration)
        return score_key(method, self._phases.network, self._inputs.graph, self._inputs.spec, base=base, images=images)

    def scores(self, method: Method, seed: int) -> Scores:
        """Scores of all groups, computed once for each method and setting; for a seeded method once for each seed."""
        if method.seeded:
            return self.part(method, self._inputs.graph, seed)
        return self._inputs.statistics.once(self.key(method), lambda: self.part(method, self._inputs.graph, seed))

    def part(self, method: Method, graph: ChannelGraph, seed: int) -> Scores:
        """Scores of the groups of `graph`: all, or some (`ChannelGraph.only`)."""
        scores = method.score(self._phases.base(method)[0], graph, self.batches, seed=seed)
        rescaled: Scores = {}
        for group in graph.groups:
            of_group = scores[group.name]
            rescaled[group.name] = method.rescaled(of_group, self._sensitivity(method, graph, group, of_group))
            if self._inputs.on_work is not None:
                self._inputs.on_work(
                    Work(what=type(method).__name__.lower(), done=len(rescaled), total=len(graph.groups), unit="groups")
                )
        return rescaled

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The calibration images."""
        return self._calibration.batches(scoring_batch(self._inputs.spec))

    def _sensitivity(
        self, method: Method, graph: ChannelGraph, group: Group, scores: npt.NDArray[np.float64]
    ) -> dict[int, float]:
        """Measure how the predictions diverge where `group` alone is cut, at the widths of `Method.measured_at`."""
        dense = self._phases.base(method)[0]
        # With the defaults of what only its repair reads: scores are shared over those.
        repairing = type(method)(**method.behind_scores())
        divergences = {}
        for gone in method.measured_at(group.num_channels):
            best = np.argsort(-scores, kind="stable")[: group.num_channels - gone]
            kept = {group.name: tuple(sorted(best.tolist()))}
            model = cut(dense, graph, Candidate("measured", kept))
            repairing.repair(model, partial(self._first, MEASURED_IMAGES), Cut(dense, graph, kept, self._room))
            divergences[gone] = divergence(dense, model, self._first(MEASURED_IMAGES))
        return divergences

    def _first(self, count: int) -> Iterable[tuple[Tensor, Tensor]]:
        """The first of the calibration images, `count` of them, as one batch."""
        return islice(self._calibration.batches(count), 1)
