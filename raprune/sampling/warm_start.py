"""Warm start: results of earlier runs of the same network that a new search reuses.

The widths of their fronts are proposed first. A result is told to the sampler if the same trial would give the same
result now. The reused results are stored in the new run's folder, and a resumed run reads them from there, because the
earlier run may have changed, or be gone, by then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raprune.errors import RapruneError, UsageError
from raprune.pareto import non_dominated, spread
from raprune.records import Stage, Trial, TrialState
from raprune.sampling.point import Point, widths_of
from raprune.sampling.space import RATIOS, SearchSpace
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store

FILE = "warm_start.json"
"""File of the run's folder with the reused results."""

_KEYS = (
    *("run", "trial_id", "method", "settings", "allocation", "target", "keep_ratios", "widths", "accuracy"),
    *("flops_fraction", "params_fraction", "latency_fraction", "memory_fraction"),
)
"""Fields of a reused result in `FILE`."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Results of earlier runs that a search uses."""

    first: tuple[Point, ...] = ()
    """Results whose widths the search proposes first."""
    observed: tuple[Point, ...] = ()
    """Results that the search treats as its own."""


@dataclass(frozen=True)
class Identity:
    """The identity of a run's network and data. Results of a run with another identity are not reused."""

    architecture: str
    data: str
    """Fingerprint of the data, the validation split and the normalisation."""
    weights: str | None
    """Hash of the dense network's weights; None while it is not trained."""


@dataclass(frozen=True)
class EarlierRun:
    """An earlier run with its trials."""

    name: str
    spec: SearchSpec
    identity: Identity
    trials: Sequence[Trial]


def read(uris: Sequence[str], now: Identity) -> list[EarlierRun]:
    """Read the earlier runs in these folders.

    Raises:
        UsageError: if a folder holds no run, or a run on another network, other weights or other data than `now`.
    """
    runs = []
    for uri in uris:
        store = Store(uri)
        try:
            described = store.record()
            spec = SearchSpec.model_validate(described.spec)
            if described.architecture is None or described.data.fingerprint is None:
                raise ValueError("it does not name its network and data")
            its = Identity(described.architecture, described.data.fingerprint, described.weights_hash)
            if "-" not in its.architecture and its.weights == now.weights is not None:
                # An older run stores a digest of the code's text; equal weights show that the network is the same.
                its = replace(its, architecture=now.architecture)
            runs.append(EarlierRun(store.name, spec, its, store.trials()))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"warm_start (--warm-start) {store.name}: this version cannot read its run.json: {error!r}",
                hint="Leave the run out, or give a run of this version.",
            ) from None
        except RapruneError as error:
            raise UsageError(f"warm_start (--warm-start) {error.message}", hint=error.hint) from None
        _check_same(runs[-1], now)
    return runs


