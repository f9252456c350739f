"""Factories that the tests share: jobs, search spaces, trials, and runs in a store.

No factory needs torch or Ray. Helpers that train or start processes are modules of their room, beside its tests.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from raprune.pareto import crowding, ranks
from raprune.records import Candidate, Metrics, Proposal, Setting, Stage, Trial, TrialState
from raprune.results.exports import BatchTimes, ExportProof, ProvedFile
from raprune.results.rows import CandidateRow
from raprune.sampling.point import Point
from raprune.sampling.proposals import Proposals
from raprune.sampling.space import RATIOS, SearchSpace
from raprune.spec.budget import Budget
from raprune.spec.job import SamplerSpec, SearchSpec
from raprune.store.folder import Store
from raprune.store.networks import NAMES
from raprune.store.record import RunRecord

# Jobs

SMALL_SEARCH: dict[str, Any] = {
    "model": {"name": "digits-net"},
    "data": {"name": "digits", "max_images": 400},
    "methods": ["l2", "l1", "random"],
    "dense": {"epochs": 2, "lr": 0.1},
    "search": {"trials": 12, "lookahead": 4, "calibration_images": 64},
    "finalists": {"count": 2, "each_method": False, "train": {"epochs": 0.5}},
    "resources": {"workers": 2},
}


def small_search(output: Path, **changes: Any) -> SearchSpec:
    """A job on the digits of a few seconds of work; `changes` replace whole parts of it."""
    return SearchSpec.model_validate({**SMALL_SEARCH, "output": str(output), **changes})


# A search space, and a made-up truth about what the sampler proposes in it

SPACE = SearchSpace(
    methods=("l2", "l1", "random"),
    allocations=(RATIOS, "uniform", "global_rank"),
    blocks=(("a",), ("b", "c"), ("d",)),
    channels={"a": 4, "b": 8, "c": 8, "d": 16},
    lowest=0.1,
    highest=0.3,
    settings={
        "l1": {
            "power": {"low": 0.5, "high": 2.0, "default": 1.0},
            "steps": {"low": 1, "high": 9, "int": True, "default": 3},
        }
    },
)


def outcome(proposal: Proposal) -> Point:
    """A made-up truth: depends on the proposal alone, and every seventh fails."""
    if proposal.number % 7 == 3:
        return Point(trial_id=proposal.trial_id, state=TrialState.FAILED, error="ValueError: no")
    ratios = sum((i + 1) * r for i, r in enumerate(proposal.keep_ratios.values()))
    accuracy = 0.5 + flops_of(proposal) + 0.05 * ratios / (1 + ratios) + 0.01 * len(proposal.method)
    return Point(
        trial_id=proposal.trial_id,
        state=TrialState.COMPLETE,
        candidate=f"c{proposal.number}",
        accuracy=accuracy,
        flops_fraction=flops_of(proposal),
        method=proposal.method,
        widths=widths_of(proposal),
    )


def flops_of(proposal: Proposal) -> float:
    """The FLOPs that the proposal comes up to, as a fraction of the dense network's."""
    assert proposal.target.flops is not None
    return proposal.target.flops


def widths_of(proposal: Proposal) -> dict[str, int]:
    """Number of channels that the proposal keeps of each group."""
    return {
        name: max(1, round(count * proposal.keep_ratios.get(name, flops_of(proposal))))
        for name, count in SPACE.channels.items()
    }


def promoted_by_definition(points: Sequence[tuple[float, float]], keep: float) -> bool:
    """True if the last of `points` is among the best `keep` of them: by rank, then by crowding, then the first."""
    rank = ranks(points)
    ahead = int((rank < rank[-1]).sum())
    distances = crowding([points[i] for i, r in enumerate(rank) if r == rank[-1]])
    ahead += int((distances[:-1] >= distances[-1]).sum())
    return ahead < max(1, math.ceil(keep * len(points) - 1e-9))


def drive(proposals: Proposals, *, workers: int, order: random.Random) -> list[Proposal]:
    """Run a search to its end with this many workers that finish in a random order."""
    done: list[Proposal] = []
    running: list[Proposal] = []
    while not proposals.over:
        while len(running) < workers and (proposal := proposals.next()) is not None:
            running.append(proposal)
        if running:
            finished = running.pop(order.randrange(len(running)))
            proposals.tell(finished.number, outcome(finished))
            done.append(finished)
    return sorted(done, key=lambda p: p.number)


