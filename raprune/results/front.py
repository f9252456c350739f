"""What a run's trials come to: the candidates, their Pareto front, the best under a budget, the progress.

A *row* is a plain dictionary about one candidate; the keys are those of `row`. Numbers and records only.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from raprune import pareto
from raprune.errors import RapruneError, UsageError
from raprune.records import Stage, Trial, TrialState
from raprune.spec.budget import Budget, accuracy_floor
from raprune.spec.job import CONTROLS, latency_fraction, read_latency

Row = dict[str, Any]

SHARES = (1.0, 2 / 3, 0.5)
"""Of the user's budget: where the methods are compared."""

FINETUNINGS = "finetunings"
"""Under this key `run.json` says how many fine-tunings there are in all, once the finalists are chosen."""

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; the last for all further ones, which is wider."""


def candidates(trials: Sequence[Trial], *, test: Mapping[str, Any] | None = None) -> list[Row]:
    """One row for each candidate of a complete trial, repaired and fine-tuned ones apart, by ascending FLOPs.

    A candidate that several search trials came to counts as the most accurate of them; one that was fine-tuned by
    several seeds counts by their mean. `test` is the content of `report/test.json`:
    `{"dense": accuracy, "candidates": {network: accuracy}, "images": number}`, by `Trial.network`.
    """
    named: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.counts:
            named.setdefault(trial.name, []).append(trial)
    rows = [_row_of(alike, test=test or {}) for alike in named.values()]
    # Of equally good ones the first stays on a front: the one that was trained the least.
    rows.sort(key=lambda r: (r["flops"], -r["val_accuracy"], r["epochs"], r["candidate"]))
    for index in _non_dominated(rows, "flops"):
        rows[index]["on_front"] = True
    return rows


def to_be_tested(trials: Sequence[Trial], run: Mapping[str, Any]) -> list[Row]:
    """The rows whose networks are looked at on the test split: those of `listed`, and the best of each method's.

    `run` is the content of `run.json`. To compare the methods, a repaired network that was fine-tuned is represented by
    the fine-tuned one.
    """
    rows = candidates(trials)
    finetuned = {r["parent"] for r in rows}
    best = [r for r in ablation(trials, budget_of(run)) if r["share"] == max(SHARES)]
    compared = [r for r in best if r["candidate"] not in finetuned]
    return list({r["candidate"]: r for r in [*compared, *listed(rows, run)]}.values())


def _row_of(alike: Sequence[Trial], *, test: Mapping[str, Any]) -> Row:
    """The row of trials that share a name: the best of search trials, the mean of repeats."""
    if alike[0].proposal.stage is Stage.SEARCH:
        return row(min(alike, key=lambda t: (_error(t), t.epochs, t.trial_id)), test=test)
    repeats = sorted({trial.network: trial for trial in alike}.values(), key=lambda t: t.proposal.repeat)
    first = row(repeats[0], test=test)
    if len(repeats) == 1:
        return first
    validation = [trial.metrics.accuracy for trial in repeats if trial.metrics is not None]
    tested = [test.get("candidates", {}).get(trial.network) for trial in repeats]
    known = [accuracy for accuracy in tested if accuracy is not None]
    mean, interval = mean_and_interval(validation)
    test_mean, test_interval = mean_and_interval(known) if len(known) == len(tested) else (None, None)
    return first | {
        "repeats": [trial.proposal.repeat for trial in repeats],
        "trials": [trial.trial_id for trial in repeats],
        "val_accuracy": mean,
        "val_interval": interval,
        "test_accuracy": test_mean,
        "test_interval": test_interval,
    }


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of two or more values and the half width of its 95 % confidence interval (Student); None for one."""
    if len(values) < 2:
        return values[0], None
    quantile = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
    return mean(values), quantile * stdev(values) / len(values) ** 0.5


