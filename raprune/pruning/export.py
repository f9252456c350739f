"""One network without Ray: `raprune prune` makes it, `raprune export` writes one that a run found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from safetensors.numpy import load as load_arrays

from raprune.cost.latency import LatencyTable
from raprune.cost.measure import measure_table, table_key
from raprune.errors import RapruneError, StoreError, UsageError
from raprune.pruning.artifact import provenance, save, trial_provenance
from raprune.pruning.preparation import (
    DENSE,
    InStages,
    Prepared,
    check_writable,
    prepare,
    stored_table,
    with_fast_widths,
    with_table,
)
from raprune.pruning.prune import Pruner, Result
from raprune.pruning.record import check_not_trained
from raprune.pruning.workload import Workload, build_workload, train_dense
from raprune.records import Candidate, Proposal, Stage, Trial
from raprune.results.rows import candidates
from raprune.results.stages import FINETUNE, JUDGE_DENSE, LAYER_TIMES, PRUNE, TRAIN_DENSE, Stages
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from raprune.store.networks import RECIPE, copy_network, find_network
from raprune.store.record import RunRecord
from raprune.store.scores import Statistics
from raprune.training.evaluate import Evaluation, evaluate
from raprune.training.loop import Epoch


@dataclass(frozen=True)
class Single:
    """One condensed network, and the dense one beside it."""

    trial: Trial
    dense_accuracy: float
    """Validation accuracy of the dense network."""
    warnings: tuple[str, ...] = ()
    """Warnings about the dense network, one sentence or more each."""


def prune_once(
    spec: SearchSpec,
    *,
    method: str,
    allocation: str,
    folder: str | None = None,
    finetune: bool = False,
    stages: Stages | None = None,
    examine: Callable[[Workload, Evaluation], Sequence[str]] | None = None,
) -> Single:
    """Prune the network of `spec` once, to its budget; with `folder`, write recipe and weights there.

    A network without weights is trained first. `stages` follows. `examine` gives the warnings about the dense network,
    from its evaluation on the validation split.

    Raises:
        UsageError: if a name or a setting is wrong or the budget is out of reach; nothing was trained then.
        StoreError: if `folder` holds a recipe already or cannot be written.
    """
    store = None if folder is None else Store(folder)
    if store is not None:
        if store.exists(RECIPE):
            raise StoreError(f"{store.name} holds a {RECIPE} already.", hint="Give another folder.")
        check_writable(store)
    asked = spec.model_copy(update={"methods": (method,), "allocations": (allocation,)})
    stages, device = stages or Stages(), _device()
    prepared, statistics = prepare(asked, InStages(stages)), _statistics(asked)
    spec = prepared.spec if device == "cpu" else with_fast_widths(asked, prepared.spec, prepared.cost)
    workload = build_workload(spec, data=prepared.data, device=device, weights=prepared.weights)
    if spec.budget.limits_latency:
        stages.begin(LAYER_TIMES)
        spec, prepared = with_table(spec, prepared, _table(workload, prepared, spec, statistics))
    if spec.weights is None:
        stages.begin(TRAIN_DENSE, total=math.ceil(spec.dense.epochs), unit="epochs")
        train_dense(workload, spec, on_epoch=partial(_tell_epoch, stages))
    stages.begin(JUDGE_DENSE)
    dense = evaluate(
        workload.model,
        workload.validation,
        batch_size=spec.search.eval_batch_size,
        precision=spec.search.eval_precision,
    )
    warnings = () if examine is None else tuple(examine(workload, dense))
    pruner = Pruner(
        workload,
        prepared.graph,
        spec,
        statistics=statistics,
        latency=prepared.cost.table,
        on_work=lambda work: stages.hear([work]),
    )
    proposal = Proposal(
        number=0,
        method=method,
        settings=spec.settings.get(method, {}),
        allocation=allocation,
        target=spec.budget,
        seed=spec.seed,
    )
    stages.begin(PRUNE)
    if finetune:
        start = pruner.made_again(proposal)
        train = spec.finalists.train.decided()
        stages.begin(FINETUNE, total=math.ceil(train.epochs), unit="epochs")
        tell = partial(_tell_epoch, stages)
        result = pruner.finetune(proposal, proposal, train, start=start, on_epoch=tell)
    else:
        result = pruner.prune(proposal)
    if store is not None:
        _save(store, result, pruner, spec)
    stages.end()
    return Single(result.trial, dense.accuracy, warnings)


def _tell_epoch(stages: Stages, epoch: Epoch) -> None:
    stages.update(done=epoch.number, detail=f"training accuracy {epoch.accuracy:.2%}")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network of a run that was written to a folder of its own."""

    network: str
    """Its name in the run."""
    trial_id: str
    val_accuracy: float
    """Accuracy of this network on the validation split, as the run recorded it."""
    is_stored: bool
    """True if the run has its weights; else they were made again."""


