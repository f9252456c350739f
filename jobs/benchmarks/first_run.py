"""The first command of a newcomer: `uv run --group dev python jobs/benchmarks/first_run.py`.

Clones the repository's last commit into a folder of its own and runs `uv run raprune search --budget-flops 0.3` there,
as the README says, once for each seed; the first one installs the environment, from a cache of packages. The bars:

* the first command, from the clone to its last line;
* at least 40 candidates of at least five methods, those of the papers among them;
* the network with the star: of a method of the papers, within the budget, within half a point of the dense network on
  at least 2,000 test images, at least 1.8 times as fast at the large batch;
* the best of the papers' networks ahead of `random` and `l1` by more than two standard errors after repair, and not
  behind after fine-tuning (validation accuracy, within the budget);
* no network of the front worse than its repaired self.

With `--here` the command runs in this environment, without a clone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bar import show

from raprune.records import Stage, TrialState
from raprune.results.front import standard_error, within
from raprune.results.rows import CandidateRow
from raprune.results.run_results import RunResults, read_run_results
from raprune.spec.job import BASELINES
from raprune.store.folder import Store

ROOT = Path(__file__).parent.parent.parent
PAPERS = ("reconstruction", "local_bn", "auto_balanced", "maxout", "binary_search")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default 3)")
    parser.add_argument("--here", action="store_true", help="in this environment, without a clone")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the runs in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(arguments.keep or scratch).absolute()
        for seed in range(arguments.seeds):
            run = runs / f"seed{seed}"
            began = time.perf_counter()
            place, command, others = ROOT, [sys.executable, "-m", "raprune"], tuple[str, ...]()
            if not arguments.here:
                others = ("VIRTUAL_ENV", "PYTHONPATH")  # they would have another environment used than the clone's
                place, command = Path(scratch) / "raprune", ["uv", "run", "raprune"]
                if seed == 0:
                    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place)], check=True)
            given = ["search", "--budget-flops", "0.3", "--output", str(run), "--set", f"statistics={run}/statistics"]
            environment = {name: value for name, value in os.environ.items() if name not in others}
            subprocess.run([*command, *given, "--seed", str(seed)], check=True, cwd=place, env=environment)
            seconds = time.perf_counter() - began
            print(f"\nseed {seed}")
            show("wall time of the command", figure=seconds, bar=90, unit="s", more_is_better=False)
            check(read_run_results(Store(run)))


def check(results: RunResults) -> None:
    """Print the bars of a finished run."""
    tried = [t for t in results.trials if t.proposal.stage is Stage.SEARCH and t.state is TrialState.COMPLETE]
    methods = {trial.proposal.method for trial in tried}
    show("candidates", figure=len(tried), bar=40, unit="candidates", more_is_better=True)
    show("methods", figure=len(methods), bar=5, unit=f"methods ({', '.join(sorted(methods))})", more_is_better=True)
    star = results.chosen
    assert star is not None and star.test_accuracy is not None and star.dense_test_accuracy is not None
    print(f"star: {star.candidate} by {star.method}  {'met' if star.method in PAPERS else 'missed'}")
    show("its cost", figure=star.flops_fraction, bar=0.3, unit="of the FLOPs", more_is_better=False)
    drop = 100 * (star.dense_test_accuracy - star.test_accuracy)
    show(f"its drop on {results.test.images} test images", figure=drop, bar=0.5, unit="points", more_is_better=False)
    for timing in results.times.conditions:
        speedup = timing.speedup(star.candidate)
        if timing is results.times.batch and speedup is not None:
            where = f"its speed at batch {timing.batch_size}, {timing.where}"
            show(where, figure=speedup, bar=1.8, unit="times the dense network's", more_is_better=True)
        else:
            print(f"its speed at batch {timing.batch_size}, {timing.where}: {speedup or float('nan'):.2f} times")
    _compare(results)
    _show_worse(results)


def _compare(results: RunResults) -> None:
    """The papers against the controls, repaired and fine-tuned."""
    rows = within(results.rows, results.budget)
    for stage, errors in ((Stage.SEARCH, 2.0), (Stage.FINETUNE, 0.0)):
        best = {method: _best(rows, stage, (method,)) for method in BASELINES}
        paper = _best(rows, stage, PAPERS)
        for control, row in best.items():
            margin = errors * standard_error(row.val_accuracy, results.run.val_images)
            show(
                f"{paper.method} ({100 * paper.val_accuracy:.2f} %) against {control} "
                f"({100 * row.val_accuracy:.2f} %) after {'repair' if stage is Stage.SEARCH else 'fine-tuning'}",
                figure=100 * (paper.val_accuracy - row.val_accuracy),
                bar=100 * margin,
                unit="points",
                more_is_better=True,
            )


def _best(rows: list[CandidateRow], stage: Stage, methods: tuple[str, ...]) -> CandidateRow:
    return max(
        (row for row in rows if row.stage == stage.value and row.method in methods),
        key=lambda row: row.val_accuracy,
    )


def _show_worse(results: RunResults) -> None:
    """Networks of the front that a fine-tuning made worse, and how many finalists it made worse at all."""
    repaired = {t.trial_id: t.metrics.accuracy for t in results.trials if t.metrics is not None}
    tuned = [t for t in results.trials if t.proposal.stage is Stage.FINETUNE and t.metrics is not None]
    worse = {t.trial_id for t in tuned if t.metrics and t.metrics.accuracy < repaired[t.proposal.parent or ""]}
    on_front = [row for row in results.front if row.trial_id in worse]
    show(
        "networks of the front worse than repaired", figure=len(on_front), bar=0, unit="networks", more_is_better=False
    )
    print(f"finalists that fine-tuning made worse: {len(worse)} of {len(tuned)}")


if __name__ == "__main__":
    main()