def row(trial: Trial, *, test: Mapping[str, Any]) -> Row:
    """What there is to say about a complete trial's candidate; accuracies and fractions in [0, 1].

    `nonzero_fraction` is the share of the dense network's parameters that neither left with a channel nor are zero.
    `candidate` is the name of the network (`Trial.network`), and `parent` that of the repaired network that it was
    fine-tuned from. `repeats` are the fine-tunings behind the accuracies, `trials` their ids; with more than one the
    accuracies are means, `val_interval` and `test_interval` the half widths of their 95 % confidence intervals, and
    the row has the name of the first.
    """
    assert trial.candidate is not None and trial.metrics is not None
    return {
        "candidate": trial.network,
        "parent": trial.candidate.id if trial.proposal.stage is Stage.FINETUNE else None,
        "method": trial.proposal.method,
        "settings": dict(trial.candidate.settings),
        "allocation": trial.proposal.allocation,
        "stage": trial.proposal.stage.value,
        "epochs": trial.epochs,
        "flops": trial.metrics.flops,
        "macs": trial.metrics.flops // 2,
        "flops_fraction": trial.metrics.flops_fraction,
        "params": trial.metrics.params,
        "params_fraction": trial.metrics.params_fraction,
        "zeros": trial.metrics.zeros,
        "nonzero_fraction": trial.metrics.params_fraction * (1 - trial.metrics.zeros / max(1, trial.metrics.params)),
        "latency_ms": trial.metrics.latency_ms,
        "latency_fraction": trial.metrics.latency_fraction,
        "rung": trial.proposal.rung,
        "repeats": [trial.proposal.repeat],
        "trials": [trial.trial_id],
        "val_accuracy": trial.metrics.accuracy,
        "val_interval": None,
        "test_interval": None,
        "test_accuracy": test.get("candidates", {}).get(trial.network),
        "dense_test_accuracy": test.get("dense"),
        "accuracy_after_cut": trial.accuracy_after_cut,
        "accuracy_after_repair": trial.accuracy_after_repair,
        "widths": trial.candidate.widths,
        "trial_id": trial.trial_id,
        "on_front": False,
        "starred": False,
    }


def front(trials: Sequence[Trial], budget: Budget | None = None, *, test: Mapping[str, Any] | None = None) -> list[Row]:
    """The rows within the budget that no other row beats in both accuracy and FLOPs, by ascending FLOPs.

    Where weights were pruned one by one, which saves no FLOPs, the share of the weights that is left counts too.
    """
    return front_of(candidates(trials, test=test), budget or Budget())


def front_of(rows: Sequence[Row], budget: Budget) -> list[Row]:
    """`front` of rows of `candidates`."""
    admitted = within(rows, budget)
    return [admitted[index] | {"on_front": True} for index in _non_dominated(admitted, budget.cost)]


def starred(rows: Sequence[Row], run: Mapping[str, Any]) -> list[Row]:
    """The rows with the one of `choose` marked `starred`."""
    chosen = choose(rows, run)
    return [row | {"starred": chosen is not None and row["candidate"] == chosen["candidate"]} for row in rows]


def listed(rows: Sequence[Row], run: Mapping[str, Any]) -> list[Row]:
    """The front of rows of `candidates` within the run's budget and the starred row, by ascending FLOPs.

    The starred row is off the front where a control dominates it by less than the accuracies can tell.
    """
    marked, budget = starred(rows, run), budget_of(run)
    on_front = {row["candidate"]: row for row in front_of(marked, budget)}
    shown = (on_front.get(row["candidate"], row | {"on_front": False}) for row in marked)
    return [row for row in shown if row["on_front"] or row["starred"]]


def within(rows: Sequence[Row], budget: Budget) -> list[Row]:
    """The rows that the budget admits."""
    return [
        r
        for r in rows
        if budget.admits(
            flops_fraction=r["flops_fraction"],
            params_fraction=r["params_fraction"],
            latency_fraction=r["latency_fraction"],
        )
    ]


