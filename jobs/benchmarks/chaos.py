"""Random kills in a row, survived: `PYTHONPATH=. uv run python jobs/benchmarks/chaos.py --kills 30 --seed 0`.

Runs of a small job on two nodes of this machine. Now and then one of these is killed by SIGKILL: the driver (which is
then resumed), the coordinator, a worker, a trainer, a task, or the second node (another comes in its place). Each run
has to end with the trials of an undisturbed one, and no recorded trial may be lost or run twice. Every other run
fine-tunes in a group of Ray Train, on both nodes at once.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from bar import show

from raprune.store.folder import Store
from tests.orchestration.chaos import Nodes, Run, Victim, differences, small_job

TRAIN_WORKERS = (0, 2)
"""Of the runs by turns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=24, help="candidates of a run")
    parser.add_argument(
        "--longest",
        type=float,
        default=0.25,
        help="between two kills at most, as a share of what an undisturbed run takes; the mean is half of it. "
        "With few seconds between them a run hardly leaves its dense training (default 0.25)",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raprune-chaos-") as folder:
        root = Path(folder)
        nodes = Nodes(str(root / "nodes"), head_cpus=1, others=[1])
        try:
            show_kills(root, nodes, options)
        finally:
            nodes.shutdown()


def show_kills(root: Path, nodes: Nodes, options: argparse.Namespace) -> None:
    """Run until so many kills were survived, and print what they hit."""
    rng = random.Random(options.seed)
    began = time.monotonic()
    calm = [run_of(root / f"calm-{workers}", nodes, options.trials, workers) for workers in TRAIN_WORKERS]
    for run in calm:
        run.survive([])
    calm_s = (time.monotonic() - began) / len(calm)
    kills: list[str] = []
    began = time.monotonic()
    runs = 0
    while len(kills) < options.kills:
        kind = runs % len(TRAIN_WORKERS)
        run = run_of(root / f"run-{runs}", nodes, options.trials, TRAIN_WORKERS[kind])
        left = options.kills - len(kills)
        run.survive_any(left, rng, victims=list(Victim), longest_s=options.longest * calm_s)
        found = differences(run, calm[kind].store)
        assert not found, f"run {runs} after {run.kills}: {found}"
        kills += run.kills
        runs += 1
    for what, times in sorted(Counter(kills).items()):
        print(f"{times:3d} x {what}")
    print(f"{runs} runs of {calm_s:.0f} s undisturbed, {time.monotonic() - began:.0f} s in all")
    show("random kills survived in a row", figure=len(kills), bar=30, unit="", more_is_better=True)


def run_of(folder: Path, nodes: Nodes, trials: int, train_workers: int) -> Run:
    """A run of the small job in a folder of its own: statistics are computed anew."""
    folder.mkdir()
    job = small_job(folder, address=nodes.address, trials=trials, train_workers=train_workers)
    return Run(Store(folder / "run"), job, mark=str(folder / "driver"), nodes=nodes)


if __name__ == "__main__":
    main()
