"""raprune's one-shot methods in the benchmark of one-shot pruning."""

from __future__ import annotations

import time
from dataclasses import replace

from one_shot_terms import PRUNED, SEED, WHOLE, Attempt, Ground

from raprune.methods import METHODS, Method
from raprune.pruning.prune import Pruner
from raprune.records import Proposal
from raprune.spec.budget import Budget

MATCHED = "reconstruction, blocks matched"
"""`reconstruction` whose blocks learn the dense blocks' outputs after the refit, without labels."""
MATCH_STEPS = 200


class Raprune:
    """Every method that trains nothing, by every allocation that needs no search, with its own repair."""

    def __init__(self, ground: Ground) -> None:
        self.names = [*one_shot_methods(), MATCHED]
        self.settings = [(name, stream) for name in ground.contest.allocations for stream in (WHOLE, PRUNED)]
        spec = ground.prepared.spec
        self._pruners = {stream: Pruner(ground.workload, graph, spec) for stream, graph in ground.graphs.items()}

    def attempt(self, name: str, budget: float, *setting: str) -> Attempt:
        allocation, stream = setting
        pruner, started = self._pruners[stream], time.process_time()
        settings = {"match_steps": MATCH_STEPS} if name == MATCHED else {}
        name = name.partition(",")[0]
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
        seconds = time.process_time() - started
        left = float(pruner.cost.flops(pruner.cost.vector(pruned.candidate.widths)))
        return Attempt(", ".join(setting), pruned.model, left / pruner.cost.dense_flops, seconds)


def one_shot_methods() -> list[str]:
    """Return the methods that train the network neither before a cut nor while they cut."""
    return [name for name, kind in METHODS.items() if not kind.has_path() and kind.regularize is Method.regularize]