def choose(rows: Sequence[Row], run: Mapping[str, Any]) -> Row | None:
    """The row that gets the star in the run of `run.json` content `run`; None where none is within the budget.

    That is the most accurate row within the budget; or, if an accuracy was asked for and any row has it, the cheapest
    that has it. A control that was not asked for as a method gets the star only if no other row has the accuracy asked
    for, or if it is ahead of every other row by more than its standard error on the validation images.
    """
    admitted, floor = within(rows, budget_of(run)), floor_of(run)
    others = [r for r in admitted if not is_control(r, run)]
    if floor is not None:
        for some in (others, admitted):
            accurate = [r for r in some if r["val_accuracy"] >= floor]
            if accurate:
                return min(accurate, key=_cheapest)
    if not admitted:
        return None
    best = max(admitted, key=_most_accurate)
    margin = standard_error(best["val_accuracy"], run.get("dense", {}).get("val_images"))
    close = [r for r in others if r["val_accuracy"] >= best["val_accuracy"] - margin]
    return max(close, key=_most_accurate) if close else best


def is_control(row: Row, run: Mapping[str, Any]) -> bool:
    """True if the row's method was tried as a control, and not because the job names it."""
    return row["method"] in CONTROLS and row["method"] not in run.get("spec", {}).get("methods", ())


def standard_error(accuracy: float, images: int | None) -> float:
    """Standard error of an accuracy on so many images, a fraction; 0 where their number is not known."""
    return (accuracy * (1 - accuracy) / images) ** 0.5 if images else 0.0


def _most_accurate(row: Row) -> tuple[float, int]:
    return row["val_accuracy"], -row["flops"]


def _cheapest(row: Row) -> tuple[int, float]:
    return row["flops"], -row["val_accuracy"]


def budgeted(row: Row) -> tuple[str, str]:
    """Of a row of `ablation`, the cost that its budget is of: in the row's keys, and in words."""
    named = (("flops", "FLOPs"), ("params", "params"), ("latency", "latency"))
    return next((cost for cost in named if row.get(f"budget_{cost[0]}") is not None), named[0])


def weights_pruned(row: Row) -> bool:
    """Whether weights were pruned one by one; a parameter here and there is zero in any network."""
    return bool(row["zeros"] > 0.01 * row["params"])


def ablation(trials: Sequence[Trial], budget: Budget, *, test: Mapping[str, Any] | None = None) -> list[Row]:
    """The methods side by side: the best of each within each of `SHARES` of the budget, after equal fine-tuning.

    The rows of `row` with `finetuning_epochs` (0: only repaired), `share`, `budget_flops` and `budget_params` beside
    them; a method that has nothing so small has no row there. Ordered by these, then by falling accuracy on the
    validation split, which the choice looks at. What a method trains by itself is no fine-tuning, and counts in
    `epochs`.
    """
    known = {trial.trial_id: trial for trial in trials}
    tried: dict[float, dict[str, list[Row]]] = {}
    for found in candidates(trials, test=test):
        epochs = _finetuning(known[found["trial_id"]], known)
        tried.setdefault(epochs, {}).setdefault(found["method"], []).append(found)
    table: list[Row] = []
    for epochs, of_methods in sorted(tried.items()):
        for share in SHARES:
            part = budget.share(share)
            named: Row = {"finetuning_epochs": epochs, "share": share}
            named |= {"budget_flops": part.flops, "budget_params": part.params, "budget_latency": part.latency}
            best = [pick(admitted, part) | named for rows in of_methods.values() if (admitted := within(rows, part))]
            table += sorted(best, key=lambda r: (-r["val_accuracy"], r["method"]))
    return table


