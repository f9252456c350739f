"""Commands that print a run: status, front, comparison of methods, pick, list of runs. No torch, no ray."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from rich.console import Console

from raprune.records import Trial
from raprune.report.display import line
from raprune.report.formats import duration
from raprune.report.run_table import render_runs
from raprune.report.summary import compared, summary, ways_told
from raprune.report.tables import render_ablation, render_progress, render_rows
from raprune.results.ablation import ablation
from raprune.results.cuts import best_by_cuts
from raprune.results.front import budget_of, front_of, listed, measured_in, pick, starred
from raprune.results.progress import progress
from raprune.results.rows import CandidateRow, candidates
from raprune.results.run_list import list_runs
from raprune.results.siblings import compare_siblings, read_siblings
from raprune.results.stages import read_stages
from raprune.results.test_split import UNTESTED, read_test
from raprune.results.timings import Times, read_times, with_times
from raprune.spec.budget import Budget
from raprune.spec.job import SearchSpec
from raprune.store.address import public_address
from raprune.store.folder import Store
from raprune.store.record import DenseRecord, RunRecord


def print_status(uri: str, *, console: Console, as_json: bool = False) -> None:
    """Print the progress of the run."""
    store = Store(uri)
    run = store.record()
    now, stages = progress(run, store.trials()), read_stages(store, run)
    if as_json:
        told = {"stages": None if stages is None else stages.to_json()}
        console.out(json.dumps({"state": run.state} | now.to_json() | told, indent=2), highlight=False)
        return
    print_warnings(run.warnings, console=console)
    console.print(render_progress(now))
    if stages is not None and stages.current is not None:
        ago = max(0.0, time.time() - stages.written_at)
        console.print(f"{line(stages)}  (reported {duration(ago)} ago)", markup=False, highlight=False, soft_wrap=True)
    if run.state is not None and not run.finished:
        console.print(
            f"Not finished. To resume it if no process works on it: raprune resume {store.name}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def print_runs(uri: str, *, console: Console, as_json: bool = False) -> None:
    """Print the runs in a folder, newest first."""
    runs = list_runs(uri)
    if as_json:
        console.out(json.dumps([run.to_json() for run in runs], indent=2), highlight=False)
        return
    console.print(render_runs(runs, now=time.time(), width=console.width), soft_wrap=True)
    lines = [f"{run.name}: not readable: {run.error} {run.hint}".rstrip() for run in runs if run.error is not None]
    idle = next((run for run in runs if run.state == "idle"), None)
    if idle is not None:
        lines.append(
            f"idle: not finished, and no process works on it. To resume such a run: raprune resume {idle.place}"
        )
    lines.append(f"To see their fronts in one chart: raprune serve {public_address(uri)}")
    for told in lines:
        console.print(told, markup=False, highlight=False, soft_wrap=True)


def print_front(uri: str, *, console: Console, as_json: bool = False, everything: bool = False) -> None:
    """Print the front within the run's budget, or every candidate."""
    store = Store(uri)
    run, trials = store.record(), store.trials()
    test, times = read_test(store, trials), read_times(store, trials)
    known = candidates(trials, test=test)
    rows = with_times(starred(known, run) if everything else listed(known, run), times)
    if as_json:
        console.out(json.dumps([row.to_json() for row in rows], indent=2), highlight=False)
    else:
        print_warnings(run.warnings, console=console)
        for row in rows:
            if row.starred:
                console.print(summary(row, run, times), highlight=False, markup=False)
        console.print(render_rows(rows, run, test, times=times, width=console.width))
        for comparison in compare_siblings(read_siblings(store), front_of(rows, budget_of(run))):
            style = "yellow" if comparison.is_beaten else ""
            console.print(compared(comparison, run), style=style, markup=False, highlight=False)
        if told := ways_told(best_by_cuts(known)):
            console.print(told, highlight=False, markup=False)
        _print_blocks(rows, console)
        for sentence in run.left_out:
            console.print(sentence, style="yellow", markup=False, highlight=False, soft_wrap=True)
        _print_next(store, console, next((row.candidate for row in rows if row.starred), None))


def print_ablation(uri: str, *, console: Console, as_json: bool = False) -> None:
    """Print the comparison of the methods: the best network of each at each budget, after equal fine-tuning."""
    store = Store(uri)
    run, trials = store.record(), store.trials()
    rows = ablation(trials, budget_of(run), test=read_test(store, trials))
    if as_json:
        console.out(json.dumps([row.to_json() for row in rows], indent=2), highlight=False)
    else:
        console.print(render_ablation(rows, run, width=console.width))


def print_pick(
    uri: str,
    budget: Budget,
    *,
    console: Console,
    min_accuracy: float | None = None,
    as_json: bool = False,
) -> None:
    """Print the best candidate of the run under another budget, without new work."""
    store = Store(uri)
    run, trials = store.record(), store.trials()
    test, times = read_test(store, trials), read_times(store, trials)
    rows = with_times(starred(candidates(trials, test=test), run), times)
    row = pick(rows, measured_in(budget, run), min_accuracy=min_accuracy)
    if as_json:
        console.out(json.dumps(row.to_json(), indent=2), highlight=False)
        return
    console.print(render_rows([row], run, test, times=times, width=console.width))
    _print_blocks([row], console)
    hint = f"To export it: raprune export {store.name} {row.candidate} FOLDER"
    console.print(hint, highlight=False, markup=False, soft_wrap=True)


def print_single(
    trial: Trial,
    spec: SearchSpec,
    *,
    dense_accuracy: float,
    console: Console,
    warnings: Sequence[str] = (),
    metric: str = "accuracy",
) -> None:
    """Print one network that was pruned without a search by its `metric`, and the dense network with its `warnings`."""
    print_warnings(warnings, console=console)
    assert trial.metrics is not None
    dense = DenseRecord(
        val_accuracy=dense_accuracy,
        flops=round(trial.metrics.flops / trial.metrics.flops_fraction),
        params=round(trial.metrics.params / trial.metrics.params_fraction),
    )
    run = RunRecord(spec=spec.model_dump(mode="json"), dense=dense, metric=metric)
    rows = with_times(candidates([trial]), Times())
    console.print(render_rows(rows, run, UNTESTED, width=console.width))
    _print_blocks(rows, console)


def _print_blocks(rows: Sequence[CandidateRow], console: Console) -> None:
    """Print the residual blocks that went, for each network that lacks some."""
    for row in rows:
        if row.identity:
            told = f"Blocks that went in {row.candidate}: {', '.join(row.identity)}"
            console.print(told, markup=False, highlight=False, soft_wrap=True)


def print_warnings(warnings: Sequence[str], *, console: Console) -> None:
    """Print warnings about a dense network."""
    for sentence in warnings:
        console.print(f"Warning: {sentence}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _print_next(store: Store, console: Console, network: str | None) -> None:
    """Print the run's folder and the next commands; `network` is the name of the starred network."""
    lines = [f"Run: {store.name}"]
    if store.exists("report/front.html"):
        lines.append(f"Page: {store.name}/report/front.html")
    if network is not None:
        lines.append(f"To export the starred network: raprune export {store.name} {network} DIR")
    lines.append(f"To compare the methods: raprune front {store.name} --ablation")
    lines.append(f"To pick under another budget, without new work: raprune pick {store.name} --budget-flops 0.2")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
