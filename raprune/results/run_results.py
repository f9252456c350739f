"""The results of a run from its records, for its report, figures and page. No torch, no ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from raprune.records import Trial, TrialState
from raprune.results.ablation import AblationRow, ablation
from raprune.results.cuts import best_by_cuts
from raprune.results.exports import ExportProof, read_proofs
from raprune.results.front import budget_of, floor_of, front_of, listed, starred
from raprune.results.progress import Progress, SpentRow, progress, spent
from raprune.results.rows import CandidateRow, candidates
from raprune.results.siblings import Sibling, SiblingComparison, compare_siblings, read_siblings
from raprune.results.test_split import SplitAccuracies, read_test
from raprune.results.timings import Times, read_times, with_times
from raprune.spec.budget import Budget
from raprune.store.folder import Store
from raprune.store.record import DenseRecord, RunRecord


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """The results of a run, of one under way from the trials so far. Each derived value is computed once."""

    name: str
    """Address of the run, without parts that may hold a secret."""
    run: RunRecord
    test: SplitAccuracies
    times: Times
    """Measured times of whole networks."""
    trials: Sequence[Trial]
    """In the order of their records."""
    exports: Mapping[str, ExportProof] = field(default_factory=dict)
    """Network -> the proof of its latest export as a program."""

    siblings: Sequence[Sibling] = ()
    """Smaller dense networks that the run is compared with, by ascending FLOPs."""

    @property
    def dense(self) -> DenseRecord | None:
        return self.run.dense

    @property
    def groups(self) -> dict[str, int]:
        """Group -> channels in the dense network, in the network's order."""
        return dict(self.run.graph.groups)

    @cached_property
    def budget(self) -> Budget:
        return budget_of(self.run)

    @property
    def floor(self) -> float | None:
        return floor_of(self.run)

    @cached_property
    def rows(self) -> list[CandidateRow]:
        """Every candidate, by ascending FLOPs: `front.candidates`."""
        return with_times(starred(candidates(self.trials, test=self.test), self.run), self.times)

    @cached_property
    def front(self) -> list[CandidateRow]:
        """The rows on the front within the budget."""
        return front_of(self.rows, self.budget)

    @cached_property
    def comparisons(self) -> list[SiblingComparison]:
        """The front against each of `siblings`."""
        return compare_siblings(self.siblings, self.front)

    @cached_property
    def listed(self) -> list[CandidateRow]:
        """The rows that a table shows: `front.listed`."""
        return listed(self.rows, self.run)

    @cached_property
    def ablation(self) -> list[AblationRow]:
        return ablation(self.trials, self.budget, test=self.test)

    @cached_property
    def cuts(self) -> dict[int, int]:
        """`best_by_cuts` of all candidates."""
        return best_by_cuts(self.rows)

    @cached_property
    def spent(self) -> list[SpentRow]:
        return spent(self.trials, self.budget)

    @cached_property
    def progress(self) -> Progress:
        return progress(self.run, self.trials)

    @cached_property
    def errors(self) -> Counter[str]:
        """First line of the error of a failed trial -> number of such trials."""
        return Counter(_first_line(trial) for trial in self.trials if trial.state is TrialState.FAILED)

    @cached_property
    def on_gpus(self) -> bool:
        return any(trial.gpu_seconds for trial in self.trials)

    @cached_property
    def hours(self) -> float:
        """Hours of all trials: on GPUs, or on workers if there are no GPUs."""
        return sum(trial.gpu_seconds if self.on_gpus else trial.seconds for trial in self.trials) / 3600

    @cached_property
    def ended_at(self) -> float:
        """When the last recorded trial ended, in seconds since the epoch; 0 before the first one."""
        return max((trial.started_at + trial.seconds for trial in self.trials), default=0.0)

    def error(self, accuracy: float) -> float:
        """The error in percent, at least that of half a wrong validation image, so that its logarithm is finite."""
        images = self.run.val_images
        return max(100 * (1 - accuracy), 50 / images if images else 0.01)

    @cached_property
    def chosen(self) -> CandidateRow | None:
        """The network with the star."""
        return next((row for row in self.listed if row.starred), None)

    @cached_property
    def spread(self) -> list[CandidateRow]:
        """The chosen network, the smallest network of the front and one between, by descending FLOPs."""
        if self.chosen is None:
            return []
        others = [row for row in self.front if row.candidate != self.chosen.candidate]
        ends = [*others[:1], *others[len(others) // 2 :][:1]] if len(others) > 1 else others
        shown = {row.candidate: row for row in [self.chosen, *ends]}
        return sorted(shown.values(), key=lambda row: -row.flops)


def read_run_results(store: Store, *, run: RunRecord | None = None) -> RunResults:
    """Read the run once; `run` replaces its record.

    Raises:
        StoreError: if the folder holds no run, or cannot be read.
    """
    described, trials = store.record() if run is None else run, store.trials()
    return RunResults(
        name=store.name,
        run=described,
        test=read_test(store, trials),
        times=read_times(store, trials),
        trials=trials,
        exports=read_proofs(store),
        siblings=read_siblings(store),
    )


def _first_line(trial: Trial) -> str:
    return (trial.error or "").strip().partition("\n")[0] or "no message"