class Growth:
    """The front within a budget as networks come in, one after another."""

    def __init__(self, budget: Budget) -> None:
        self.hypervolume = 0.0
        """As in `Progress`."""
        self.best: float | None = None
        """Validation accuracy of the best candidate within the budget: of several seeds the mean so far."""
        self.points: list[tuple[float, float]] = []
        """Error and cost of the networks on it."""
        self._budget = budget
        self._accuracies: dict[str, list[float]] = {}

    def add(self, trial: Trial) -> bool:
        """Take a trial in; True if it enlarged the front."""
        point = _point(trial, self._budget)
        if point is None or trial.metrics is None:
            return False
        self._note(trial.name, trial.metrics.accuracy, is_mean=trial.proposal.stage is Stage.FINETUNE)
        # Thousands of trials are dominated, and need no more than this.
        if not point[0] < 1.0 or any(error <= point[0] and cost <= point[1] for error, cost in self.points):
            return False
        points = [*self.points, point]
        self.points = [points[index] for index in pareto.non_dominated(points)]
        before, self.hypervolume = self.hypervolume, _hypervolume(self.points, self._budget)
        return self.hypervolume > before

    def _note(self, name: str, accuracy: float, *, is_mean: bool) -> None:
        seen = self._accuracies.setdefault(name, [])
        if is_mean or not seen:
            seen.append(accuracy)
        else:
            seen[0] = max(seen[0], accuracy)
        if self.best is None or mean(seen) >= self.best:
            self.best = mean(seen)
        elif len(seen) > 1:
            # The mean of the best may have fallen.
            self.best = max(mean(accuracies) for accuracies in self._accuracies.values())


def spent(trials: Sequence[Trial], budget: Budget) -> list[Row]:
    """What the front had become after so much work: one row for each trial that enlarged it, by the time it ended.

    `gpu_hours` and `hours` are those of all trials until then, failed and stopped ones included, on GPUs and on
    workers; `hypervolume` is as in `Progress`, and `val_accuracy` that of the best within the budget.
    """
    growth = Growth(budget)
    gpu_s = worker_s = 0.0
    table: list[Row] = []
    for trial in sorted(trials, key=lambda t: (t.started_at + t.seconds, t.trial_id)):
        gpu_s, worker_s = gpu_s + trial.gpu_seconds, worker_s + trial.seconds
        if growth.add(trial):
            table.append(
                {
                    "trial_id": trial.trial_id,
                    "gpu_hours": gpu_s / 3600,
                    "hours": worker_s / 3600,
                    "hypervolume": growth.hypervolume,
                    "val_accuracy": growth.best,
                    "points": len(growth.points),
                }
            )
    return table


def pick(rows: Sequence[Row], budget: Budget, *, min_accuracy: float | None = None) -> Row:
    """The most accurate row within the budget; with `min_accuracy`, the cheapest that is at least so accurate.

    Accuracy is that on the validation split, which the choice may look at. Of equally accurate rows the cheapest is
    picked. A control is picked like any other: the star is what the run recommends, a pick is what fits.

    Raises:
        RapruneError: if there is no such row; the message names the nearest.
    """
    if not rows:
        raise RapruneError("The run has no complete trial yet.", hint="`raprune status RUN` shows how far it is.")
    admitted = within(rows, budget)
    if not admitted:
        smallest = min(rows, key=lambda r: (r["flops_fraction"], r["params_fraction"]))
        raise RapruneError(
            f"No candidate is within {_wanted(budget)}: the smallest, {smallest['candidate']}, has "
            f"{smallest['flops_fraction']:.1%} of the dense network's FLOPs and {smallest['params_fraction']:.1%} of "
            f"its parameters.",
            hint="Pick a larger budget, or search with a smaller one.",
        )
    if min_accuracy is None:
        return max(admitted, key=_most_accurate)
    accurate = [r for r in admitted if r["val_accuracy"] >= min_accuracy]
    if not accurate:
        best = max(admitted, key=lambda r: r["val_accuracy"])
        raise RapruneError(
            f"No candidate within {_wanted(budget)} has a validation accuracy of {min_accuracy:g}: the best, "
            f"{best['candidate']}, has {best['val_accuracy']:.4f}.",
            hint="Ask for less accuracy, pick a larger budget, or search longer.",
        )
    return min(accurate, key=_cheapest)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    states: dict[str, int]
    """State -> number of trials that were asked for; what is not yet recorded is WAITING or RUNNING."""
    steps: int
    """Networks that were met on the way to those."""
    searched: int
    """Search trials that have ended."""
    trials: int
    """Search trials asked for."""
    finetuned: int
    """Fine-tunings that have ended, failed ones included."""
    finetunings: int | None
    """Fine-tunings in all: of each finalist one for each seed. None until the finalists are chosen."""
    front: int
    """Candidates on the front."""
    hypervolume: float
    """Share of the area between (error 0, no FLOPs) and (error 1, the budget) that the networks dominate, in [0, 1].

    Each repeat of a fine-tuning is a network of its own here, so that it never falls."""
    best: Row | None
    """Candidate with the star: that of `choose`."""
    dense_accuracy: float | None
    elapsed_s: float
    left_s: float | None
    """Estimate for the search trials still to come. None: not known yet."""
    gpu_hours: float
    finished: bool = False
    """Whether the run has ended with its report."""


