"""What a run found, read from its store at once: what its report tells and its figures show. No torch, no ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raprune.budget import Budget
from raprune.front import Progress, Row, ablation, budget_of, candidates, choose, floor_of, front, progress, spent
from raprune.report import read_test, read_times, with_times
from raprune.store import Store
from raprune.trial import Trial, TrialState


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A run under way has them too: of what was recorded so far."""

    name: str
    """Where the run lies, without what may hold a secret."""
    run: Mapping[str, Any]
    """The content of `run.json`."""
    test: Mapping[str, Any]
    timed: Mapping[str, Any]
    rows: list[Row]
    """Every candidate, by ascending FLOPs: `front.candidates`."""
    front: list[Row]
    """Those of the front within the budget."""
    ablation: list[Row]
    spent: list[Row]
    progress: Progress
    errors: Counter[str]
    """First line of the error of a failed trial -> number of such trials."""
    hours: float
    """Of all trials: on GPUs, or without any on workers."""
    on_gpus: bool
    ended_at: float
    """When the last recorded trial ended, in seconds since the epoch; 0 before the first one."""

    @property
    def dense(self) -> Mapping[str, Any]:
        return self.run.get("dense", {})

    @property
    def groups(self) -> dict[str, int]:
        """Group -> channels in the dense network, in the network's order."""
        return dict(self.run.get("graph", {}).get("groups", {}))

    @cached_property
    def budget(self) -> Budget:
        return budget_of(self.run)

    @property
    def floor(self) -> float | None:
        return floor_of(self.run)

    def error(self, accuracy: float) -> float:
        """The error in percent, at least that of half a wrong validation image: what a logarithm can show."""
        images = self.dense.get("val_images")
        return max(100 * (1 - accuracy), 50 / images if images else 0.01)

    @cached_property
    def chosen(self) -> Row | None:
        """The network with the star."""
        return choose(self.front, self.budget, floor=self.floor)

    @cached_property
    def spread(self) -> list[Row]:
        """The chosen network, the smallest one of the front and one between, by falling FLOPs."""
        if self.chosen is None:
            return []
        others = [row for row in self.front if row["candidate"] != self.chosen["candidate"]]
        ends = [*others[:1], *others[len(others) // 2 :][:1]] if len(others) > 1 else others
        shown = {row["candidate"]: row for row in [self.chosen, *ends]}
        return sorted(shown.values(), key=lambda row: -row["flops"])


def read_findings(store: Store) -> Findings:
    """Reads the run once.

    Raises:
        StoreError: if the folder holds no run, or cannot be read.
    """
    run, test, timed, trials = store.run(), read_test(store), read_times(store), store.trials()
    budget = budget_of(run)
    on_gpus = any(trial.gpu_seconds for trial in trials)
    return Findings(
        name=store.name,
        run=run,
        test=test,
        timed=timed,
        rows=with_times(candidates(trials, test=test), timed),
        front=with_times(front(trials, budget, test=test), timed),
        ablation=ablation(trials, budget, test=test),
        spent=spent(trials, budget),
        progress=progress(run, trials),
        errors=Counter(_first_line(trial) for trial in trials if trial.state is TrialState.FAILED),
        hours=sum(trial.gpu_seconds if on_gpus else trial.seconds for trial in trials) / 3600,
        on_gpus=on_gpus,
        ended_at=max((trial.started_at + trial.seconds for trial in trials), default=0.0),
    )


def _first_line(trial: Trial) -> str:
    return (trial.error or "").strip().partition("\n")[0] or "no message"
