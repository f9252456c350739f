"""What a search finds in equal wall time: `uv run python jobs/benchmarks/search_quality.py`.

ResNet-20 on CIFAR-10 (JPEG), from the checkpoint and the data in the folder that RAPRUNE_DATA names; budget 50 % of the
FLOPs, candidates down to 5 %, cut and repaired, no fine-tuning. Every arm is one `raprune search` in a process of its
own, with its own folder of statistics. Its time begins when the run does: statistics and the workers' start are in it,
and trials that ended after it do not count. Arms of a seed have the same validation split (5,000 images) and the same
calibration images; `random` and `l1` are tried by every arm, as by every search, on a quarter of its first trials.

* `warm`: the product as it is, on the methods that refit by least squares: `reconstruction`, `thinet`, `lasso`.
* `tpe`: the same without warm starts and without changes of the front: TPE over methods, allocations, widths and
  hyper-parameters.
* `gp`: as `warm`, with Optuna's Gaussian process in the place of the mutations and of TPE.
* `tpe_ratios`: as `tpe`, widths by TPE alone.
* `random_l1`, `random`: widths drawn at random, with L1 or with the methods of `warm`.
* `uniform_l1`: every group cut alike, L1; only the target varies.
* `global`: global ranking of every baseline that needs no training, each in turn.

Two figures, both of the front on the validation split. *Hypervolume*: share of the area between (error 0, no FLOPs) and
(error 1, the budget) that it dominates. *Mean accuracy*: of the best network within a budget, over budgets from an
eighth to a half of the FLOPs on a logarithmic scale; where there is none, chance. It leaves out the ends, which any
search fills.

A line a run goes to `--results`, and what stands there is not run again at the same commit. The table is written to
`search_quality.md` beside this file, with a row for each arm, duration, validation split and commit; rows that were not
measured by these runs stay as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from bar import commit, show

from raprune import pareto
from raprune.records import Stage, Trial, TrialState
from raprune.spec.job import SearchSpec
from raprune.spec.toml import load_spec
from raprune.store.folder import Store

JOB = Path(__file__).parents[1] / "resnet20_cifar10.toml"
TABLE = Path(__file__).with_name("search_quality.md")
SEARCH = """
import contextlib, sys
from raprune.errors import Terminated
from raprune.orchestration.search import search
from raprune.spec.job import SearchSpec
with contextlib.suppress(Terminated):
    search(SearchSpec.model_validate_json(sys.argv[1]))
"""
SLACK_S = 15.0
"""Time after the search's own in which the records of its last trials arrive."""
BUDGET = 0.5
LOWEST = 0.125
CHANCE = 0.1
BASELINES = ("activation", "apoz", "fpgm", "l1", "l2", "lasso", "random", "taylor", "thinet")

COMMON: dict[str, Any] = {
    "budget.flops": BUDGET,
    "search.smallest": 0.1,
    "search.trials": 10_000,
    "finalists.count": 0,
    "resources.workers": 2,
    "methods": ["reconstruction", "thinet", "lasso"],
}
WITHOUT = {"search.warm_starts": False}
ARMS: dict[str, dict[str, Any]] = {
    "warm": {},
    "gp": {"search.sampler": "gp"},
    "tpe": {"search.sampler": "tpe", **WITHOUT},
    "tpe_ratios": {"search.sampler": "tpe", "allocations": ["ratios"], **WITHOUT},
    "random_l1": {"search.sampler": "random", "allocations": ["ratios"], "methods": ["l1"], **WITHOUT},
    "random": {"search.sampler": "random", "allocations": ["ratios"], **WITHOUT},
    "uniform_l1": {"search.sampler": "random", "allocations": ["uniform"], "methods": ["l1"], **WITHOUT},
    "global": {"search.sampler": "random", "allocations": ["global_rank"], "methods": list(BASELINES), **WITHOUT},
}


