"""A run of thousands of trials, made up: as large and as mixed as a long search on ResNet-50 leaves it.

    python jobs/benchmarks/long_run.py RUN --trials 5000

For looking at the page, for its bars and its tests. Accuracies follow a law of diminishing widths plus noise; failures,
rungs, repeats, latencies and GPU-seconds are there as a real run has them. No network is in it.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from typing import Any

from raprune.records import Candidate, Metrics, Proposal, Setting, Stage, Trial, TrialState
from raprune.spec.budget import Budget
from raprune.store.folder import Store
from raprune.store.record import RunRecord

STARTED_AT = 1_795_000_000.0
DENSE_ACCURACY = 0.7613
DENSE_FLOPS = 8_178_000_000
DENSE_PARAMS = 25_557_032
DENSE_MS = 7.9
BUDGET = 0.5
WORKERS = 16
PART = 250
"""Trials in one part of the store."""

BLOCKS = ((3, 64), (4, 128), (6, 256), (3, 512))
"""ResNet-50's stages: blocks, and channels of each block's first two convolutions."""

GAINS = {
    "reconstruction": 0.06,
    "taylor": 0.04,
    "slimming": 0.05,
    "local_bn": 0.045,
    "fpgm": 0.02,
    "l1": 0.015,
    "random": 0.0,
}
"""Method -> how much of the accuracy that a cut costs it keeps."""

ERROR = """ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.3.17, ID: 5b1f) where the task was running was 61.0GB / 64.0GB (0.95)
Refer to the documentation on how to address the out of memory issue."""


def groups() -> dict[str, int]:
    """Group name -> channels, in the network's order."""
    named = {"conv1": 64}
    for stage, (blocks, channels) in enumerate(BLOCKS, start=1):
        for block in range(blocks):
            named[f"layer{stage}.{block}.conv1"] = channels
            named[f"layer{stage}.{block}.conv2"] = channels
        named[f"layer{stage}.residual"] = 4 * channels
    return named


def make_run(
    folder: Path | str, *, trials: int = 5000, seed: int = 0, finished: bool = False, error: str = ERROR
) -> Store:
    """Writes a run of so many trials into `folder`; `error` is what its failed ones say."""
    store = Store(folder)
    store.create(RunRecord.model_validate(run_file(trials, finished=finished)))
    made = make_trials(trials, seed=seed, error=error)
    for first in range(0, len(made), PART):
        store.append(made[first : first + PART])
    return store


def run_file(trials: int, *, finished: bool) -> dict[str, Any]:
    """The content of `run.json`."""
    return {
        "spec": {
            "model": {"name": "resnet50"},
            "data": {"name": "imagenet"},
            "budget": {"flops": BUDGET},
            "max_drop": 0.03,
            "methods": [name for name in GAINS if name not in ("l1", "random")],
            "search": {"trials": round(trials * 0.8), "rungs": [0.0, 0.5, 2.0]},
            "finalists": {"count": 12, "seeds": 3},
        },
        "state": "finished" if finished else "searching",
        "created_at": STARTED_AT,
        "started_at": STARTED_AT,
        **({"finished_at": STARTED_AT + 60.0 * trials} if finished else {}),
        "dense": {
            "val_accuracy": DENSE_ACCURACY,
            "val_loss": 0.96,
            "val_images": 50_000,
            "flops": DENSE_FLOPS,
            "macs": DENSE_FLOPS // 2,
            "params": DENSE_PARAMS,
        },
        "latency": {"device": "NVIDIA A10G", "batch_size": 32, "precision": "float16", "dense_ms": DENSE_MS},
        "graph": {"groups": groups(), "frozen": [["fc", 1000, "the network's output"]], "notes": []},
    }


