"""The candidates of a run as a person sees them: one typed row for terminal, report, page and JSON.

Open `CandidateRow` first, then `candidates`, which makes the rows. Numbers and records only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean, stdev
from typing import Any

from raprune import pareto
from raprune.records import Setting, Stage, Trial
from raprune.results.test_split import UNTESTED, SplitAccuracies
from raprune.store.record import ACCURACY

COSTS = ("flops", "params", "latency", "memory")
"""Costs that a budget can limit, each a fraction of the dense network's."""

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; the last one is an upper bound for all further."""

_PRUNED_WEIGHTS = 0.01
"""Fraction of the parameters that are zero beyond which weights were pruned one by one."""


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeed:
    """Measured times of one candidate's network; a time that was not measured is None."""

    measured_batch_size: int | None = None
    """Images of the batch of `measured_ms`."""
    measured_ms: float | None = None
    speedup: float | None = None
    """The dense network's time over `measured_ms`."""
    measured_batch1_ms: float | None = None
    """Time of one image."""
    speedup_batch1: float | None = None
    measured_latency_ms: float | None = None
    """Time under the conditions of the latency budget."""
    measured_latency_fraction: float | None = None
    """`measured_latency_ms` over the dense network's time under those conditions."""


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """One candidate: its recipe, its cost and its accuracies. Accuracies and fractions are in [0, 1].

    With several `repeats` the accuracies are means, and the row has the name of the first repeat.
    """

    candidate: str
    """Name of the network (`Trial.network`)."""
    parent: str | None
    """Name of the repaired network that this one was fine-tuned from; None if it was not fine-tuned."""
    method: str
    settings: Mapping[str, Setting]
    allocation: str
    stage: Stage
    epochs: float
    """Epochs of training since the dense network."""
    flops: int
    """Multiply-adds of one image, counted as 2."""
    flops_fraction: float
    params: int
    params_fraction: float
    zeros: int
    """Parameters that are exactly zero."""
    latency_ms: float | None
    """Predicted time of a batch under the conditions of the latency budget."""
    latency_fraction: float | None
    memory_bytes: int | None = None
    """Peak of the activations of one image; None in runs of versions that did not count it."""
    memory_fraction: float | None = None
    rung: int
    repeats: tuple[int, ...]
    """Numbers of the fine-tunings behind the accuracies."""
    cuts: int = 1
    """Number of cuts on the way to a fine-tuned network, with training after each."""
    trials: tuple[str, ...]
    """Ids of the trials behind the accuracies."""
    val_accuracy: float
    val_interval: float | None = None
    """Half width of the 95 % confidence interval of `val_accuracy`; None for one repeat."""
    test_interval: float | None = None
    test_accuracy: float | None = None
    dense_test_accuracy: float | None = None
    test_further: Mapping[str, float] = field(default_factory=dict)
    """Further figures on the test split by name, in [0, 1], such as the top-5 accuracy: of repeats their means."""
    accuracy_after_cut: float | None = None
    accuracy_after_repair: float | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    """Group name -> number of channels that stay."""
    identity: tuple[str, ...] = ()
    """Names of the residual blocks that are gone, with the groups that were all inside of them."""
    trial_id: str
    on_front: bool = False
    starred: bool = False
    """True for the candidate that the run recommends."""
    measured: MeasuredSpeed | None = None
    """None if the measured times were not read."""
    metric: str = ACCURACY
    """Name of the task's metric, which the accuracies hold."""

    def __repr__(self) -> str:
        test = "" if self.test_accuracy is None else f", test {self.metric} {self.test_accuracy:.2%}"
        return (
            f"{type(self).__name__}({self.candidate} by {self.method}: {self.flops_fraction:.1%} of the FLOPs, "
            f"{self.params_fraction:.1%} of the parameters, validation {self.metric} {self.val_accuracy:.2%}{test})"
        )

    @property
    def macs(self) -> int:
        """Multiply-adds of one image."""
        return self.flops // 2

    @property
    def nonzero_fraction(self) -> float:
        """Fraction of the dense network's parameters that neither left with a channel nor are zero."""
        return self.params_fraction * (1 - self.zeros / max(1, self.params))

    @property
    def weights_pruned(self) -> bool:
        """True if weights were pruned one by one; a parameter here and there is zero in any network."""
        return self.zeros > _PRUNED_WEIGHTS * self.params

    @property
    def speedup(self) -> float | None:
        """The dense network's time over this network's, for the largest batch; None if it was not measured."""
        return None if self.measured is None else self.measured.speedup

    @property
    def measured_latency_fraction(self) -> float | None:
        """Measured latency as a fraction of the dense network's; None if it was not measured."""
        return None if self.measured is None else self.measured.measured_latency_fraction

    def width_of(self, group: str, dense: int) -> int:
        """The channels that stay in a group, of `dense` in the dense network; 0 if its block is gone."""
        return self.widths.get(group, 0 if self.identity else dense)

    def fraction(self, cost: str) -> float | None:
        """The fraction of the dense network's cost that this network has; `cost` is one of `COSTS`."""
        fraction: float | None = getattr(self, f"{cost}_fraction")
        return fraction

    # A JSON edge: the keys are the contract of `raprune front --json`.
    def to_json(self) -> dict[str, Any]:
        """Plain data under the keys that `raprune front --json` prints; with measured times if they were read."""
        row = {name: getattr(self, name) for name in _KEYS}
        row |= {"settings": dict(self.settings), "widths": dict(self.widths), "stage": self.stage.value}
        row["test_further"] = dict(self.test_further)
        row |= {"repeats": list(self.repeats), "trials": list(self.trials), "identity": list(self.identity)}
        return row if self.measured is None else row | asdict(self.measured)


