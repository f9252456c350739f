"""Answers of the page: plain data from the known state of a run. Pure: nothing is read here.

NaN and infinity (of a training that diverged) become None, because JSON has neither.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raprune.page.feed import Away, KnownRun
from raprune.page.overview import KnownRuns
from raprune.records import Trial
from raprune.results.front import floor_of, front_of, measured_in, pick
from raprune.results.progress import Progress
from raprune.results.rows import COSTS
from raprune.results.run_list import ListedRun
from raprune.results.stages import RunStages
from raprune.spec.toml import load_limits
from raprune.store.address import without_secrets
from raprune.store.rows import target_columns

# A JSON edge: what the page's server sends.
Answer = dict[str, Any]

_OF_TRIAL = ("state", "accuracy_after_cut", "accuracy_after_repair", "epochs", "seconds", "gpu_seconds", "started_at")
_OF_PROPOSAL = ("number", "stage", "rung", "repeat", "cuts", "parent", "step", "method", "allocation")
_OF_METRICS = (
    "flops_fraction",
    "params_fraction",
    "latency_fraction",
    "latency_ms",
    "memory_fraction",
    "memory_bytes",
    "flops",
    "params",
    "zeros",
)

COLUMNS = (
    "trial_id",
    "candidate",
    "network",
    *_OF_PROPOSAL,
    "target_flops",
    "settings",
    "val_accuracy",
    "val_loss",
    *_OF_METRICS,
    *_OF_TRIAL,
    "test_accuracy",
    "worker",
    "error",
    "eligible",
)
"""Fields of the answer of `describe_trial`."""


_LIMITS = {
    "flops": "budget.flops",
    "params": "budget.params",
    "latency": "budget.latency",
    "memory": "budget.memory",
    "min_accuracy": "min_accuracy",
}
"""Parameter of `pick_row` -> the field of a job with the same meaning."""


def describe_run(known: KnownRun, away: Away | None, stages: RunStages | None, *, name: str) -> Answer:
    """The run: its job, its dense network and its progress."""
    run, budget = known.run, known.budget
    dense = {} if run.dense is None else run.dense.to_json()
    answer = {
        "name": name,
        "store": known.name,
        "generation": known.generation,
        "state": run.state,
        "live": known.pulse.live,
        "stopped": run.stopped,
        "warnings": [without_secrets(sentence) for sentence in run.warnings],
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "spec": without_secrets(run.spec),
        "metric": run.metric,
        "dense": dense
        | {
            "test_accuracy": known.test.dense,
            "latency_ms": None if run.latency is None else run.latency.dense_ms,
            "widths": run.graph.groups,
        },
        "budget": budget.fractions,
        "cost": budget.cost,
        "floor": floor_of(run),
        "groups": list(run.graph.groups),
        "frozen": run.graph.frozen,
        "methods": {method: run.job.settings.get(method, {}) for method in run.job.methods},
        "data": run.data.to_json() or None,
        "latency": None if run.latency is None else run.latency.to_json(),
        "test": known.test.to_json(),
        "measured": known.times.to_json(),
        "machine": run.machine,
        "versions": run.versions,
        "progress": describe_progress(known),
        "stages": describe_stages(stages),
        "away": None if away is None else asdict(away),
    }
    return dict(plain(answer))


def list_runs(known: KnownRuns, folder: str, id_of: Callable[[ListedRun], str]) -> Answer:
    """The runs of a folder as a list, without their fronts."""
    away = None if known.away is None else asdict(known.away)
    rows = [run.to_json() | {"id": id_of(run), "hint": run.hint} for run in known.runs]
    return dict(without_secrets(plain({"name": folder, "away": away, "runs": rows})))


def list_fronts(run: ListedRun, run_id: str) -> Answer:
    """The fronts of one run: cost -> its networks, by ascending FLOPs. Empty for a run that cannot be read."""
    fronts = {} if run.summary is None else run.summary.fronts
    rows = {cost: [network.model_dump(mode="json") for network in networks] for cost, networks in fronts.items()}
    return {"id": run_id, "fronts": plain(rows)}


def describe_progress(known: KnownRun) -> Answer:
    """The progress of the run (`raprune.results.progress.Progress`) and the number of recorded trials."""
    now: Progress = known.progress
    best = now.best
    if best is not None:
        # The same row with the measured times of its network.
        best = next((row for row in known.rows if row.candidate == best.candidate), best)
    return dict(
        plain(now.to_json() | {"best": None if best is None else best.to_json(), "recorded": len(known.trials)})
    )


def describe_stages(stages: RunStages | None) -> Answer:
    """The stages as `raprune.results.stages.RunStages`; no stages if none were written."""
    return dict(without_secrets(plain((stages or RunStages()).to_json())))


def list_trials(known: KnownRun, after: int) -> Answer:
    """The trials by column, from position `after` in the order of their records."""
    rows = [describe_trial(trial, known) for trial in known.trials[after:]]
    return {
        "generation": known.generation,
        "total": len(known.trials),
        "after": after,
        "complete": known.complete,
        "columns": {name: [row[name] for row in rows] for name in COLUMNS},
    }


def describe_trial(trial: Trial, known: KnownRun) -> Answer:
    """One trial as the row of a table."""
    proposal, metrics, candidate = trial.proposal, trial.metrics, trial.candidate
    row = {
        "trial_id": trial.trial_id,
        "candidate": None if candidate is None else trial.name,
        "network": None if candidate is None else trial.network,
        **{name: getattr(proposal, name) for name in _OF_PROPOSAL},
        "target_flops": target_columns(proposal.target)["target_flops"],
        "settings": json.dumps(plain(proposal.settings)),
        "val_accuracy": None if metrics is None else metrics.accuracy,
        "val_loss": None if metrics is None else metrics.loss,
        **{name: None if metrics is None else getattr(metrics, name) for name in _OF_METRICS},
        **{name: getattr(trial, name) for name in _OF_TRIAL},
        "test_accuracy": known.test.candidates.get(trial.network) if trial.trial_id in known.counting else None,
        "worker": trial.worker,
        "error": None if trial.error is None else without_secrets(trial.error),
        "eligible": trial.counts,
    }
    return {name: plain(value) for name, value in row.items()}


def detail_trial(
    trial: Trial, known: KnownRun, *, curves: Mapping[str, Sequence[Any]], folder: str | None, size: int | None
) -> Answer:
    """Everything on one trial. `curves`: training by trial id; `folder` of its stored network, of `size` bytes."""
    proposal, candidate = trial.proposal, trial.candidate
    row = next((r for r in known.rows if trial.trial_id in r.trials), None)
    own = {
        "settings": dict(proposal.settings),
        "candidate_settings": None if candidate is None else dict(candidate.settings),
        "widths": None if candidate is None else candidate.widths,
        "identity": None if candidate is None else list(candidate.identity),
        "keep_ratios": dict(proposal.keep_ratios),
        "target_params": proposal.target.params,
        "target_latency": proposal.target.latency,
        "target_memory": proposal.target.memory,
        "seed": proposal.seed,
        "folder": folder,
    }
    history = [
        {
            "trial_id": other.trial_id,
            **{name: getattr(other.proposal, name) for name in ("stage", "rung", "repeat", "cuts", "step")},
            "state": other.state,
            "epochs": other.epochs,
            "val_accuracy": None if other.metrics is None else other.metrics.accuracy,
            "error": None if other.error is None else without_secrets(other.error),
            "relation": relation,
        }
        for other, relation in relatives(trial, known.trials)
    ]
    exported = None
    if trial.counts:
        named = trial.network if trial.trial_id in known.counting else trial.trial_id
        exported = f"raprune export {shlex.quote(known.name)} {named} FOLDER"
    answer = {
        "trial": describe_trial(trial, known) | own,
        "row": None if row is None else row.to_json(),
        "history": history,
        "curve": curves.get(trial.trial_id, []),
        "curves": {name: curve for name, curve in curves.items() if name != trial.trial_id},
        "download": None if folder is None else download_links(trial.trial_id, size),
        "export": exported,
    }
    return dict(plain(answer))


def download_links(name: str, size: int | None) -> Answer:
    """Return the download links of a stored network, relative to the page."""
    files = {"recipe": "recipe.json", "weights": "weights.safetensors"}
    links = {what: f"download/{name}/{file}" for what, file in files.items()}
    return links | {"zip": f"download/{name}.zip", "bytes": size}


def relatives(trial: Trial, trials: Sequence[Trial]) -> list[tuple[Trial, str]]:
    """Return the trial's ancestors, oldest first, the trial with its siblings, and the trials that continue it."""
    known = {other.trial_id: other for other in trials}
    ancestors: list[Trial] = []
    parent = known.get(trial.proposal.parent or "")
    while parent is not None and parent not in ancestors and parent is not trial:
        ancestors.insert(0, parent)
        parent = known.get(parent.proposal.parent or "")
    beside = [other for other in trials if other is trial or _is_sibling(other, trial)]
    descendants: list[Trial] = []
    todo = [trial.trial_id]
    while todo:
        name = todo.pop(0)
        found = [t for t in trials if t.proposal.parent == name and t not in descendants and t not in ancestors]
        descendants += [t for t in found if t is not trial]
        todo += [t.trial_id for t in found if t is not trial]
    return [
        *((other, "ancestor") for other in ancestors),
        *((other, "self" if other is trial else "sibling") for other in beside),
        *((other, "descendant") for other in descendants),
    ]