def make_trials(count: int, *, seed: int = 0, error: str = ERROR) -> list[Trial]:
    """So many trials, in the order of their records: searches, their rungs, at last three fine-tunings of the best."""
    draw = random.Random(seed)
    finalists = min(12, count // 20)
    searched: list[Trial] = []
    clock = 0.0
    number = 0
    while len(searched) < count - 3 * finalists:
        clock += draw.expovariate(WORKERS / 90)
        chain = _chain(number, draw, STARTED_AT + clock, error=error)
        searched += chain[: count - 3 * finalists - len(searched)]
        number += 1
    best = sorted((t for t in searched if t.state is TrialState.COMPLETE), key=_value, reverse=True)[:finalists]
    ends = STARTED_AT + clock
    tuned = [
        _fine_tuned(trial, number + place, repeat, draw, ends + 1800.0 * place)
        for place, trial in enumerate(best)
        for repeat in range(3)
    ]
    return [*searched, *tuned]


def _chain(number: int, draw: random.Random, now: float, *, error: str) -> list[Trial]:
    """One proposal's trials: at rung 0, and as far as it came."""
    method = draw.choices(list(GAINS), weights=(5, 4, 3, 3, 2, 1, 1))[0]
    settings = _settings(method, draw)
    target = BUDGET * draw.betavariate(3.0, 1.4)
    proposal = {
        "number": number,
        "method": method,
        "allocation": draw.choice(("global_rank", "least_damage", "ratios", "uniform")),
        "target": Budget(flops=target),
        "settings": settings,
        "seed": draw.randrange(2**31),
    }
    if draw.random() < 0.012:
        failed = Proposal(**proposal)  # type: ignore[arg-type]
        return [
            Trial(
                trial_id=failed.trial_id,
                proposal=failed,
                state=TrialState.FAILED,
                error=error,
                seconds=draw.uniform(5, 60),
                started_at=now,
            )
        ]
    widths = _widths(target, draw)
    kept = {name: tuple(range(width)) for name, width in widths.items()}
    candidate = Candidate(method, kept, settings)
    last = draw.choices((0, 1, 2), weights=(62, 26, 12))[0]
    luck = draw.gauss(0.0, 0.014)
    chain: list[Trial] = []
    for rung in range(last + 1):
        made = Proposal(**proposal, rung=rung, parent=chain[-1].trial_id if chain else None)  # type: ignore[arg-type]
        epochs = (0.0, 0.5, 2.0)[rung]
        chain.append(
            Trial(
                trial_id=made.trial_id,
                proposal=made,
                state=TrialState.COMPLETE if rung == 2 else TrialState.STOPPED,
                candidate=candidate,
                metrics=_metrics(widths, target, method, epochs, luck, draw),
                accuracy_after_cut=max(0.001, draw.gauss(0.05, 0.03)),
                accuracy_after_repair=draw.uniform(0.2, 0.5),
                epochs=epochs,
                seconds=(20.0, 240.0, 900.0)[rung] * draw.uniform(0.7, 1.4),
                gpu_seconds=(20.0, 240.0, 900.0)[rung] * draw.uniform(0.7, 1.4),
                started_at=now + 400.0 * rung,
                worker=f"10.0.3.{draw.randrange(4, 20)}:{draw.randrange(1000, 9000)}",
            )
        )
    return chain


def _fine_tuned(trial: Trial, number: int, repeat: int, draw: random.Random, now: float) -> Trial:
    assert trial.candidate is not None and trial.metrics is not None
    made = Proposal(
        number=number,
        method=trial.proposal.method,
        allocation=trial.proposal.allocation,
        target=Budget(flops=trial.proposal.target.flops),
        settings=trial.proposal.settings,
        stage=Stage.FINETUNE,
        parent=trial.trial_id,
        repeat=repeat,
    )
    gain = 0.5 * max(0.0, DENSE_ACCURACY - trial.metrics.accuracy) + draw.gauss(0.0, 0.002)
    return Trial(
        trial_id=made.trial_id,
        proposal=made,
        state=TrialState.COMPLETE,
        candidate=trial.candidate,
        metrics=Metrics(**{**vars(trial.metrics), "accuracy": trial.metrics.accuracy + gain}),
        epochs=22.0,
        seconds=9000.0,
        gpu_seconds=72_000.0,
        started_at=now,
        worker="10.0.3.4:4711",
    )


def _settings(method: str, draw: random.Random) -> dict[str, Setting]:
    if method == "reconstruction":
        return {
            "form": draw.choice(("block", "map")),
            "ridge": 10 ** draw.uniform(-7, -2),
            "sensitivity": round(draw.uniform(0.0, 1.5), 3),
            "target": draw.choice(("asymmetric", "symmetric")),
            "error_budget": round(draw.uniform(0.2, 1.0), 3),
        }
    if method in ("slimming", "local_bn"):
        return {"strength": 10 ** draw.uniform(-5, -2), "sparse_epochs": float(draw.choice((5, 10, 20)))}
    return {}


def _widths(target: float, draw: random.Random) -> dict[str, int]:
    """Narrower early than late, about as the target asks."""
    share = math.sqrt(target)
    return {
        name: max(4, min(channels, round(channels * min(1.0, share * draw.uniform(0.7, 1.3)))))
        for name, channels in groups().items()
    }


def _metrics(
    widths: dict[str, int], target: float, method: str, epochs: float, luck: float, draw: random.Random
) -> Metrics:
    # What training gives back, and what the method had kept.
    lost = (0.7, 0.5, 0.36)[(0.0, 0.5, 2.0).index(epochs)] - GAINS[method]
    accuracy = DENSE_ACCURACY * (1 - lost * (1 - target) ** 2) * (0.55 if epochs == 0 else 0.97) + luck
    fraction = target * draw.uniform(0.97, 1.0)
    params = sum(widths.values()) / sum(groups().values())
    latency = min(1.0, 0.25 + 0.75 * fraction + draw.gauss(0.0, 0.02))
    return Metrics(
        accuracy=min(0.999, max(0.001, accuracy)),
        loss=1.0 + 2.0 * (1 - accuracy),
        flops=round(fraction * DENSE_FLOPS),
        params=round(params * DENSE_PARAMS),
        flops_fraction=fraction,
        params_fraction=params,
        latency_ms=latency * DENSE_MS,
        latency_fraction=latency,
    )


def _value(trial: Trial) -> float:
    assert trial.metrics is not None
    return trial.metrics.accuracy - 0.15 * trial.metrics.flops_fraction


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--finished", action="store_true")
    given = parser.parse_args()
    print(make_run(given.run, trials=given.trials, finished=given.finished).name)
