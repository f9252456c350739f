"""What Ray Tune costs a candidate, and what a second actor gains: `uv run python jobs/benchmarks/overhead.py`.

Two kinds of candidates, of 0.2 s or more each. *Computing* ones are those of a search of a CIFAR ResNet-20 (data in
the folder that RAPRUNE_DATA names): they show what Tune costs real work. Two of them also share the machine's memory
and its processor's units, so the gain of a second actor stands beside the gain of a second bare process, which is all
that the machine has to give. *Waiting* ones (`waiting.py`) sleep: what they lose with a second actor, Tune lost.

By turns, so that a busy machine bends all sides alike: the same candidates in a plain Python loop in this process, a
search with one actor, a search with two. One thread for a candidate everywhere. Only the steady part of a search is
timed: from the end of the first candidate of the last actor to join, to the end of the last one while all actors are
busy. Ray's start, the actors' start and the report are not in it.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from bar import show
from rich.console import Console

from raprune.orchestration.search import search
from raprune.pruning.preparation import Prepared, prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import build_workload
from raprune.records import Proposal, Trial
from raprune.spec.job import SearchSpec
from raprune.spec.toml import load_spec
from raprune.store.folder import Store

HERE = Path(__file__).parent
COMPUTING = HERE.parent / "resnet20_cifar10.toml"


@dataclass(frozen=True)
class Figures:
    """Medians over the turns, in seconds a candidate."""

    loop: float
    one: float
    two: float
    processes: float
    """Two bare processes, each with the loop."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=96, help="candidates of a search (default 96)")
    parser.add_argument("--images", type=int, default=500, help="validation images of a candidate (default 500)")
    parser.add_argument("--repeats", type=int, default=2, help="turns (default 2)")
    parser.add_argument("--only", choices=("computing", "waiting"), help="one kind of candidates")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    # The workers import the network that waits by its name.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    jobs = {
        "computing": load_spec(COMPUTING, _computing(arguments.trials, arguments.images)),
        "waiting": load_spec(None, _waiting(arguments.trials)),
    }
    for kind, job in jobs.items():
        if arguments.only not in (None, kind):
            continue
        found = measure(kind, job, repeats=arguments.repeats)
        show(f"a {kind} candidate in the loop", figure=found.loop, bar=0.2, unit="s", more_is_better=True)
        ratio = found.one / found.loop
        show(f"{kind}: through Tune against the loop", figure=ratio, bar=1.15, unit="x time", more_is_better=False)
        gain, most = found.one / found.two, found.loop / found.processes
        print(f"{kind}: two bare processes against one: {most:.3g} x throughput")
        show(f"{kind}: two actors against one", figure=gain, bar=1.9, unit="x throughput", more_is_better=True)


def measure(kind: str, job: SearchSpec, *, repeats: int) -> Figures:
    """All sides by turns."""
    prepared = prepare(job)
    turns: list[Figures] = []
    for turn in range(repeats):
        alone = run_search(job, workers=1)
        proposals = [trial.proposal for trial in alone]
        pair = run_search(job, workers=2)
        if len({trial.worker for trial in pair}) < 2:
            raise SystemExit(f"{len(pair)} candidates were done before the second actor worked: use more --trials.")
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            each = list(pool.map(loop, [job] * 2, [prepared] * 2, [proposals] * 2))
        now = Figures(
            loop=loop(job, prepared, proposals),
            one=seconds_per_candidate(alone),
            two=seconds_per_candidate(pair),
            processes=1 / sum(1 / seconds for seconds in each),
        )
        turns.append(now)
        print(
            f"{kind}, turn {turn + 1}: {now.loop:.3f} s a candidate in a loop, {now.processes:.3f} s in two, "
            f"{now.one:.3f} s with one actor, {now.two:.3f} s with two; "
            f"{own_share(alone):.1%} of one actor's time is the candidates' own",
            flush=True,
        )
    return Figures(*(statistics.median(values) for values in zip(*map(astuple, turns), strict=True)))


def _computing(trials: int, images: int) -> dict[str, object]:
    return {
        "data.max_images": 2 * images,
        "data.validation_fraction": 0.5,
        "data.test": None,
        "search.trials": trials,
        "search.sampler": "random",
        "search.calibration_images": max(64, images // 4),
        "finalists.count": 0,
    }


def _waiting(trials: int) -> dict[str, object]:
    return {
        "model.name": "waiting:network",
        "dense.epochs": 0.0,
        "search.trials": trials,
        "search.sampler": "random",
        "search.calibration_images": 64,
        "finalists.count": 0,
    }


def run_search(job: SearchSpec, *, workers: int) -> list[Trial]:
    """A fresh search by so many actors; its trials in the order of their numbers."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/run"
        resources = job.resources.model_copy(update={"workers": workers})
        search(job.model_copy(update={"output": uri, "resources": resources}), console=Console(file=io.StringIO()))
        return sorted(Store(uri).trials(), key=lambda trial: trial.proposal.number)


def loop(job: SearchSpec, prepared: Prepared, proposals: Sequence[Proposal]) -> float:
    """Seconds a candidate in a plain loop over the proposals, the first one not counted."""
    torch.set_num_threads(1)
    workload = build_workload(job, data=prepared.data, device="cpu", weights=prepared.weights)
    pruner = Pruner(workload, prepared.graph, job)
    pruner.prune(proposals[0])
    started = time.perf_counter()
    for proposal in proposals[1:]:
        pruner.prune(proposal)
    return (time.perf_counter() - started) / (len(proposals) - 1)


def seconds_per_candidate(trials: Sequence[Trial]) -> float:
    """Wall time a candidate in the steady part of a search."""
    ends: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        ends[trial.worker].append(trial.started_at + trial.seconds)
    # An actor is busy from its first candidate's end to its last one's; all are between these two.
    first, last = max(map(min, ends.values())), min(map(max, ends.values()))
    # Each actor's rate is counted between its own candidates, so that none is cut in two.
    rate = sum(_rate([end for end in sorted(times) if first <= end <= last]) for times in ends.values())
    return 1 / rate


def _rate(ends: Sequence[float]) -> float:
    return (len(ends) - 1) / (ends[-1] - ends[0])


def own_share(trials: Sequence[Trial]) -> float:
    """The share of an only actor's time, after its first candidate, that lies inside candidates."""
    ordered = sorted(trials, key=lambda trial: trial.started_at)
    ends = [trial.started_at + trial.seconds for trial in ordered]
    return sum(trial.seconds for trial in ordered[1:]) / (ends[-1] - ends[0])


if __name__ == "__main__":
    main()
