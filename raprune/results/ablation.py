"""Comparison of the methods: the best candidate of each within the budget and two parts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raprune.records import Stage, Trial
from raprune.results.front import budget_of, listed, pick, within
from raprune.results.rows import CandidateRow, candidates
from raprune.results.test_split import UNTESTED, SplitAccuracies
from raprune.spec.budget import Budget
from raprune.store.record import RunRecord

SHARES = (1.0, 2 / 3, 0.5)
"""Fractions of the user's budget within which the methods are compared."""


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """The most accurate candidate of one method within a part of the budget, after equal fine-tuning."""

    best: CandidateRow
    finetuning_epochs: float
    """Epochs of fine-tuning, without the epochs that the method itself trains; 0: only repaired."""
    share: float
    """Part of the user's budget, one of `SHARES`."""
    budget: Budget
    """The limits of this part of the budget."""

    @property
    def method(self) -> str:
        return self.best.method

    @property
    def cost(self) -> str:
        """The first cost that the budget limits: a key of a row."""
        return next((cost for cost in _WORDS if getattr(self.budget, cost) is not None), "flops")

    @property
    def cost_in_words(self) -> str:
        return _WORDS[self.cost]

    @property
    def limit(self) -> float:
        """The budget of `cost`, a fraction of the dense network's."""
        limit: float | None = getattr(self.budget, self.cost)
        assert limit is not None, "a part of a budget limits some cost"
        return limit

    # A JSON edge: the keys are the contract of `raprune front --ablation --json`.
    def to_json(self) -> dict[str, Any]:
        """Plain data under the keys that `raprune front --ablation --json` prints."""
        row = self.best.to_json() | {"finetuning_epochs": self.finetuning_epochs, "share": self.share}
        return row | {f"budget_{cost}": getattr(self.budget, cost) for cost in _WORDS}


_WORDS = {"flops": "FLOPs", "params": "params", "latency": "latency", "memory": "memory"}


def ablation(trials: Sequence[Trial], budget: Budget, *, test: SplitAccuracies = UNTESTED) -> list[AblationRow]:
    """The best candidate of each method within each of `SHARES` of the budget, after equal fine-tuning.

    A method without so small a network has no row there. Rows are ordered by ascending epochs of fine-tuning, then by
    descending share, then by descending validation accuracy, which is also the criterion of the choice.
    """
    known = {trial.trial_id: trial for trial in trials}
    tried: dict[float, dict[str, list[CandidateRow]]] = {}
    for found in candidates(trials, test=test):
        epochs = _finetuning(known[found.trial_id], known)
        tried.setdefault(epochs, {}).setdefault(found.method, []).append(found)
    table: list[AblationRow] = []
    for epochs, of_methods in sorted(tried.items()):
        for share in SHARES:
            part = budget.share(share)
            best = [pick(admitted, part) for rows in of_methods.values() if (admitted := within(rows, part))]
            table += [
                AblationRow(best=row, finetuning_epochs=epochs, share=share, budget=part)
                for row in sorted(best, key=lambda row: (-row.val_accuracy, row.method))
            ]
    return table


def to_be_tested(trials: Sequence[Trial], run: RunRecord) -> list[CandidateRow]:
    """The rows whose networks are evaluated on the test split: those of `listed`, and the best row of each method.

    To compare the methods, a repaired network that was fine-tuned is represented by
    the fine-tuned one.
    """
    rows = candidates(trials)
    finetuned = {row.parent for row in rows}
    best = [row.best for row in ablation(trials, budget_of(run)) if row.share == max(SHARES)]
    compared = [row for row in best if row.candidate not in finetuned]
    return list({row.candidate: row for row in [*compared, *listed(rows, run)]}.values())


def _finetuning(trial: Trial, known: Mapping[str, Trial]) -> float:
    """Epochs of fine-tuning, without the epochs that the method itself trained."""
    return round(trial.epochs - _own_epochs(trial, known), 6)


def _own_epochs(trial: Trial, known: Mapping[str, Trial]) -> float:
    """Epochs that the method trained before any fine-tuning: those of the first trial of the chain."""
    while (parent := known.get(trial.proposal.parent or "")) is not None:
        trial = parent
    return trial.epochs if trial.proposal.stage is Stage.SEARCH and trial.proposal.rung == 0 else 0.0
