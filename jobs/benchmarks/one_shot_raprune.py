"""raprune's one-shot methods in the benchmark of one-shot pruning."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from one_shot_terms import PRUNED, SEED, WHOLE, Attempt, Ground

from raprune.channels.cut import cut
from raprune.methods import METHODS, Method
from raprune.pruning.prune import Pruner
from raprune.records import Proposal
from raprune.spec.budget import Budget

MATCHED = "reconstruction, blocks matched"
"""`reconstruction` whose blocks learn the dense blocks' outputs after the refit, without labels."""
UNREPAIRED = "reconstruction, without repair"
"""The channels of `reconstruction`, and the weights of the dense network."""


class Raprune:
    """Every method that trains nothing, by every allocation that needs no search, with its own repair."""

    def __init__(self, ground: Ground) -> None:
        self.names = [*one_shot_methods(), MATCHED, *([UNREPAIRED] if ground.contest.ahead else [])]
        self.settings: Sequence[tuple[str, ...]] = [
            (name, stream) for name in ground.contest.allocations for stream in (WHOLE, PRUNED)
        ]
        self._match_steps = ground.contest.match_steps
        self._dense = ground.workload.model
        spec = ground.prepared.spec
        self._pruners = {stream: Pruner(ground.workload, graph, spec) for stream, graph in ground.graphs.items()}

    def attempt(self, name: str, budget: float, *setting: str) -> Attempt:
        allocation, stream = setting
        pruner, started = self._pruners[stream], time.process_time()
        settings = {"match_steps": self._match_steps} if name == MATCHED else {}
        unrepaired, name = name == UNREPAIRED, name.partition(",")[0]
        method = METHODS[name](**settings)
        if not method.seeded:
            # A group's scores do not depend on the other groups.
            scores = self._pruners[PRUNED].scoring.scores(method, SEED)
            pruner.statistics.put(
                pruner.scoring.key(method), {group: scores[group] for group in pruner.cost.group_names}
            )
        proposal = Proposal(number=0, method=name, allocation=allocation, target=Budget(flops=budget), seed=SEED)
        proposal = replace(proposal, settings=settings)
        pruned = pruner.cut_and_repair(proposal)
        model = pruned.model
        if unrepaired:
            model = cut(self._dense, pruner.graph, pruned.candidate)
        seconds = time.process_time() - started
        left = float(pruner.cost.flops(pruner.cost.vector(pruned.candidate.widths)))
        return Attempt(", ".join(setting), model, left / pruner.cost.dense_flops, seconds)


def one_shot_methods() -> list[str]:
    """Return the methods that train the network neither before a cut nor while they cut."""
    return [name for name, kind in METHODS.items() if not kind.has_path() and kind.regularize is Method.regularize]