_KEYS = (
    *("candidate", "parent", "method", "settings", "allocation", "stage", "epochs"),
    *("flops", "macs", "flops_fraction", "params", "params_fraction", "zeros", "nonzero_fraction"),
    *("latency_ms", "latency_fraction", "memory_bytes", "memory_fraction", "rung", "repeats", "cuts", "trials"),
    *("val_accuracy", "val_interval", "test_interval", "test_accuracy", "dense_test_accuracy"),
    *("test_further",),
    *("accuracy_after_cut", "accuracy_after_repair", "widths", "identity", "trial_id", "on_front", "starred"),
)
"""Keys of a row in JSON, in their order."""


def candidates(trials: Sequence[Trial], *, test: SplitAccuracies = UNTESTED) -> list[CandidateRow]:
    """One row for each candidate of a complete trial, repaired and fine-tuned ones apart, by ascending FLOPs.

    A candidate of several search trials has the results of the most accurate one; a candidate that was fine-tuned with
    several seeds has their means.
    """
    named: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.counts:
            named.setdefault(trial.name, []).append(trial)
    rows = [_row_of(alike, test=test) for alike in named.values()]
    # Of equally good rows the first stays on a front: the row that was trained the least.
    rows.sort(key=lambda row: (row.flops, -row.val_accuracy, row.epochs, row.candidate))
    for index in non_dominated(rows, "flops"):
        rows[index] = replace(rows[index], on_front=True)
    return rows


def non_dominated(rows: Sequence[CandidateRow], cost: str) -> list[int]:
    """Positions of the rows that no other row dominates in accuracy and `cost`.

    If weights were pruned one by one, which saves no FLOPs, the fraction of remaining weights is compared as well.
    """
    return pareto.non_dominated([(*_point(row, cost), _density(row)) for row in rows])


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of two or more values and the half width of its 95 % confidence interval (Student); None for one."""
    if len(values) < 2:
        return values[0], None
    quantile = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
    return mean(values), quantile * stdev(values) / len(values) ** 0.5


def error_of(trial: Trial) -> float:
    """Fraction of the validation images that are misclassified; infinite for a training that diverged."""
    accuracy = trial.metrics.accuracy if trial.metrics is not None else math.nan
    return math.inf if math.isnan(accuracy) else 1.0 - accuracy


def _row_of(alike: Sequence[Trial], *, test: SplitAccuracies) -> CandidateRow:
    """The row of trials that share a name: the best of search trials, the mean of repeats."""
    if alike[0].proposal.stage is Stage.SEARCH:
        return _row(min(alike, key=lambda t: (error_of(t), t.epochs, t.trial_id)), test=test)
    repeats = sorted({trial.network: trial for trial in alike}.values(), key=lambda t: t.proposal.repeat)
    first = _row(repeats[0], test=test)
    if len(repeats) == 1:
        return first
    validation = [trial.metrics.accuracy for trial in repeats if trial.metrics is not None]
    tested = [test.candidates.get(trial.network) for trial in repeats]
    known = [accuracy for accuracy in tested if accuracy is not None]
    val_accuracy, val_interval = mean_and_interval(validation)
    test_accuracy, test_interval = mean_and_interval(known) if len(known) == len(tested) else (None, None)
    return replace(
        first,
        repeats=tuple(trial.proposal.repeat for trial in repeats),
        trials=tuple(trial.trial_id for trial in repeats),
        val_accuracy=val_accuracy,
        val_interval=val_interval,
        test_accuracy=test_accuracy,
        test_interval=test_interval,
        test_further=_means([test.further.get(trial.network, {}) for trial in repeats]),
    )


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure that all of them have."""
    shared = [name for name in figures[0] if all(name in other for other in figures)]
    return {name: mean(one[name] for one in figures) for name in shared}


def _row(trial: Trial, *, test: SplitAccuracies) -> CandidateRow:
    assert trial.candidate is not None and trial.metrics is not None, "only complete trials have a row"
    return CandidateRow(
        candidate=trial.network,
        parent=trial.candidate.id if trial.proposal.stage is Stage.FINETUNE else None,
        method=trial.proposal.method,
        settings=dict(trial.candidate.settings),
        allocation=trial.proposal.allocation,
        stage=trial.proposal.stage,
        epochs=trial.epochs,
        flops=trial.metrics.flops,
        flops_fraction=trial.metrics.flops_fraction,
        params=trial.metrics.params,
        params_fraction=trial.metrics.params_fraction,
        zeros=trial.metrics.zeros,
        latency_ms=trial.metrics.latency_ms,
        latency_fraction=trial.metrics.latency_fraction,
        memory_bytes=trial.metrics.memory_bytes,
        memory_fraction=trial.metrics.memory_fraction,
        rung=trial.proposal.rung,
        repeats=(trial.proposal.repeat,),
        cuts=trial.proposal.cuts,
        trials=(trial.trial_id,),
        val_accuracy=trial.metrics.accuracy,
        test_accuracy=test.candidates.get(trial.network),
        dense_test_accuracy=test.dense,
        test_further=test.further.get(trial.network, {}),
        accuracy_after_cut=trial.accuracy_after_cut,
        accuracy_after_repair=trial.accuracy_after_repair,
        widths=trial.candidate.widths,
        identity=trial.candidate.identity,
        trial_id=trial.trial_id,
    )


def _point(row: CandidateRow, cost: str) -> tuple[float, float]:
    # An unknown latency or memory counts as the dense network's.
    fraction = row.fraction(cost)
    return 1.0 - row.val_accuracy, 1.0 if fraction is None else fraction


def _density(row: CandidateRow) -> float:
    return 1 - row.zeros / row.params if row.weights_pruned else 1.0