def budget_of(run: Mapping[str, Any]) -> Budget:
    """The budget of `run.json` content. A latency is a fraction there; one that is still a time is free."""
    spec = run.get("spec", {})
    latency = spec.get("budget_latency")
    return Budget(
        flops=spec.get("budget_flops"),
        params=spec.get("budget_params"),
        latency=None if latency is None else read_latency(latency)[0],
    )


def wanted_latency(asked: str, value: str, run: Mapping[str, Any]) -> float:
    """A latency budget for the run of `run.json` content `run`, as a fraction of the dense network's.

    `value` is read as `raprune.spec.job.read_latency` does; `asked` says how it was given.

    Raises:
        UsageError: if it is none, or the run was searched without latencies.
    """
    latency = run.get("latency")
    if latency is None:
        raise UsageError(
            f"{asked}: this run knows no latencies: it was searched without --budget-latency.",
            hint="Pick by FLOPs or parameters, or search with --budget-latency.",
        )
    try:
        return latency_fraction(value, latency["dense_ms"])
    except ValueError as error:
        raise UsageError(f"{asked}: {error}.", hint="For example 0.5 or 3ms.") from None


def floor_of(run: Mapping[str, Any]) -> float | None:
    """The validation accuracy that was asked for in `run.json` content; None where nothing was."""
    spec = run.get("spec", {})
    return accuracy_floor(spec.get("min_accuracy"), spec.get("max_drop"), run.get("dense", {}).get("val_accuracy"))


def progress(
    run: Mapping[str, Any], trials: Sequence[Trial], *, running: int = 0, live: bool = False, now: float | None = None
) -> Progress:
    """How far the run of `run.json` content `run` is, from its recorded trials.

    `running` trials are under way. A run that is not `live` lasted until its last trial ended.
    """
    spec = run.get("spec", {})
    budget = budget_of(run)
    asked_for = [trial for trial in trials if trial.proposal.step is None]
    searched = [trial for trial in asked_for if trial.proposal.stage is Stage.SEARCH and trial.proposal.rung == 0]
    continued = {trial.proposal.parent for trial in asked_for if trial.proposal.rung}
    asked = int(spec.get("search", {}).get("trials", len(searched)))
    finetuned = sum(trial.proposal.stage is Stage.FINETUNE for trial in asked_for)
    rows = candidates(trials)
    admitted = front_of(rows, budget)
    # A candidate that went on to the next rung counts where it came to.
    states = Counter(trial.state.value for trial in asked_for if trial.trial_id not in continued)
    states[TrialState.RUNNING.value] += running
    states[TrialState.WAITING.value] += max(0, asked - len(searched) - running)
    started = float(run.get("started_at") or min((t.started_at for t in trials), default=0.0))
    finished = run.get("state") == "finished"
    ended = (
        float(run["finished_at"])
        if finished
        else max((trial.started_at + trial.seconds for trial in trials), default=started)
    )
    elapsed = max(0.0, (time.time() if now is None else now) - started if live else ended - started)
    return Progress(
        states={state: count for state, count in sorted(states.items()) if count},
        steps=len(trials) - len(asked_for),
        searched=len(searched),
        trials=asked,
        finetuned=finetuned,
        # Runs of before this was written have ended with all of theirs.
        finetunings=run.get(FINETUNINGS, finetuned if finished else None),
        front=len(admitted),
        hypervolume=_hypervolume([point for trial in trials if (point := _point(trial, budget))], budget),
        best=choose(rows, run),
        dense_accuracy=run.get("dense", {}).get("val_accuracy"),
        elapsed_s=elapsed,
        left_s=_time_left(spec, searched, asked=asked, elapsed=elapsed),
        gpu_hours=sum(trial.gpu_seconds for trial in trials) / 3600,
        finished=finished,
    )