def reused(runs: Sequence[EarlierRun], spec: SearchSpec, space: SearchSpace, now: Identity) -> Earlier:
    """Return the results of earlier runs that the search of `spec` uses. Pure.

    `first` are widths of their fronts in the search's range of targets, spread over the range, the largest first, at
    most a quarter of the search's trials. `observed` are results of trials that the search could have proposed itself,
    if their run calibrated and trained as this search does.
    """
    fronts = [known for run in runs for known in _front(run, space)]
    own = {(known.method, *sorted(known.widths.items()), *sorted(known.settings.items())): known for known in fronts}
    points = [(1 - known.accuracy, math.log(known.fraction(space.target))) for known in own.values()]
    chosen = [list(own.values())[index] for index in spread(points, max(1, spec.search.trials // 4))]
    return Earlier(
        first=tuple(sorted(chosen, key=lambda known: (-known.fraction(space.target), known.run, known.trial_id))),
        observed=tuple(
            known
            for run in runs
            if run.identity == now and _alike(run.spec, spec)
            for known in _complete(run, space)
            if known.method in space.methods and known.allocation in space.allocations
        ),
    )


def to_json(earlier: Earlier) -> dict[str, Any]:
    """The content of `FILE`, which `from_json` reads back."""

    def plain(point: Point) -> dict[str, Any]:
        values = {name: getattr(point, name) for name in _KEYS}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

    return {name: [plain(point) for point in getattr(earlier, name)] for name in ("first", "observed")}


def from_json(content: Mapping[str, Any]) -> Earlier:
    """The reused results that `to_json` wrote, in this version or an earlier one."""
    first, observed = (
        tuple(Point(state=TrialState.COMPLETE, **known) for known in content[name]) for name in ("first", "observed")
    )
    return Earlier(first=first, observed=observed)


def told(earlier: Earlier, runs: Sequence[str]) -> str:
    """A line for the user on the number of reused results."""
    taken = f"{len(earlier.first)} widths proposed first, {len(earlier.observed)} results told to the sampler"
    return f"Warm start from {', '.join(runs)}: {taken}."


def _check_same(run: EarlierRun, now: Identity) -> None:
    for what, its, ours, hint in (
        ("network", run.identity.architecture, now.architecture, "The model's code, name or arguments differ."),
        (
            "data",
            run.identity.data,
            now.data,
            f"The files, max_images, the normalisation or the validation split differ; the seed draws the split (its: "
            f"--seed {run.spec.seed}).",
        ),
        ("weights of the dense network", run.identity.weights, now.weights, "Another checkpoint was given."),
    ):
        if its != ours and None not in (its, ours):
            raise UsageError(
                f"warm_start (--warm-start) {run.name}: not on the same {what} (its: {its}, this job's: {ours}).",
                hint=f"{hint} Leave the run out, or set the job as the run was.",
            )


def _alike(its: SearchSpec, ours: SearchSpec) -> bool:
    """True if a trial of one search would give the same result in the other."""
    fields = ("rungs", "calibration_images", "batch_size", "min_channels", "multiple_of", "depth")
    same = all(getattr(its.search, name) == getattr(ours.search, name) for name in fields)
    taught = its.teacher.name == ours.teacher.name and its.finalists.train.decided() == ours.finalists.train.decided()
    trained = taught or ours.search.rungs[-1] == 0
    return same and trained and its.seed == ours.seed and its.exclude == ours.exclude


def _front(run: EarlierRun, space: SearchSpace) -> list[Point]:
    """The non-dominated candidates of the run within the range of targets, if this search can propose them."""
    inside = [k for k in _complete(run, space) if space.lowest <= k.fraction(space.target) <= space.highest]
    best = [inside[index] for index in non_dominated([(1 - k.accuracy, k.fraction(space.target)) for k in inside])]
    return [known for known in best if known.method in space.methods and RATIOS in space.allocations]


def _complete(run: EarlierRun, space: SearchSpace) -> list[Point]:
    """The complete search trials of the run whose targeted cost is known."""
    return [
        Point(
            run=run.name,
            trial_id=trial.trial_id,
            state=trial.state,
            method=trial.proposal.method,
            settings=dict(trial.proposal.settings),
            allocation=trial.proposal.allocation,
            target=trial.proposal.target.fractions[space.target],
            keep_ratios=dict(trial.proposal.keep_ratios),
            widths=widths_of(trial.candidate),
            accuracy=trial.metrics.accuracy,
            flops_fraction=trial.metrics.flops_fraction,
            params_fraction=trial.metrics.params_fraction,
            latency_fraction=trial.metrics.latency_fraction,
            memory_fraction=trial.metrics.memory_fraction,
        )
        for trial in run.trials
        if trial.proposal.stage is Stage.SEARCH
        and trial.proposal.step is None
        and trial.state is TrialState.COMPLETE
        and trial.candidate is not None
        and trial.metrics is not None
        and getattr(trial.metrics, f"{space.target}_fraction") is not None
    ]