@dataclass(frozen=True)
class Result:
    """One run."""

    arm: str
    seed: int
    minutes: float
    trials: int
    """Complete ones within the time."""
    hypervolume: float
    mean_accuracy: float
    front: list[tuple[float, float]]
    """`(error, fraction of the FLOPs)`, by ascending FLOPs."""
    by_method: dict[str, float]
    """Mean accuracy of each method's own front."""
    statistics_s: float
    """Of the time, before the first trial began."""
    machine: str
    validation: float = 0.1
    """Fraction of the training split."""
    commit: str = ""
    date: str = ""

    @property
    def setting(self) -> tuple[str, int, float, float, str]:
        """Runs of the same setting are not run twice."""
        return self.arm, self.seed, self.minutes, self.validation, self.commit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="wall time of a run (default 10)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="default all")
    parser.add_argument("--results", type=Path, default=Path("runs/search_quality.jsonl"), help="a line a run")
    parser.add_argument("--table-only", action="store_true", help="run nothing, write the table")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training split (default 0.1)")
    arguments = parser.parse_args()
    results = _read(arguments.results)
    for seed in arguments.seeds:
        for arm in [] if arguments.table_only else arguments.arms:
            setting = (arm, seed, arguments.minutes, arguments.validation, commit())
            if not any(r.setting == setting for r in results):
                results.append(run(arm, seed=seed, minutes=arguments.minutes, validation=arguments.validation))
                _append(arguments.results, results[-1])
    chosen = [r for r in results if r.minutes == arguments.minutes and r.arm in arguments.arms]
    chosen = [r for r in chosen if r.seed in arguments.seeds and r.validation == arguments.validation]
    TABLE.write_text(table(chosen, before=TABLE.read_text() if TABLE.exists() else ""))
    print(f"wrote {TABLE.name}")
    chosen = [r for r in chosen if r.commit == commit()]
    ours = {r.seed: r for r in chosen if r.arm == "warm"}
    for arm in [arm for arm in arguments.arms if arm != "warm"]:
        theirs = [r for r in chosen if r.arm == arm and r.seed in ours]
        for figure in ("hypervolume", "mean_accuracy") if theirs else ():
            least = min(getattr(ours[r.seed], figure) - getattr(r, figure) for r in theirs)
            show(f"warm - {arm}, least of {len(theirs)} seeds", figure=least, bar=0.0, unit=figure, more_is_better=True)


def run(arm: str, *, seed: int, minutes: float, validation: float) -> Result:
    """One search, and what it found in its time."""
    with tempfile.TemporaryDirectory() as folder:
        fields = COMMON | ARMS[arm] | {"search.time_limit_s": 60 * minutes, "statistics": f"{folder}/statistics"}
        # The test split is nobody's business here.
        fields |= {"data.test": None, "seed": seed, "output": f"{folder}/run"}
        fields |= {"data.validation_fraction": validation}
        spec = load_spec(JOB, fields)
        store = Store(f"{folder}/run")
        search_for(spec, store, minutes)
        result = judged(arm, seed, minutes, store.trials(), store.run())
        result = replace(result, validation=validation, commit=commit(), date=f"{datetime.now(UTC):%Y-%m-%d}")
    print(
        f"{arm}, seed {seed}, {minutes:g} minutes: {result.trials} trials, hypervolume {result.hypervolume:.4f}, "
        f"mean accuracy {result.mean_accuracy:.2%}",
        flush=True,
    )
    return result