def trial_of(proposal: Proposal) -> Trial:
    """The trial that comes to `outcome(proposal)`."""
    result = outcome(proposal)
    if result.state is TrialState.FAILED:
        return Trial(trial_id=proposal.trial_id, proposal=proposal, state=result.state, error=result.error)
    metrics = Metrics(
        accuracy=result.accuracy,
        loss=1.0,
        flops=10,
        params=10,
        flops_fraction=result.flops_fraction,
        params_fraction=result.params_fraction,
    )
    kept = {name: tuple(range(width)) for name, width in widths_of(proposal).items()}
    candidate = Candidate(method=proposal.method, kept=kept)
    return Trial(
        trial_id=proposal.trial_id, proposal=proposal, state=result.state, candidate=candidate, metrics=metrics
    )


def proposed_trials(count: int) -> list[Trial]:
    """The first trials of a search that waits for none of them."""
    proposals = Proposals(SPACE, SamplerSpec(trials=count, lookahead=count), seed=0)
    return [trial_of(proposal) for proposal in iter(proposals.next, None)]


# A front worked by hand: a dense network of 1000 FLOPs and 100 parameters

FRONT_RUN: dict[str, Any] = {
    "spec": {"budget_flops": 0.3, "budget_params": None, "search": {"trials": 8}, "finalists": {"count": 2}},
    "dense": {"val_accuracy": 0.98, "flops": 1000, "params": 100},
    "started_at": 100.0,
}


def front_trial(
    number: int,
    accuracy: float,
    flops: float,
    *,
    params: float = 0.2,
    stage: Stage = Stage.SEARCH,
    epochs: float = 0.0,
    width: int | None = None,
    method: str = "l2",
    parent: str | None = None,
    step: int | None = None,
    settings: Mapping[str, Setting] | None = None,
    zeros: int = 0,
    seconds: float = 2.0,
) -> Trial:
    """A complete trial. Two trials of one width and `settings` are the same candidate."""
    proposal = Proposal(
        number=number,
        method=method,
        allocation="uniform",
        target=Budget(flops=flops),
        stage=stage,
        parent=parent,
        step=step,
    )
    kept = tuple(range(number + 1 if width is None else width))
    return Trial(
        trial_id=proposal.trial_id,
        proposal=proposal,
        state=TrialState.COMPLETE,
        candidate=Candidate(method, {"conv1": kept}, settings or {}),
        metrics=Metrics(
            accuracy=accuracy,
            loss=0.1,
            flops=round(1000 * flops),
            params=round(100 * params),
            flops_fraction=flops,
            params_fraction=params,
            zeros=zeros,
        ),
        epochs=epochs,
        seconds=seconds,
        started_at=110.0 + 2.0 * number,
    )


def repeats(number: int, accuracies: list[float], *, flops: float, parent: str) -> list[Trial]:
    """One finalist, fine-tuned once for each of the accuracies."""
    first = front_trial(number, 0.0, flops, stage=Stage.FINETUNE, epochs=20, parent=parent)
    found = []
    for repeat, accuracy in enumerate(accuracies):
        proposal = replace(first.proposal, repeat=repeat)
        assert first.metrics is not None
        metrics = replace(first.metrics, accuracy=accuracy)
        found.append(replace(first, trial_id=proposal.trial_id, proposal=proposal, metrics=metrics))
    return found


# A run that has ended, for tables, figures and the report

DENSE = {"val_accuracy": 0.981, "val_images": 288, "flops": 3_412_000, "params": 61_000}
GROUPS = {f"features.{layer}": layer + 8 for layer in range(6)} | {"head<b>": 44}
TIMED = {"device": "AMD EPYC", "threads": 2, "precision": "float32"}


