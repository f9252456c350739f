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
from raprune.pruning.phases import Phases
from raprune.pruning.room import repair_room
from raprune.pruning.workload import Workload
from raprune.records import Candidate
from raprune.results.stages import OnWork, Work
from raprune.spec.job import SearchSpec
from raprune.store.scores import Statistics
from raprune.training.evaluate import divergence

PRICED = 256
"""Images, of those for calibration, on which it is measured what cutting one group alone costs.

With 64 the refit of layers of 576 weights a filter fits noise, and widths come out the wrong way round (ResNet-20)."""


def scoring_batch(spec: SearchSpec) -> int:
    """Number of calibration images in each batch that methods look at."""
    # Two at least: batch statistics of one image are none (methods/method.py).
    return max(2, min(spec.search.batch_size, 256))


class Scoring:
    """Scores of one workload's groups, and the calibration images that they are computed on."""

    def __init__(
        self,
        workload: Workload,
        graph: ChannelGraph,
        spec: SearchSpec,
        statistics: Statistics,
        phases: Phases,
        *,
        on_work: OnWork | None = None,
    ) -> None:
        self._graph = graph
        self._spec = spec
        self._statistics = statistics
        self._phases = phases
        self._on_work = on_work
        self._room = repair_room(workload.device)
        generator = torch.Generator().manual_seed(spec.seed)
        self._calibration = workload.sample(spec.search.calibration, generator)

    def key(self, method: Method) -> str:
        """Key of the method's scores in the statistics."""
        base = None if method.regularize() is None else self._phases.key(method)
        images = len(self._calibration)
        return score_key(method, self._phases.network, self._graph, self._spec, base=base, images=images)

    def scores(self, method: Method, seed: int) -> Scores:
        """Scores of all groups, computed once for each method and setting; of a seeded method anew for each seed."""
        if method.seeded:
            return self.part(method, self._graph, seed)
        return self._statistics.once(self.key(method), lambda: self.part(method, self._graph, seed))

    def part(self, method: Method, graph: ChannelGraph, seed: int) -> Scores:
        """Scores of the groups of `graph`: all, or some (`ChannelGraph.only`)."""
        scores = method.score(self._phases.base(method)[0], graph, self.batches, seed=seed)
        priced: Scores = {}
        for group in graph.groups:
            of_group = scores[group.name]
            priced[group.name] = method.priced(of_group, self._prices(method, graph, group, of_group))
            if self._on_work is not None:
                self._on_work(
                    Work(what=type(method).__name__.lower(), done=len(priced), total=len(graph.groups), unit="groups")
                )
        return priced

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The calibration images."""
        return self._calibration.batches(scoring_batch(self._spec))

    def _prices(
        self, method: Method, graph: ChannelGraph, group: Group, scores: npt.NDArray[np.float64]
    ) -> dict[int, float]:
        """Measure the sensitivity to cutting `group` alone, at the method's widths (`Method.priced_at`)."""
        dense = self._phases.base(method)[0]
        # With the defaults of what only its repair reads: scores are shared over those.
        repairing = type(method)(**method.behind_scores())
        prices = {}
        for gone in method.priced_at(group.num_channels):
            best = np.argsort(-scores, kind="stable")[: group.num_channels - gone]
            kept = {group.name: tuple(sorted(best.tolist()))}
            model = cut(dense, graph, Candidate("priced", kept))
            repairing.repair(model, partial(self._first, PRICED), Cut(dense, graph, kept, self._room))
            prices[gone] = divergence(dense, model, self._first(PRICED))
        return prices

    def _first(self, count: int) -> Iterable[tuple[Tensor, Tensor]]:
        """The first of the calibration images, `count` of them, as one batch."""
        return islice(self._calibration.batches(count), 1)
