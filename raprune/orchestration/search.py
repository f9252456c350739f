"""A search, as users call it: refuse what cannot be, then hand the run over to the driver.

    check the job -> prepare the network -> connect to Ray -> place the workers -> check the nodes -> driver.carry_out

A job is refused before Ray is started, or at the latest before the run's folder is made. `resume` continues from what
the store holds.
"""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from raprune.orchestration.cluster.connect import cluster, node_resources
from raprune.orchestration.cluster.placement import Placement, place, place_resumed
from raprune.orchestration.cluster.scaling import with_room
from raprune.orchestration.run import Run, check_group, check_unchanged, describe, identity, say_job, under_way
from raprune.pruning.preparation import InStages, check_output, prepare, with_fast_widths
from raprune.report.display import shown
from raprune.report.terminal import print_front
from raprune.report.trackers import check_installed
from raprune.results.stages import START_RAY, Stages
from raprune.sampling import optuna_gp, warm_start
from raprune.spec.automatic import decided_as
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store


def search(spec: SearchSpec, *, console: Console | None = None, stages: Stages | None = None) -> str:
    """Run the search of `spec` and return its folder. `stages`: stages that `console` shows already.

    Raises:
        UsageError: if the job cannot be right; nothing was written then.
        RapruneError: if the run failed; its folder holds what was finished.
    """
    console = console or Console()
    store = Store(spec.output)
    check_output(store)
    check_installed(spec.track)
    optuna_gp.check_installed(spec.search)
    with shown(console, stages) as stages:
        asked, prepared = spec, prepare(spec, InStages(stages))
        say_job(console, spec, prepared)
        spec = prepared.spec
        run = Run(spec, store, prepared, console, stages)
        if spec.warm_start:
            warm_start.read(spec.warm_start, identity(prepared, prepared.given_weights))
        stages.begin(START_RAY)
        with cluster(spec.resources.address):
            resources = with_room(spec.resources, console=console)
            placement = place(node_resources(), resources, lookahead=spec.search.lookahead)
            check_group(run)
            # Imported once the cluster's settings are made, as every module that imports Ray.
            from raprune.orchestration import driver

            driver.check_nodes(run)
            run = driver.with_latency(_as_placed(run, asked, placement), placement)
            store.create(describe(run))
            with store.locked():
                driver.carry_out(under_way(run), placement)
    return store.uri


def resume(
    uri: str,
    *,
    console: Console | None = None,
    placed: SearchSpec | None = None,
    stages: Stages | None = None,
) -> str:
    """Resume the run in `uri` from what its store holds, and return its folder.

    `placed`: a job that says where data, weights and cluster are now, if they were moved. It holds the objects of a run
    that was given objects.

    Raises:
        StoreError: if there is no run, or if data, network or code changed since it began.
    """
    console = console or Console()
    store = Store(uri)
    described = store.record()
    # The folder may have been moved, and its URI may hold credentials that were not written into it.
    spec = SearchSpec.model_validate(described.spec | {"output": store.uri})
    if placed is not None:
        spec = _moved(spec, placed)
    if described.finished:
        console.print("The run is finished.")
        print_front(store.uri, console=console)
        return store.uri
    with shown(console, stages) as stages, store.locked():
        prepared = prepare(spec, InStages(stages), recorded=described)
        check_unchanged(store, described, prepared, console)
        run = under_way(Run(prepared.spec, store, prepared, console, stages))
        stages.begin(START_RAY)
        with cluster(spec.resources.address):
            resources = with_room(spec.resources, console=console)
            placement = place_resumed(node_resources(), resources, lookahead=spec.search.lookahead)
            check_group(run)
            from raprune.orchestration import driver

            driver.check_nodes(run)
            driver.carry_out(driver.with_latency(run, placement), placement)
    return store.uri


def search_or_resume(spec: SearchSpec, *, console: Console | None = None, stages: Stages | None = None) -> str:
    """Resume the run in the output of `spec` if it holds one, else begin it; return its folder.

    A resumed run keeps its stored job; fields in which `spec` differs are named and ignored.

    Raises:
        RapruneError: as `search` and `resume`.
    """
    console = console or Console()
    store = Store(spec.output)
    if not store.is_run():
        return search(spec, console=console, stages=stages)
    console.print(f"{store.name} holds a run: resuming it.", markup=False, highlight=False)
    begun = SearchSpec.model_validate(store.record().spec)
    # A field that was left to the run, which has decided it since, is no change of the job.
    asked = decided_as(_looking_ahead(spec, spec.search.lookahead or begun.search.lookahead), begun)
    changed = _differing(_moved(begun, spec), asked)
    if changed:
        console.print(
            f"Resuming the stored job; ignored overrides: {', '.join(changed)}.", markup=False, highlight=False
        )
    return resume(spec.output, console=console, placed=spec, stages=stages)


def _moved(begun: SearchSpec, now: SearchSpec) -> SearchSpec:
    """The job of `begun` with its data, weights, cluster and page where `now` has them."""
    data = {"train": now.data.train, "validation": now.data.validation, "test": now.data.test}
    return begun.model_copy(
        update={
            "model": begun.model.model_copy(update={"weights": now.model.weights}).holding(now.model.given),
            "teacher": begun.teacher.model_copy(update={"weights": now.teacher.weights}),
            "data": begun.data.model_copy(update=data).holding(now.data.given),
            "resources": begun.resources.model_copy(update={"address": now.resources.address}),
            "page": now.page,
        }
    )


def _differing(begun: SearchSpec, now: SearchSpec) -> list[str]:
    """Fields of the job that differ, except where it is written and what it began with."""
    return [
        name
        for name in sorted(set(SearchSpec.model_fields) - {"output", "statistics", "warm_start"})
        if getattr(begun, name) != getattr(now, name)
    ]


def _as_placed(run: Run, asked: SearchSpec, placement: Placement) -> Run:
    """The run with all that its placement decides, so that a resumed run is the same on any other workers."""
    spec = with_fast_widths(asked, run.spec, run.prepared.cost) if placement.gpus else run.spec
    return replace(run, spec=_looking_ahead(spec, spec.search.lookahead_for(placement.workers)))


def _looking_ahead(spec: SearchSpec, lookahead: int | None) -> SearchSpec:
    """The job with that lookahead."""
    return spec.model_copy(update={"search": spec.search.model_copy(update={"lookahead": lookahead})})