def export(
    run: str, name: str, folder: str, *, stages: Stages | None = None, tell: Callable[[str], None] = print
) -> Exported:
    """Write `recipe.json` and `weights.safetensors` of one network of a run to `folder`.

    `name` is the network's, its unambiguous beginning, or a trial's id. A network whose weights are in the run is
    copied; a repaired one without them is made again from the dense network, which gives the same weights. `tell`
    hears of that before it begins, and `stages` follows.

    Raises:
        UsageError: if the run has no such network, or several that begin so.
        StoreError: if the run cannot be read, or `folder` holds a recipe already.
        RapruneError: if the network has to be made again, and data or dense network are not there any more.
    """
    source, target = Store(run), Store(folder)
    described, trials = source.record(), source.trials()
    if target.exists(RECIPE):
        raise StoreError(f"{target.name} holds a {RECIPE} already.", hint="Give another folder.")
    trial = _find(source, trials, name)
    found = find_network(source, trial)
    if found is not None:
        copy_network(source, found, target, "")
    else:
        check_not_trained(trial)
        tell(
            f"Making {trial.network} again from the dense network (trial {trial.trial_id}, {trial.proposal.method}): "
            "its weights are not stored in the run."
        )
        _make_again(source, described, trial, target, stages or Stages())
    assert trial.metrics is not None, "a complete trial has metrics"
    return Exported(
        network=trial.network,
        trial_id=trial.trial_id,
        val_accuracy=trial.metrics.accuracy,
        is_stored=found is not None,
    )


def _find(store: Store, trials: Sequence[Trial], wanted: str) -> Trial:
    """The complete trial whose network is wanted."""
    complete = {trial.trial_id: trial for trial in trials if trial.counts}
    # Of several trials that came to one candidate, the one that stands for it; then each repeat by its own name.
    named = {row.candidate: complete[row.trial_id] for row in candidates(trials)}
    named |= {trial.network: trial for trial in complete.values() if trial.proposal.stage is Stage.FINETUNE}
    exact = named.get(wanted) or complete.get(wanted)
    beginning = sorted(network for network in named if wanted and network.startswith(wanted))
    if exact is not None or len(beginning) == 1:
        return exact or named[beginning[0]]
    some = ", ".join(beginning or [trial.network for trial in list(complete.values())[-5:]]) or "none yet"
    raise UsageError(
        f"network {wanted!r}: {'several networks' if beginning else 'no network'} of this run "
        f"{'begin' if beginning else 'begins'} so.",
        hint=f"Give one of: {some}"
        if beginning
        else f"`raprune front {store.name}` lists those of the front. Some of the run's: {some}.",
    )


def _make_again(store: Store, described: RunRecord, trial: Trial, target: Store, stages: Stages) -> None:
    """Write the network of a repaired candidate, made from the dense network once more."""
    spec = SearchSpec.model_validate(described.spec)
    try:
        pruner = _pruner_of_run(store, spec, described, stages)
        stages.begin(PRUNE)
        model = pruner.repaired_again(trial)
    except RapruneError as error:
        raise RapruneError(
            f"{trial.network} cannot be made again: {error.message}",
            hint=f"{error.hint} The networks in {store.name}/models need no data.",
        ) from error
    _save(target, Result(trial, model), pruner, spec)


def _pruner_of_run(store: Store, spec: SearchSpec, described: RunRecord, stages: Stages) -> Pruner:
    prepared = prepare(spec, InStages(stages), recorded=described)
    now, before = prepared.data.fingerprint, described.data.fingerprint
    if before not in (None, now):
        raise StoreError(
            f"the data changed since the run began (fingerprint {before}, now {now}).",
            hint="Bring the data back as they were.",
        )
    weights = dict(load_arrays(store.read_bytes(DENSE)))
    workload = build_workload(spec, data=prepared.data, device=_device(), weights=weights)
    # Beside the run at its present place; another user may own that, and it may be read-only.
    here = spec.model_copy(update={"output": store.uri})
    statistics = Statistics(Store(here.statistics_folder), writes=False)
    table = stored_table(store)
    return Pruner(
        workload, prepared.graph, spec, statistics=statistics, latency=table, on_work=lambda work: stages.hear([work])
    )


def _table(workload: Workload, prepared: Prepared, spec: SearchSpec, statistics: Statistics) -> LatencyTable:
    """Fingerprint from the folder of statistics, else computed here."""
    device = workload.device.type
    arrays = statistics.once(
        table_key(prepared.graph, spec.latency, device=device),
        lambda: measure_table(workload.model, prepared.graph, spec.latency, device=device).to_arrays(),
    )
    return LatencyTable.from_arrays(arrays)


def _statistics(spec: SearchSpec) -> Statistics:
    """Statistics in memory, unless the job names a folder: nothing is written that nobody asked for."""
    return Statistics(Store(spec.statistics) if spec.statistics else None)


def _save(store: Store, result: Result, pruner: Pruner, spec: SearchSpec) -> None:
    save(
        store,
        "",
        model=result.model,
        graph=pruner.graph,
        candidate=_candidate(result),
        provenance=provenance(spec, pruner.workload.data) | trial_provenance(result.trial),
    )


def _candidate(result: Result) -> Candidate:
    return result.trial.channels


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
