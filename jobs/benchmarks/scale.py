"""How busy a search keeps 10 to 1,000 workers: `uv run --group dev python jobs/benchmarks/scale.py`.

A simulation in virtual time with the real parts (`simulation/`). The search of ResNet-56 is driven by the real
searcher, the real controller of Ray Tune with raprune's scheduler, and the real coordinator with its store, on this
disk or on S3 (a server of moto in a process of its own, which waits 20 ms before each answer). Only the workers are
made up: a trial *waits* for 0.15, 2 or 20 s (each up to a fifth more or less) and comes out by a formula of its widths.

Virtual time passes for a worker while it waits, and for the driver and the coordinator by what they really take:

* the driver has two threads. The CPU time of the first is charged to the searcher (`suggest`, `on_trial_complete`), to
  the scheduler or else to Tune's controller; what Ray takes for its part of a trial (sending two tasks, waiting for one
  of so many answers, fetching it) is measured first on a real Ray, with as many tasks under way, and charged to Ray.
  The second makes proposals ahead. While both compute, each is given half of the time;
* the coordinator writes all records that wait as one part, then those that came meanwhile. Its store is charged by the
  clock, less what its thread waits for a CPU, so that it may be run on a busy machine (that of S3 is a process of its
  own, whose wait is not known); the rest, and the progress that the driver asks for every virtual second, by CPU time.

A worker is busy while its trial runs; it loses the time in which it waits for its next task, or for a record, of which
two may be on their way while it goes on. Busy is counted from the first trial whose proposal may use a result, number
2 x workers, until nothing is left to propose. Messages take no time, each worker is up from the start, and no network
is stored.

A setting ends early after `--limit` real seconds; then its row says how many trials it got through, and the busy share
is that of those. Rows are kept in `--results`, and those of this commit are not run again, so that the settings may be
run a few at a time. The table is written only once all settings were run at one commit with Ray's part.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import torch
from bar import commit, show
from simulation.ray_cost import RayCost, measured_ray
from simulation.s3 import s3_server
from simulation.world import PARTS, Row, World

from raprune.orchestration.cluster.connect import SETTINGS, machine
from raprune.store.folder import Store

HERE = Path(__file__).parent
TABLE = HERE / "scale.md"
WORKERS = (10, 100, 1000)
SECONDS = (0.15, 2.0, 20.0)
STORES = ("disk", "s3")
TRIALS = 7
"""Trials of a worker: two whose proposals use no result, and five that count."""
FEWEST = 300
Setting = tuple[int, float, str]
"""Workers, seconds of a trial, store."""


class Results:
    """A file of lines of JSON: what Ray takes, and the rows by their commits."""

    def __init__(self, path: Path, commit: str) -> None:
        self.commit = commit
        self._path = path
        self._lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def rows(self) -> dict[Setting, Row]:
        """The rows of this commit."""
        rows = [Row(**line["row"]) for line in self._lines if line.get("commit") == self.commit]
        return {(row.workers, row.seconds, row.store): row for row in rows}

    def ray(self, measure: Callable[[], RayCost]) -> RayCost:
        """What Ray takes: measured once."""
        found = [line["ray"] for line in self._lines if "ray" in line]
        if found:
            return RayCost.of(found[-1])
        cost = measure()
        self._write({"ray": asdict(cost)})
        return cost

    def keep(self, row: Row) -> None:
        self._write({"commit": self.commit, "row": asdict(row)})

    def _write(self, line: Mapping[str, object]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="default 10 100 1000")
    parser.add_argument("--seconds", type=float, nargs="+", default=SECONDS, help="of a trial; default 0.15 2 20")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES, help="default disk s3")
    parser.add_argument("--trials", type=int, help=f"of a setting (default: {TRIALS} a worker, {FEWEST} at least)")
    parser.add_argument("--limit", type=float, default=120.0, help="real seconds of a setting (default 120)")
    parser.add_argument("--without-ray", action="store_true", help="start no Ray, charge nothing for it, keep no rows")
    parser.add_argument("--results", type=Path, default=Path("runs/scale.jsonl"), help="a line a setting")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    results = Results(arguments.results, commit())
    cost = RayCost() if arguments.without_ray else results.ray(measured_ray)
    known = {} if arguments.without_ray else results.rows()
    with s3_server() if "s3" in arguments.stores else ExitStack() as s3:
        for setting in itertools.product(arguments.workers, arguments.seconds, arguments.stores):
            if setting in known:
                continue
            workers, seconds, store = setting
            trials = arguments.trials or max(FEWEST, TRIALS * workers)
            row = simulated(workers, seconds, store, trials=trials, cost=cost, s3=s3, limit_s=arguments.limit)
            print(told(row), flush=True)
            known[setting] = row
            if not arguments.without_ray:
                results.keep(row)
    show_bars(known)
    settings = list(itertools.product(WORKERS, SECONDS, STORES))
    if not arguments.without_ray and set(known) >= set(settings):
        TABLE.write_text(table([known[setting] for setting in settings], cost, results.commit))
        print(f"wrote {TABLE.name}")


def simulated(workers: int, seconds: float, store: str, *, trials: int, cost: RayCost, s3: Any, limit_s: float) -> Row:
    """One search in virtual time."""
    with tempfile.TemporaryDirectory(prefix="raprune-scale-") as folder:
        uri = f"{folder}/run" if store == "disk" else s3.uri(f"run-{workers}-{seconds:g}")
        world = World(Path(folder), Store(uri), workers=workers, seconds=seconds, trials=trials, cost=cost)
        world.run(limit_s)
        return world.row(store)


# What is told


def told(row: Row) -> str:
    """One line."""
    parts = ", ".join(f"{name} {1000 * row.parts[name]:.2f}" for name in PARTS)
    return (
        f"{row.workers} workers, {row.seconds:g} s, {row.store}: {row.busy:.1%} busy, {row.for_record:.1%} waits for "
        f"the record, {row.for_task:.1%} for a task; driver {row.driver:.0%}, proposals {row.proposals:.0%}, "
        f"coordinator {row.coordinator:.0%}; {row.trials} of {row.asked_for} trials; ms a trial: {parts}"
    )


def show_bars(found: Mapping[Setting, Row]) -> None:
    """The bars of the settings that were run."""
    for workers, seconds, bar in ((100, 2.0, 0.95), (1000, 20.0, 0.9)):
        disk, s3 = (found.get((workers, seconds, store)) for store in STORES)
        name = f"{workers} workers, {seconds:g} s a trial"
        if disk is not None:
            show(f"{name}, disk: busy", figure=disk.busy, bar=bar, unit="of the time", more_is_better=True)
        if disk is not None and s3 is not None:
            lost = disk.busy - s3.busy
            show(f"{name}: less busy on S3 by", figure=lost, bar=0.05, unit="of the time", more_is_better=False)


def table(rows: Sequence[Row], cost: RayCost, commit: str) -> str:
    """The Markdown file."""
    waits = ", ".join(f"{1000 * seconds:.2f} ms of {count}" for count, seconds in cost.wait.items())
    lines = [
        "# How busy a search keeps its workers: ResNet-56, simulated",
        "",
        "Made by `jobs/benchmarks/scale.py`, whose docstring says what is real, what is charged and what the figures "
        f"mean. Commit {commit}, {datetime.now(UTC):%Y-%m-%d}, {machine()}, Ray {ray.__version__}. Ray's part of the "
        f"driver: {1000 * cost.send:.2f} ms a task sent, {1000 * cost.fetch:.2f} ms an answer, one wait for {waits} "
        "tasks.",
        "",
        "| workers | s a trial | store | busy, % | waits for record, % | waits for task, % | driver, % "
        "| proposals, % | coordinator, % | trials | " + " | ".join(f"{name}, ms" for name in PARTS) + " |",
        "| --- " * (10 + len(PARTS)) + "|",
    ]
    for row in rows:
        shares = (row.busy, row.for_record, row.for_task, row.driver, row.proposals, row.coordinator)
        cells = [str(row.workers), f"{row.seconds:g}", row.store, *(f"{100 * value:.1f}" for value in shares)]
        cells.append(str(row.trials) if row.trials >= row.asked_for else f"{row.trials} of {row.asked_for}")
        cells += [f"{1000 * row.parts[name]:.2f}" for name in PARTS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
