"""The scores of a method for all groups: computed once for each setting, and shared by their key."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from raprune.channels.graph import ChannelGraph
from raprune.methods import Method, Scores
from raprune.pruning.depth import (
    BlockDamage,
    block_damage,
    key_of_blocks,
    key_of_references,
    read_blocks,
    references,
)
from raprune.pruning.keys import score_key
from raprune.pruning.phases import DenseInputs, Phases
from raprune.results.stages import Work
from raprune.spec.job import SearchSpec
from raprune.store.scores import Arrays
from raprune.training.tasks.task import Calibration, Task


def scoring_batch(spec: SearchSpec, task: Task) -> int:
    """Number of calibration images in each batch that methods look at."""
    # Two at least: batch statistics of one image are none (methods/method.py).
    return max(2, min(spec.search.batch_size, task.most_images or 256, 256))


class Scoring:
    """Scores of one workload's groups, and the calibration images that they are computed on."""

    def __init__(self, inputs: DenseInputs, phases: Phases) -> None:
        self._inputs = inputs
        self._phases = phases
        generator = torch.Generator().manual_seed(inputs.spec.seed)
        self._calibration = inputs.workload.calibration(inputs.spec.search.calibration, generator)

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
        batches = Calibration(self._inputs.workload.task, self.batches)
        scores = method.score(self._phases.base(method)[0], graph, batches, seed=seed)
        if self._inputs.on_work is not None:
            count = len(graph.groups)
            self._inputs.on_work(Work(what=type(method).__name__.lower(), done=count, total=count, unit="groups"))
        return scores

    def blocks_key(self, method: Method) -> str:
        """Key of the damage of blocks, for a method with its default settings and those that the job fixes."""
        base = None if method.regularize() is None else self._phases.key(method)
        return key_of_blocks(method, self._phases.network, base=base, images=len(self._calibration))

    def blocks(self, method: Method) -> BlockDamage:
        """The damage of leaving out blocks, beside the damage of widths that the method predicts."""
        return read_blocks(self._inputs.graph, self.block_damage(method), self.references(method))

    def block_damage(self, method: Method) -> Arrays:
        """The damage of leaving out blocks; computed once for all methods with the same repair."""
        model, graph = self._phases.base(method)[0], self._inputs.graph
        return self._inputs.statistics.once(
            self.blocks_key(method), lambda: block_damage(model, graph, method, self.batches)
        )

    def references_key(self, method: Method) -> str:
        """Key of the references of a method."""
        return key_of_references(method, self.key(method), limits=self._limits)

    def references(self, method: Method) -> Arrays:
        """The predicted and the measured damage of some widths; computed once for each method."""
        model, graph, seed = self._phases.base(method)[0], self._inputs.graph, self._inputs.spec.seed
        return self._inputs.statistics.once(
            self.references_key(method),
            lambda: references(model, graph, method, self.scores(method, seed), self.batches, limits=self._limits),
        )

    @property
    def _limits(self) -> dict[str, int]:
        search = self._inputs.spec.search
        return {"min_channels": search.min_channels, "multiple_of": search.step}

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The calibration images."""
        return self._calibration.batches(scoring_batch(self._inputs.spec, self._inputs.workload.task))
