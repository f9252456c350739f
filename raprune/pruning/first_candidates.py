"""The first candidates of a budget of latency, timed as whole networks, and the table that they correct.

Allocations aim at the predicted latency. Its table is fitted to networks of random widths; those that an allocation
makes are others, and the more exactly it follows the table, the more it follows the table's errors. So before a search
the widths of its first candidates are timed as whole networks. Where they are off the prediction they correct it, and
the allocations aim again, until what they give takes the time that is predicted. No channel is trained or repaired for
that: a network takes as long whatever its weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raprune.channels.cut import cut
from raprune.cost.latency import Floats, LatencyTable
from raprune.cost.measure import WholeTimer, whole_timer
from raprune.errors import BudgetError
from raprune.methods import method_named
from raprune.pruning.allocate import LEAST_DAMAGE
from raprune.pruning.prune import Pruner
from raprune.pruning.record import method_of
from raprune.pruning.workload import hash_of
from raprune.records import Candidate, Proposal
from raprune.spec.budget import Budget
from raprune.spec.job import SearchSpec
from raprune.store.scores import Arrays, key_of

TOLERATED = 0.02
"""Difference between time and prediction, relative to the prediction, above which networks correct the table."""
MOST_ROUNDS, ROUNDS_S = 8, 60.0
"""Maximum number of rounds, and the time after which no other round begins."""
MOST = 6
"""Maximum number of first candidates."""
ALLOCATIONS = (LEAST_DAMAGE, "global_rank", "uniform")
"""Allocations of first candidates, unless the job names others."""


@dataclass(frozen=True)
class Corrected:
    """A table after the first candidates."""

    table: LatencyTable
    networks: int
    """Number of networks that were timed."""
    before: float
    """Largest difference between time and prediction in the first round, relative to the prediction."""
    after: float
    """Largest difference in the last round."""

    @property
    def sentence(self) -> str:
        """Sentence that the run prints."""
        told = f"Latency of the first candidates, timed as whole networks: within {self.before:.1%} of the prediction."
        if self.table.correction is None:
            return told
        return (
            f"{told} These networks correct the prediction; the last of {self.networks} that were timed are within "
            f"{self.after:.1%}."
        )

    def to_arrays(self) -> Arrays:
        """Return arrays from which `from_arrays` makes an equal table with its figures."""
        return {**self.table.to_arrays(), "figures": np.array([self.networks, self.before, self.after])}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Corrected:
        networks, before, after = arrays["figures"].tolist()
        return cls(LatencyTable.from_arrays(arrays), int(networks), before, after)


def first_proposals(spec: SearchSpec, methods: Sequence[str]) -> list[Proposal]:
    """Return proposals for the budget of the job: by each method and allocation, of which the first `MOST` count.

    A method that trains before or while it cuts is left out.
    """
    plain = [name for name in methods if not method_named(name).has_path() and not method_named(name)().regularize()]
    allocations = spec.allocations or ALLOCATIONS
    return [
        Proposal(
            number=0,
            method=method,
            settings=spec.settings.get(method, {}),
            allocation=allocation,
            target=spec.budget,
            seed=spec.seed,
        )
        for method in plain
        for allocation in allocations
        if allocation in ALLOCATIONS
    ][:MOST]


def corrected_once(pruner: Pruner, spec: SearchSpec, proposals: Sequence[Proposal]) -> Corrected:
    """Return `corrected`; with a folder of statistics it is measured once for a table, its scores and its proposals."""
    assert pruner.cost.table is not None, "a budget of latency has a table"
    content = {
        "table": hash_of(pruner.cost.table.to_arrays()),
        "limits": [spec.search.min_channels, spec.search.step],
        "proposals": [
            [one.allocation, pruner.scoring.key(method_of(one)), _limits(one.target), one.seed, dict(one.keep_ratios)]
            for one in proposals
        ],
    }
    arrays = pruner.statistics.once(
        key_of("first-candidates", content), lambda: corrected(pruner, spec, proposals).to_arrays()
    )
    return Corrected.from_arrays(arrays)


def corrected(pruner: Pruner, spec: SearchSpec, proposals: Sequence[Proposal]) -> Corrected:
    """Time the candidates of `proposals` as whole networks, and return the table that they correct.

    Candidates whose time is within `TOLERATED` of the prediction leave the table as it is.
    """
    table = pruner.cost.table
    assert table is not None, "a budget of latency has a table"
    seen: set[str] = set()
    before = after = 0.0
    workload = pruner.workload
    timer = whole_timer(workload.model, pruner.graph, spec.latency, device=workload.device.type)
    # Scores and the damage of blocks, which the first candidates wait for, take none of the time of the rounds.
    aimed = _distinct(pruner, proposals)
    began = time.monotonic()
    for number in range(MOST_ROUNDS):
        new = {key: one for key, one in aimed.items() if key not in seen}
        if not new or (number and time.monotonic() - began > ROUNDS_S):
            break
        seen |= set(new)
        aiming = pruner.knowing(table)
        sizes = np.stack([_sizes(aiming, one) for one in new.values()])
        measured = _measured_ms(pruner, timer, list(new.values()), table.dense_ms)
        after = float(np.abs(measured / _predicted_ms(aiming, list(new.values())) - 1).max())
        before = before if number else after
        if after <= TOLERATED:
            break
        table = table.corrected(sizes, measured)
        aimed = _distinct(pruner.knowing(table), proposals)
    return Corrected(table, len(seen), before, after)


def _limits(budget: Budget) -> list[float | None]:
    # A time becomes a fraction with rounding errors.
    return [None if limit is None else round(limit, 9) for limit in budget.fractions.values()]


def _distinct(pruner: Pruner, proposals: Sequence[Proposal]) -> dict[str, Candidate]:
    """The candidates of the proposals by their widths and blocks, on which alone the latency depends."""
    found = {}
    for proposal in proposals:
        try:
            candidate = pruner.candidate(proposal)
        except BudgetError:
            # A correction may put the budget out of reach of an allocation.
            continue
        found[str((sorted(candidate.widths.items()), candidate.identity))] = candidate
    return found


def _measured_ms(pruner: Pruner, timer: WholeTimer, candidates: Sequence[Candidate], dense_ms: float) -> Floats:
    """Milliseconds of the candidates' networks, on the scale of the table, for which the dense one took `dense_ms`."""
    networks = [cut(pruner.workload.model, pruner.graph, candidate) for candidate in candidates]
    *times_ms, dense_now_ms = timer(networks)
    return np.array(times_ms) / dense_now_ms * dense_ms


def _sizes(pruner: Pruner, candidate: Candidate) -> Floats:
    left = pruner.cost.closed(candidate.identity)
    return left.sizes(left.vector(candidate.widths))


def _predicted_ms(pruner: Pruner, candidates: Sequence[Candidate]) -> Floats:
    found = []
    for candidate in candidates:
        left = pruner.cost.closed(candidate.identity)
        found.append(float(left.latency_ms(left.vector(candidate.widths))))
    return np.array(found)
