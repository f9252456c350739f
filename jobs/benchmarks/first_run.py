"""The first command of a newcomer, timed and checked: `uv run python jobs/benchmarks/first_run.py`.

Runs `raprune search --budget-flops 0.3` (the bundled digits) into a fresh folder, as a process of its own; with `--job`
another search, whose bars are the same but for `--seconds` and `--drop`. What it found is read from the run's folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bar import show

from raprune.front import front
from raprune.report import read_test
from raprune.store import Store
from raprune.trial import Stage, Trial, TrialState

COMMAND = [sys.executable, "-c", "from raprune.cli import main; main()", "search"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", help="a TOML job (default: the bundled digits)")
    parser.add_argument("--budget-flops", type=float, default=0.3, help="fraction that may remain (default 0.3)")
    parser.add_argument("--seconds", type=float, default=90.0, help="bar of the wall time (default 90)")
    parser.add_argument(
        "--drop", type=float, default=1.0, help="bar of the loss, in points of test accuracy (default 1)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "run")
        command = [*COMMAND, *([arguments.job] if arguments.job else [])]
        started = time.perf_counter()
        subprocess.run([*command, "--budget-flops", str(arguments.budget_flops), "--output", uri], check=True)
        seconds = time.perf_counter() - started
        check(Store(uri), arguments.budget_flops, seconds=seconds, bar_s=arguments.seconds, bar_drop=arguments.drop)


def check(store: Store, budget: float, *, seconds: float, bar_s: float, bar_drop: float) -> None:
    """Print the bars of a finished run."""
    trials = store.trials()
    test = read_test(store, trials)
    rows = front(trials, test=test)
    show("wall time", figure=seconds, bar=bar_s, unit="s", more_is_better=False)
    show("candidates evaluated", figure=len(_complete(trials)), bar=60, unit="candidates", more_is_better=True)
    show("front", figure=len(rows), bar=5, unit="networks", more_is_better=True)
    show("largest trial", figure=_largest(trials), bar=budget, unit="of the dense FLOPs", more_is_better=False)
    drops = _drops(rows, budget)
    show("smallest drop within the budget", figure=min(drops), bar=bar_drop, unit="points", more_is_better=False)
    print(f"drop of the network that was chosen on the validation split: {drops[-1]:.3g} points")


def _complete(trials: Sequence[Trial]) -> list[Trial]:
    return [t for t in trials if t.proposal.stage is Stage.SEARCH and t.state is TrialState.COMPLETE]


def _largest(trials: Sequence[Trial]) -> float:
    return max(trial.metrics.flops_fraction for trial in trials if trial.metrics is not None)


def _drops(rows: Sequence[dict[str, Any]], budget: float) -> list[float]:
    """Points of test accuracy that each network within the budget loses; the best on the validation split is last."""
    tested = [row for row in rows if row["flops_fraction"] <= budget and row["test_accuracy"] is not None]
    tested.sort(key=lambda row: row["val_accuracy"])
    return [float(100 * (row["dense_test_accuracy"] - row["test_accuracy"])) for row in tested]


if __name__ == "__main__":
    main()
