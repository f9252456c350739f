"""One network without a search: `raprune prune` makes it, `raprune export` hands out one that a run found. No Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from safetensors.numpy import load as load_arrays

from raprune.artifact import RECIPE, WEIGHTS, provenance, save, trial_provenance
from raprune.candidate import Candidate
from raprune.errors import StoreError, UsageError
from raprune.evaluate import evaluate
from raprune.latency import LatencyTable
from raprune.preparation import DENSE, InStages, Prepared, check_writable, prepare, stored_table, with_table
from raprune.prune import Pruner, Result
from raprune.spec import SearchSpec
from raprune.stages import FINETUNE, JUDGE_DENSE, LAYER_TIMES, PRUNE, TRAIN_DENSE, Stages
from raprune.statistics import Statistics
from raprune.store import Store
from raprune.timing import measure_table, table_key
from raprune.training import Epoch
from raprune.trial import Proposal, Stage, Trial, TrialState
from raprune.workload import Workload, build_workload, train_dense


@dataclass(frozen=True)
class Single:
    """One condensed network, and the dense one beside it."""

    trial: Trial
    dense_accuracy: float
    """Validation accuracy of the dense network."""


def prune_once(
    spec: SearchSpec,
    *,
    method: str,
    allocation: str,
    folder: str | None = None,
    finetune: bool = False,
    stages: Stages | None = None,
) -> Single:
    """Prune the network of `spec` once, to its budget; with `folder`, write recipe and weights there.

    A network without weights is trained first. `stages` follows.

    Raises:
        UsageError: if a name or a setting is wrong or the budget is out of reach; nothing was trained then.
        StoreError: if `folder` holds a recipe already or cannot be written.
    """
    store = None if folder is None else Store(folder)
    if store is not None:
        if store.exists(RECIPE):
            raise StoreError(f"{store.name} holds a {RECIPE} already.", hint="Give another folder.")
        check_writable(store)
    spec = spec.model_copy(update={"methods": (method,), "allocations": (allocation,)})
    stages = stages or Stages()
    prepared, statistics = prepare(spec, InStages(stages)), _statistics(spec)
    spec = prepared.spec
    workload = build_workload(spec, data=prepared.data, device=_device(), weights=prepared.weights)
    if spec.budget_latency is not None:
        stages.begin(LAYER_TIMES)
        spec, prepared = with_table(spec, prepared, _table(workload, prepared, spec, statistics))
    if spec.weights is None:
        stages.begin(TRAIN_DENSE, total=math.ceil(spec.dense.epochs), unit="epochs")
        train_dense(workload, spec, on_epoch=partial(_tell_epoch, stages))
    stages.begin(JUDGE_DENSE)
    dense = evaluate(workload.model, workload.validation, batch_size=spec.search.eval_batch_size)
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
        target_flops=spec.budget_flops or 1.0,
        target_params=spec.budget_params,
        target_latency=spec.budget.latency,
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
    return Single(result.trial, dense.accuracy)


def _tell_epoch(stages: Stages, epoch: Epoch) -> None:
    stages.update(done=epoch.number, detail=f"training accuracy {epoch.accuracy:.2%}")


def export(run: str, candidate: str, folder: str, *, stages: Stages | None = None) -> str:
    """Write `recipe.json` and `weights.safetensors` of a candidate of a run to `folder`; returns the candidate's id.

    `candidate` is its id, the beginning of it, or a trial's id. One that was trained is copied; any other is made
    again from the dense network, which gives the same weights; `stages` follows.

    Raises:
        UsageError: if the run has no such candidate, or several that begin so.
        StoreError: if the run cannot be read, or `folder` holds a recipe already.
    """
    source, target = Store(run), Store(folder)
    described = source.run()
    if target.exists(RECIPE):
        raise StoreError(f"{target.name} holds a {RECIPE} already.", hint="Give another folder.")
    trial = _find(source, candidate)
    assert trial.candidate is not None
    # Fine-tuned networks lie under their candidate, those of a path under their trial.
    for stored in (f"models/{trial.candidate.id}", f"models/{trial.trial_id}"):
        if source.exists(f"{stored}/{RECIPE}"):
            target.write_bytes(WEIGHTS, source.read_bytes(f"{stored}/{WEIGHTS}"))
            target.write_bytes(RECIPE, source.read_bytes(f"{stored}/{RECIPE}"))
            return trial.candidate.id
    spec = SearchSpec.model_validate(described["spec"])
    stages = stages or Stages()
    pruner = _pruner_of_run(source, spec, stages)
    stages.begin(PRUNE)
    again = pruner.prune(trial.proposal)
    assert again.trial.candidate == trial.candidate, "the same proposal gave other channels"
    _save(target, again, pruner, spec)
    return trial.candidate.id


def _find(store: Store, wanted: str) -> Trial:
    """The furthest trained complete trial of a candidate."""
    complete = [t for t in store.trials() if t.state is TrialState.COMPLETE and t.candidate is not None]
    found = [t for t in complete if t.candidate and (t.candidate.id.startswith(wanted) or t.trial_id == wanted)]
    ids = {t.candidate.id for t in found if t.candidate}
    if len(ids) == 1:
        return max(found, key=lambda t: (t.proposal.stage is Stage.FINETUNE, t.epochs))
    some = ", ".join(dict.fromkeys(t.candidate.id for t in complete[-5:] if t.candidate)) or "none yet"
    raise UsageError(
        f"candidate {wanted!r}: {'several' if ids else 'no'} candidates of this run have an id that begins so.",
        hint=f"`raprune front {store.name}` lists those of the front. Some of the run's: {some}.",
    )


def _pruner_of_run(store: Store, spec: SearchSpec, stages: Stages) -> Pruner:
    prepared = prepare(spec, InStages(stages))
    weights = dict(load_arrays(store.read_bytes(DENSE)))
    workload = build_workload(spec, data=prepared.data, device=_device(), weights=weights)
    # Beside the run where it lies now; it may be another's, and read only.
    here = spec.model_copy(update={"output": store.uri})
    statistics = Statistics(Store(here.statistics_folder), writes=False)
    table = stored_table(store)
    return Pruner(
        workload, prepared.graph, spec, statistics=statistics, latency=table, on_work=lambda work: stages.hear([work])
    )


def _table(workload: Workload, prepared: Prepared, spec: SearchSpec, statistics: Statistics) -> LatencyTable:
    """Measured here, unless the folder of statistics has it."""
    device = workload.device.type
    arrays = statistics.once(
        table_key(prepared.graph, spec.latency, device=device),
        lambda: measure_table(workload.model, prepared.graph, spec.latency, device=device).to_arrays(),
    )
    return LatencyTable.from_arrays(arrays)


def _statistics(spec: SearchSpec) -> Statistics:
    """In memory, unless the job names a folder: one network writes nothing that it was not asked for."""
    return Statistics(Store(spec.statistics) if spec.statistics else None)


def _save(store: Store, result: Result, pruner: Pruner, spec: SearchSpec) -> None:
    save(
        store,
        "",
        model=result.model,
        graph=pruner.graph,
        candidate=_candidate(result),
        provenance=provenance(spec, pruner.workload.data.fingerprint) | trial_provenance(result.trial),
    )


def _candidate(result: Result) -> Candidate:
    assert result.trial.candidate is not None, "a complete trial has one"
    return result.trial.candidate


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