def _finetuning(trial: Trial, known: Mapping[str, Trial]) -> float:
    """Epochs of fine-tuning, without those that the method itself trained."""
    return round(trial.epochs - _own_epochs(trial, known), 6)


def _own_epochs(trial: Trial, known: Mapping[str, Trial]) -> float:
    """Epochs that the method trained before any fine-tuning: those of the trial that the others continue."""
    while (parent := known.get(trial.proposal.parent or "")) is not None:
        trial = parent
    return trial.epochs if trial.proposal.stage is Stage.SEARCH and trial.proposal.rung == 0 else 0.0


def _error(trial: Trial) -> float:
    """Share of the validation images that are wrong; that of a training which diverged is above all others."""
    accuracy = trial.metrics.accuracy if trial.metrics is not None else math.nan
    return math.inf if math.isnan(accuracy) else 1.0 - accuracy


def _point(trial: Trial, budget: Budget) -> tuple[float, float] | None:
    """Error and cost of the trial's network; None if it does not count or the budget does not admit it."""
    metrics = trial.metrics
    if not trial.counts or metrics is None or math.isnan(metrics.accuracy):
        return None
    costs = {f"{cost}_fraction": getattr(metrics, f"{cost}_fraction") for cost in ("flops", "params", "latency")}
    if not budget.admits(**costs):
        return None
    share = costs[f"{budget.cost}_fraction"]
    return _error(trial), 1.0 if share is None else share


def _non_dominated(rows: Sequence[Row], cost: str) -> list[int]:
    density = [1 - r["zeros"] / r["params"] if weights_pruned(r) else 1.0 for r in rows]
    return pareto.non_dominated([(*point, share) for point, share in zip(_points(rows, cost), density, strict=True)])


def _points(rows: Sequence[Row], cost: str) -> list[tuple[float, float]]:
    # A latency that is not known counts as the dense network's.
    shares = [r[f"{cost}_fraction"] for r in rows]
    return [(1.0 - r["val_accuracy"], 1.0 if share is None else share) for r, share in zip(rows, shares, strict=True)]


def _hypervolume(points: Sequence[tuple[float, float]], budget: Budget) -> float:
    return pareto.hypervolume(points, (1.0, budget.limit)) / budget.limit


def _wanted(budget: Budget) -> str:
    parts = [
        f"{value:.1%} of the dense network's {name}"
        for name, value in (("FLOPs", budget.flops), ("parameters", budget.params), ("latency", budget.latency))
        if value is not None
    ]
    return " and ".join(parts) or "no budget at all"


def _time_left(spec: Mapping[str, Any], searched: Sequence[Trial], *, asked: int, elapsed: float) -> float | None:
    if len(searched) >= asked:
        return 0.0
    if not searched:
        return None
    begun = min(trial.started_at for trial in searched)
    ended = max(trial.started_at + trial.seconds for trial in searched)
    left = (ended - begun) / len(searched) * (asked - len(searched))
    limit = spec.get("search", {}).get("time_limit_s")
    return left if limit is None else max(0.0, min(left, limit - elapsed))