def make_run(folder: Path | str, *, tested: bool = True) -> Store:
    """A run of 40 search trials and 4 fine-tuned ones, with accuracies that grow with the FLOPs."""
    store = Store(folder)
    spec = {
        "model": {"name": "digits-net"},
        "data": {"name": "digits"},
        "budget_flops": 0.3,
        "budget_params": None,
        "methods": ["l2", "l1", "random"],
        "search": {"trials": 40},
        "finalists": {"count": 4},
    }
    store.create(
        RunRecord.model_validate({"finetunings": 4, "spec": spec, "dense": DENSE, "started_at": 1_800_000_000.0})
    )
    random = np.random.default_rng(0)
    for number in range(44):
        finetuned = number >= 40
        fraction = 0.3 - 0.05 * (number - 40) if finetuned else float(random.uniform(0.1, 0.3))
        accuracy = 0.965 + 0.05 * fraction if finetuned else float(0.5 + 1.4 * fraction - random.exponential(0.08))
        proposal = Proposal(
            number=number,
            method=["l2", "l1", "random"][number % 3],
            allocation="ratios",
            target=Budget(flops=fraction),
            settings={"power": 2},
            stage=Stage.FINETUNE if finetuned else Stage.SEARCH,
        )
        kept = {f"features.{layer}": tuple(range(2 + number % (layer + 2))) for layer in range(6)}
        kept["head<b>"] = tuple(range(number + 1))
        metrics = Metrics(
            accuracy=accuracy,
            loss=1 - accuracy,
            flops=round(DENSE["flops"] * fraction),
            params=round(DENSE["params"] * fraction**0.8),
            flops_fraction=fraction,
            params_fraction=fraction**0.8,
        )
        trial = Trial(
            trial_id=proposal.trial_id,
            proposal=proposal,
            state=TrialState.COMPLETE,
            candidate=Candidate(proposal.method, kept, proposal.settings),
            metrics=metrics,
            accuracy_after_cut=max(0.1, accuracy - 0.3),
            accuracy_after_repair=accuracy,
            epochs=20.0 if finetuned else 0.0,
            seconds=0.4,
            started_at=1_800_000_000.0 + 0.5 * number,
        )
        store.append([trial])
        if finetuned and tested:
            known = store.read_json("report/test.json")["candidates"] if store.exists("report/test.json") else {}
            known[trial.network] = accuracy - 0.004
            store.write_json("report/test.json", NAMES | {"dense": 0.9778, "candidates": known, "images": 360})
    return store


def failed_trial(store: Store, number: int, error: str | None) -> Trial:
    """A trial like the run's first one that failed."""
    first = store.trials()[0]
    proposal = replace(first.proposal, number=number)
    return replace(
        first, trial_id=proposal.trial_id, proposal=proposal, state=TrialState.FAILED, metrics=None, error=error
    )


# A run under way, for the page

LIVE_WIDTHS = {"conv1": 16, "conv2": 32, "conv<b>3": 64}
LIVE_RUN: dict[str, Any] = {
    "spec": {
        "model": {"name": "digits-net"},
        "data": {"name": "digits", "train": "s3://key:hush-hush@bucket/train?secret_key=hush-hush&region=x"},
        "budget_flops": 0.3,
        "methods": ["l2", "l1"],
        "search": {"trials": 10},
        "finalists": {"count": 2, "seeds": 2},
    },
    "state": "searching",
    "created_at": 1_800_000_000.0,
    "started_at": 1_800_000_000.0,
    "dense": {"val_accuracy": 0.98, "val_images": 288, "flops": 1_000_000, "params": 50_000},
    "graph": {"groups": LIVE_WIDTHS, "frozen": [["head", 10, "the network's output"]], "notes": []},
}


def live_trial(number: int, *, fraction: float = 0.2, accuracy: float = 0.9, **fields: Any) -> Trial:
    """A complete trial; `fields` are those of its proposal."""
    proposal = Proposal(
        number=number, method=["l2", "l1"][number % 2], allocation="uniform", target=Budget(flops=fraction), **fields
    )
    kept = {group: tuple(range(1 + (number + width) % width)) for group, width in LIVE_WIDTHS.items()}
    metrics = Metrics(
        accuracy=accuracy,
        loss=1 - accuracy,
        flops=round(1e6 * fraction),
        params=round(5e4 * fraction),
        flops_fraction=fraction,
        params_fraction=fraction,
    )
    return Trial(
        trial_id=proposal.trial_id,
        proposal=proposal,
        state=TrialState.COMPLETE,
        candidate=Candidate(proposal.method, kept, proposal.settings),
        metrics=metrics,
        accuracy_after_repair=accuracy,
        epochs=4.0 if proposal.stage is Stage.FINETUNE else 0.0,
        seconds=2.0,
        gpu_seconds=1.0,
        started_at=1_800_000_010.0 + 3 * number,
        worker="node:1",
    )


def live_failure(number: int, error: str) -> Trial:
    """A trial that failed with `error`."""
    proposal = Proposal(number=number, method="l2", allocation="uniform", target=Budget(flops=0.2))
    return Trial(trial_id=proposal.trial_id, proposal=proposal, state=TrialState.FAILED, error=error, seconds=1.0)


def finetuned(parent: Trial, number: int, *, accuracy: float, repeat: int = 0) -> Trial:
    """A finalist that continues `parent`."""
    proposal = replace(parent.proposal, number=number, stage=Stage.FINETUNE, parent=parent.trial_id, repeat=repeat)
    assert parent.metrics is not None
    metrics = replace(parent.metrics, accuracy=accuracy)
    return replace(parent, trial_id=proposal.trial_id, proposal=proposal, metrics=metrics, epochs=4.0)


