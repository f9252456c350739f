"""Earlier runs of the same network, reused: what a search takes from them when it begins.

The widths of their fronts are proposed first. Their results are told to the sampler where they are what the same trial
would give now. What was taken is written into the new run's folder and read from there when it is resumed: an earlier
run may have gone on, or vanished, by then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from raprune.errors import RapruneError, UsageError
from raprune.pareto import non_dominated, spread
from raprune.records import Setting, Stage, Trial, TrialState
from raprune.sampling.space import RATIOS, SearchSpace
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store

FILE = "warm_start.json"
"""In the run's folder: what was taken."""


@dataclass(frozen=True, kw_only=True)
class EarlierResult:
    """A result of an earlier run."""

    run: str
    trial_id: str
    method: str
    settings: Mapping[str, Setting]
    allocation: str
    target: float | None
    """Target of its proposal in the cost that this search targets; None: its target is another cost."""
    keep_ratios: Mapping[str, float]
    widths: Mapping[str, int]
    """Group name -> how many channels stayed."""
    accuracy: float
    flops_fraction: float
    params_fraction: float
    latency_fraction: float | None

    def point(self, cost: str) -> tuple[float, float]:
        """As `Outcome.point`."""
        share = self.flops_fraction if cost == "flops" else self.latency_fraction
        return (1.0 - self.accuracy, 1.0 if share is None else share)


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Results of earlier runs that a search uses."""

    first: tuple[EarlierResult, ...] = ()
    """Results whose widths the search proposes first."""
    observed: tuple[EarlierResult, ...] = ()
    """Results that the search treats as its own."""


@dataclass(frozen=True)
class Identity:
    """The identity of a run's network and data: results of a run with another identity are of no use."""

    architecture: str
    data: str
    """Fingerprint of the data, the validation split and the normalisation."""
    weights: str | None
    """Hash of the dense network's weights; None while it is not trained."""


@dataclass(frozen=True)
class EarlierRun:
    """An earlier run, read."""

    name: str
    spec: SearchSpec
    identity: Identity
    trials: Sequence[Trial]


def read(uris: Sequence[str], now: Identity) -> list[EarlierRun]:
    """The earlier runs in these folders.

    Raises:
        UsageError: if there is none in a folder, or it is not on the network, weights and data of `now`.
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
                # A run from before names a digest of the code's text: equal weights tell that the network is the same.
                its = replace(its, architecture=now.architecture)
            runs.append(EarlierRun(store.name, spec, its, store.trials()))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"warm_start (--warm-start) {store.name}: its run.json is of no version that is read: {error!r}",
                hint="Leave it out, or give a run of this version.",
            ) from None
        except RapruneError as error:
            raise UsageError(f"warm_start (--warm-start) {error.message}", hint=error.hint) from None
        _check_same(runs[-1], now)
    return runs


def reused(runs: Sequence[EarlierRun], spec: SearchSpec, space: SearchSpace, now: Identity) -> Earlier:
    """Return the results of earlier runs that the search of `spec` uses. Pure.

    First the widths of their fronts in the search's range, as many as a quarter of its trials, spread over it, the
    largest first. And the results of trials that the search could have proposed itself, of runs that calibrated and
    trained as it does.
    """
    fronts = [known for run in runs for known in _front(run, space)]
    own = {(known.method, *sorted(known.widths.items()), *sorted(known.settings.items())): known for known in fronts}
    points = [(1 - known.accuracy, math.log(space.fraction_of(known))) for known in own.values()]
    chosen = [list(own.values())[index] for index in spread(points, max(1, spec.search.trials // 4))]
    return Earlier(
        first=tuple(sorted(chosen, key=lambda known: (-space.fraction_of(known), known.run, known.trial_id))),
        observed=tuple(
            known
            for run in runs
            if run.identity == now and _alike(run.spec, spec)
            for known in _complete(run, space)
            if known.method in space.methods and known.allocation in space.allocations
        ),
    )


def to_json(earlier: Earlier) -> dict[str, Any]:
    """Plain data that `from_json` reads back to an equal one."""
    return {name: [asdict(known) for known in getattr(earlier, name)] for name in ("first", "observed")}


def from_json(content: Mapping[str, Any]) -> Earlier:
    """Return the argument of `to_json` from its result."""
    first, observed = (tuple(EarlierResult(**known) for known in content[name]) for name in ("first", "observed"))
    return Earlier(first=first, observed=observed)


def told(earlier: Earlier, runs: Sequence[str]) -> str:
    """A line for the user."""
    taken = f"{len(earlier.first)} widths proposed first, {len(earlier.observed)} results told to the sampler"
    return f"Warm start from {', '.join(runs)}: {taken}."


def _check_same(run: EarlierRun, now: Identity) -> None:
    for what, its, ours, hint in (
        ("network", run.identity.architecture, now.architecture, "The model's code, name or arguments are others."),
        (
            "data",
            run.identity.data,
            now.data,
            f"Files, max_images or normalisation are others, or the validation split, which the seed draws (its: "
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
    fields = ("rungs", "calibration_images", "eval_batch_size", "min_channels", "multiple_of")
    same = all(getattr(its.search, name) == getattr(ours.search, name) for name in fields)
    trained = its.finalists.train == ours.finalists.train or ours.search.rungs[-1] == 0
    return same and trained and its.seed == ours.seed and its.exclude == ours.exclude


def _front(run: EarlierRun, space: SearchSpace) -> list[EarlierResult]:
    """Return the non-dominated candidates of the run in the range, as this search would propose them."""
    inside = [k for k in _complete(run, space) if space.lowest <= space.fraction_of(k) <= space.highest]
    best = [inside[index] for index in non_dominated([(1 - k.accuracy, space.fraction_of(k)) for k in inside])]
    return [known for known in best if known.method in space.methods and RATIOS in space.allocations]


def _complete(run: EarlierRun, space: SearchSpace) -> list[EarlierResult]:
    return [
        EarlierResult(
            run=run.name,
            trial_id=trial.trial_id,
            method=trial.proposal.method,
            settings=dict(trial.proposal.settings),
            allocation=trial.proposal.allocation,
            target=trial.proposal.target.fractions[space.target],
            keep_ratios=dict(trial.proposal.keep_ratios),
            widths=trial.candidate.widths,
            accuracy=trial.metrics.accuracy,
            flops_fraction=trial.metrics.flops_fraction,
            params_fraction=trial.metrics.params_fraction,
            latency_fraction=trial.metrics.latency_fraction,
        )
        for trial in run.trials
        if trial.proposal.stage is Stage.SEARCH
        and trial.proposal.step is None
        and trial.state is TrialState.COMPLETE
        and trial.candidate is not None
        and trial.metrics is not None
        and getattr(trial.metrics, f"{space.target}_fraction") is not None
    ]