def search_for(spec: SearchSpec, store: Store, minutes: float) -> None:
    """Search in a process of its own, and end it `SLACK_S` after its time: what would follow is not judged.

    Raises:
        RuntimeError: if the search failed.
    """
    process = subprocess.Popen([sys.executable, "-c", SEARCH, spec.model_dump_json()], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(1.0)
        if store.is_run() and time.time() > float(store.run()["started_at"]) + 60 * minutes + SLACK_S:
            process.terminate()
            process.wait()
            return
    if process.returncode != 0:
        raise RuntimeError(f"the search ended with {process.returncode}")


def judged(arm: str, seed: int, minutes: float, trials: Sequence[Trial], described: dict[str, Any]) -> Result:
    """What a run's trials come to."""
    began = float(described["started_at"])
    in_time = [
        trial
        for trial in trials
        if trial.state is TrialState.COMPLETE
        and trial.proposal.stage is Stage.SEARCH
        and trial.started_at + trial.seconds <= began + 60 * minutes
    ]
    points = [_point(trial) for trial in in_time]
    methods = sorted({trial.proposal.method for trial in in_time})
    return Result(
        arm=arm,
        seed=seed,
        minutes=minutes,
        trials=len(in_time),
        hypervolume=pareto.hypervolume(points, (1.0, BUDGET + 1e-9)) / BUDGET,
        mean_accuracy=mean_accuracy(points),
        front=sorted((points[i] for i in pareto.non_dominated(points)), key=lambda point: point[1]),
        by_method={m: mean_accuracy([_point(t) for t in in_time if t.proposal.method == m]) for m in methods},
        statistics_s=min(trial.started_at for trial in in_time) - began if in_time else math.nan,
        machine=described["machine"],
    )


def mean_accuracy(points: Sequence[tuple[float, float]]) -> float:
    """Of the best network within a budget, over budgets from `LOWEST` to `BUDGET` on a logarithmic scale."""
    span = math.log2(BUDGET / LOWEST)
    scaled = [(error, max(0.0, math.log2(cost / LOWEST))) for error, cost in points]
    return CHANCE + pareto.hypervolume(scaled, (1 - CHANCE, span + 1e-9)) / span


def _point(trial: Trial) -> tuple[float, float]:
    assert trial.metrics is not None
    return 1 - trial.metrics.accuracy, trial.metrics.flops_fraction


HEADER = (
    "| arm | minutes | validation | seeds | hypervolume | mean accuracy, % | trials | commit | date | machine |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
BY_METHOD = "Mean accuracy of each method's own front in `global`, %: "


def table(results: Sequence[Result], *, before: str) -> str:
    """The Markdown file: rows of `results`, and those of the file `before` that are of other settings."""
    rows = {_key(line): line for line in before.splitlines() if line.startswith("| ") and line not in HEADER}
    known = [line for line in before.splitlines() if line.startswith(BY_METHOD)]
    ordered = sorted(results, key=_group)
    rows |= {_key(line): line for line in (_row(list(own)) for _, own in groupby(ordered, _group))}
    ranked = [r for r in results if r.arm == "global"]
    if ranked:
        names = sorted({name for r in ranked for name in r.by_method})
        means = {name: _mean([100 * r.by_method.get(name, CHANCE) for r in ranked]) for name in names}
        each = ", ".join(f"{name} {mean:.1f}" for name, mean in sorted(means.items(), key=lambda item: -item[1]))
        known = [f"{BY_METHOD}{each}."]
    lines = [
        "# What a search finds in equal wall time: ResNet-20 on CIFAR-10 (JPEG)",
        "",
        "Made by `jobs/benchmarks/search_quality.py`, whose docstring says what the arms and the figures are. Mean "
        "over the seeds, with the least and the most; validation is a fraction of the training split.",
        "",
        *HEADER,
        *sorted(rows.values(), key=lambda row: (row.split(" | ")[1:3], -float(row.split("**")[1]))),
        *(["", *known] if known else []),
    ]
    return "\n".join(lines) + "\n"


def _group(result: Result) -> tuple[str, float, float, str]:
    return result.arm, result.minutes, result.validation, result.commit


def _key(row: str) -> tuple[str, ...]:
    """Arm, minutes, validation and commit of a row."""
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    return cells[0], cells[1], cells[2], cells[7]


def _row(own: Sequence[Result]) -> str:
    first = own[0]
    seeds = ", ".join(str(r.seed) for r in sorted(own, key=lambda r: r.seed))
    cells = [
        *(first.arm, f"{first.minutes:g}", f"{first.validation:g}", seeds),
        _told([r.hypervolume for r in own], 4),
        _told([100 * r.mean_accuracy for r in own], 2),
        f"{_mean([r.trials for r in own]):.0f}",
        *(first.commit, max(r.date for r in own), "; ".join(sorted({r.machine for r in own}))),
    ]
    return f"| {' | '.join(cells)} |"


def _told(values: Sequence[float], digits: int) -> str:
    return f"**{_mean(values):.{digits}f}** ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _read(path: Path) -> list[Result]:
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _append(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("RAPRUNE_DATA", str(Path(__file__).parents[3] / "shared" / "data"))
    main()