def list_rows(known: KnownRun) -> Answer:
    """The candidates by column, by ascending FLOPs; a trial is its position in the order of the records.

    `trial` represents the candidate; `repeats` are the trials behind its accuracies. `on_front` names each cost for
    which the candidate is on the front within the run's budget. `list_trials` has the other values of the trials.
    """
    fronts = {cost: {row.candidate for row in front_of(known.rows, known.budget, cost=cost)} for cost in COSTS}
    return {
        "generation": known.generation,
        "total": len(known.trials),
        "trial": [known.positions[row.trial_id] for row in known.rows],
        "repeats": [[known.positions[name] for name in row.trials] for row in known.rows],
        "val_accuracy": plain([row.val_accuracy for row in known.rows]),
        "val_interval": plain([row.val_interval for row in known.rows]),
        "test_accuracy": plain([row.test_accuracy for row in known.rows]),
        "on_front": [[cost for cost, names in fronts.items() if row.candidate in names] for row in known.rows],
        "starred": [row.starred for row in known.rows],
    }


def list_history(known: KnownRun) -> Answer:
    """Return the history of the run: its progress after each trial."""
    columns = ("t_s", "gpu_hours", "hours", "hypervolume", "best")
    return {
        "total": len(known.trials),
        **{name: [plain(getattr(point, name)) for point in known.history] for name in columns},
    }