def make_live_run(folder: Path | str, *, trials: int = 6) -> Store:
    """A run under way: search trials of which one failed, and the best fine-tuned twice, with its networks."""
    store = Store(folder)
    store.create(RunRecord.model_validate(LIVE_RUN))
    searched = [live_trial(n, fraction=0.05 * (n + 1), accuracy=0.8 + 0.02 * n) for n in range(trials - 1)]
    for one in searched:
        store.append([one])
    store.append([live_failure(trials - 1, "RuntimeError: s3://key:hush-hush@bucket is <b>away</b>")])
    best = searched[min(4, trials - 2)]
    for repeat in range(2):
        tuned = finetuned(best, 0, accuracy=0.95 + 0.01 * repeat, repeat=repeat)
        store.write_bytes(f"models/{tuned.network}/weights.safetensors", bytes([repeat]) * 3_000_000)
        recipe = {"format": 1, "trial_id": tuned.trial_id, "repeat": repeat}
        store.write_json(f"models/{tuned.network}/recipe.json", recipe)
        store.write_json(f"curves/{tuned.trial_id}.json", [{"epoch": 1, "train_loss": 0.5}])
        store.append([tuned])
    return store


def make_short_run(folder: Path | str, **fields: Any) -> Store:
    """The trials of `make_live_run` in one part, without networks; `fields` replace some of `run.json`."""
    store = Store(folder)
    store.create(RunRecord.model_validate(LIVE_RUN | fields))
    searched = [live_trial(n, fraction=0.05 * (n + 1), accuracy=0.8 + 0.02 * n) for n in range(5)]
    tuned = [finetuned(searched[4], 0, accuracy=0.95 + 0.01 * repeat, repeat=repeat) for repeat in range(2)]
    store.append([*searched, live_failure(5, "RuntimeError: no memory"), *tuned])
    return store


# A run without a trial, for the coordinator

EMPTY_RUN = {
    "spec": {"budget_flops": 0.3, "search": {"trials": 20}, "finalists": {"count": 0}},
    "dense": {"val_accuracy": 0.9},
    "started_at": 0.0,
}


# A row of a result


def candidate_row(**changes: Any) -> CandidateRow:
    """A repaired candidate at 30 % of the FLOPs, with some of its fields changed."""
    fields: dict[str, Any] = {
        "candidate": "0123456789ab",
        "parent": None,
        "method": "reconstruction",
        "settings": {},
        "allocation": "uniform",
        "stage": Stage.SEARCH,
        "epochs": 0.0,
        "flops": 300,
        "flops_fraction": 0.3,
        "params": 20,
        "params_fraction": 0.2,
        "zeros": 0,
        "latency_ms": None,
        "latency_fraction": None,
        "rung": 0,
        "repeats": (0,),
        "trials": ("search-00000",),
        "val_accuracy": 0.9,
        "trial_id": "search-00000",
    }
    return CandidateRow(**fields | changes)


def export_proof(network: str) -> ExportProof:
    """The proof of a network's ONNX file in float32 and in int8."""
    exact = ProvedFile(
        file="model.onnx",
        format="onnx",
        precision="float32",
        runtime="ONNX Runtime 1.22.0",
        opset=20,
        size_bytes=200_000,
        dense_bytes=800_000,
        max_difference=2e-6,
        relative_difference=1e-7,
        equal_top1=400,
        accuracy=0.9375,
        times=[
            BatchTimes(batch_size=1, dense_ms=0.8, network_ms=0.5),
            BatchTimes(batch_size=32, dense_ms=20.0, network_ms=8.0),
        ],
    )
    rounded = replace(
        exact,
        file="model-int8.onnx",
        precision="int8",
        size_bytes=60_000,
        max_difference=0.8,
        relative_difference=0.04,
        equal_top1=391,
        accuracy=0.925,
        times=[
            BatchTimes(batch_size=1, dense_ms=0.8, network_ms=0.25),
            BatchTimes(batch_size=32, dense_ms=20.0, network_ms=5.0),
        ],
    )
    return ExportProof(
        network=network, images=400, accuracy=0.9375, device="AMD EPYC", threads=2, files=[exact, rounded]
    )


@dataclass
class SavedCheckpoints:
    """Storage that keeps every checkpoint in memory."""

    saved: list[bytes] = field(default_factory=list)

    def load(self) -> bytes | None:
        return self.saved[-1] if self.saved else None

    def is_due(self) -> bool:
        return True

    def save(self, content: bytes) -> None:
        self.saved.append(content)