def list_ablation(known: KnownRun) -> Answer:
    """The methods side by side."""
    return {"rows": plain([row.to_json() for row in known.ablation])}


def pick_row(known: KnownRun, wanted: Mapping[str, str]) -> Answer:
    """The row that `raprune pick` prints. `wanted` maps `flops`, `params`, `latency` and `min_accuracy` to text.

    An empty text sets no limit.

    Raises:
        UsageError: if a text is not a valid limit.
        RapruneError: if no network is within the limits.
    """
    given = {field: text for name, field in _LIMITS.items() if (text := wanted.get(name, "").strip())}
    limits = load_limits(given)
    picked = pick(known.rows, measured_in(limits.budget, known.run), min_accuracy=limits.min_accuracy)
    return dict(plain(picked.to_json()))


def find_trial(known: KnownRun, name: str) -> Trial | None:
    """The trial of that id, or the one whose network has that name; None if there is none.

    The name is looked up and never becomes a path.
    """
    position = known.positions.get(name)
    if position is not None:
        return known.trials[position]
    return next((t for t in known.trials if t.trial_id in known.counting and t.network == name), None)


def plain(value: Any) -> Any:
    """The value as JSON data: NaN and infinity become None, tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def _is_sibling(one: Trial, other: Trial) -> bool:
    """True if the trials continue one network, by seeds or numbers of cuts, or are networks of one path."""
    a, b = one.proposal, other.proposal
    return (a.stage, a.number, a.rung, a.parent) == (b.stage, b.number, b.rung, b.parent)
