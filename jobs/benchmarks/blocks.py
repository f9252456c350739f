"""Blocks and widths together against widths alone, ResNet-56 on CIFAR-10 (JPEG), without any fine-tuning.

    uv run python jobs/benchmarks/blocks.py

From the checkpoint and the data in the folder that RAPRUNE_DATA names. For each seed, which draws 1,024 calibration
images and the validation split, `reconstruction` with the allocation `least_damage` makes a network at each budget:
with all blocks (`search.depth = false`) and with the blocks and widths of least predicted damage (`true`). Both have
the same scores and the same least-squares repair. 4,000 test images, the same for all.

Budgets of latency are for eager PyTorch on one CPU thread, a batch of 8 images. As in a search, the first candidate of
either kind is timed as a whole network and corrects the table until its time is the predicted one. Both networks of a
seed are then timed in turns with the dense one, three times, of which the least time of each counts. `--costs flops`
makes networks for half and a quarter of the FLOPs instead.

Rows are kept in `blocks.jsonl` beside this file, each with its commit, date and machine; what stands there is measured
again only with `--again`. The table `blocks.md` is written from all of them.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from kept_rows import KeptRows, origin_now
from torch import nn

from raprune.cost.flops import CostModel
from raprune.cost.latency import LatencyTable
from raprune.cost.measure import measure_table, measure_whole
from raprune.cost.stopwatch import Repeats
from raprune.pruning.first_candidates import corrected
from raprune.pruning.preparation import Prepared, prepare, with_table
from raprune.pruning.prune import Pruner
from raprune.pruning.record import Pruned
from raprune.pruning.workload import Workload, build_workload
from raprune.records import Proposal
from raprune.spec.budget import Budget
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from raprune.store.scores import Statistics
from raprune.training.evaluate import evaluate

JOB = Path(__file__).parents[1] / "resnet56_cifar10_reconstruction.toml"
TABLE = Path(__file__).with_name("blocks.md")
ROWS = Path(__file__).with_name("blocks.jsonl")
SEEDS = (0, 1, 2)
BUDGETS = {"latency": (0.5,), "flops": (0.5, 0.25)}
"""Cost that is limited -> the fractions of the dense network's that may remain."""
RUNTIME, BATCH = "eager", 8
TIMES, OFTEN = 3, Repeats(most=100, least=15, limit_s=2.0)
"""Number of timings of each network, and the calls of each."""
TEST_IMAGES, CALIBRATION = 4_000, 1_024


@dataclass(frozen=True)
class Result:
    """One network."""

    seed: int
    budget: float
    depth: bool
    """True if blocks might go."""
    test: float
    flops_fraction: float
    gone: int
    """Number of blocks that went."""
    dense: float
    """Test accuracy of the dense network."""
    cost: str = "flops"
    """Cost that the budget limits: `latency` or `flops`."""
    latency_fraction: float | None = None
    """Measured latency over the dense network's; None for budgets of FLOPs."""
    predicted_fraction: float | None = None
    """Predicted latency over the dense network's, after the correction; None for budgets of FLOPs."""


Key = tuple[str, int, float, bool]


def key_of(row: Result) -> Key:
    """Return what makes two rows the same one, measured again."""
    return (row.cost, row.seed, row.budget, row.depth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--costs", nargs="*", choices=tuple(BUDGETS), default=["latency"], help="default latency")
    parser.add_argument("--test-images", type=int, default=TEST_IMAGES, help=f"default {TEST_IMAGES}")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help=f"default {CALIBRATION}")
    parser.add_argument("--folder", type=Path, default=ROWS.parent, help="folder of rows and table, for a trial run")
    parser.add_argument("--statistics", help="folder for scores and damages of blocks, for a later run")
    parser.add_argument("--again", action="store_true", help="measure also what stands in the table")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further row after so long")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    torch.set_num_threads(1)
    place = Place(arguments.folder / ROWS.name, arguments.test_images, arguments.calibration, arguments.statistics)
    for cost, seed in product(arguments.costs, arguments.seeds):
        wanted = [(cost, seed, budget, depth) for budget in BUDGETS[cost] for depth in (False, True)]
        kept = KeptRows(place.rows, Result, key_of)
        lacking = [key for key in wanted if arguments.again or key not in kept]
        if lacking and time.monotonic() < until:
            measure(cost, seed, lacking, place)
    written = arguments.folder / TABLE.name
    written.write_text(table(KeptRows(place.rows, Result, key_of)))
    print(f"wrote {written.name}")


@dataclass(frozen=True)
class Place:
    """Where rows go, and the sizes of a run."""

    rows: Path
    test_images: int
    calibration: int
    statistics: str | None


def measure(cost: str, seed: int, lacking: list[Key], place: Place) -> None:
    """Measure the rows of one seed and one cost."""
    began = time.monotonic()
    changes: dict[str, Any] = {
        "seed": seed,
        "search.depth": True,
        "search.calibration_images": place.calibration,
        "budget": {cost: min(BUDGETS[cost])},
        "latency.runtime": RUNTIME,
        "latency.batch_size": BATCH,
        "search.multiple_of": 1,
    }
    prepared = prepare(load_spec(JOB, changes))
    workload = build_workload(prepared.spec, data=prepared.data, device="cpu", weights=prepared.weights)
    assert workload.test is not None
    test = workload.test.take(place.test_images, torch.Generator().manual_seed(0))
    dense = evaluate(workload.model, test).accuracy
    made = networks(cost, lacking, prepared, workload, place.statistics)
    fractions = latencies([pruned.model for pruned, *_ in made], prepared, workload) if cost == "latency" else None
    for number, ((_, _, budget, depth), (pruned, costs)) in enumerate(zip(lacking, made, strict=True)):
        gone = pruned.candidate.identity
        left = costs.closed(gone)
        widths = left.vector(pruned.candidate.widths)
        row = Result(
            seed=seed,
            budget=budget,
            depth=depth,
            test=evaluate(pruned.model, test).accuracy,
            flops_fraction=float(left.flops(widths)) / costs.dense_flops,
            gone=len(gone),
            dense=dense,
            cost=cost,
            latency_fraction=None if fractions is None else fractions[number],
            predicted_fraction=None if fractions is None else float(left.latency_ms(widths)) / costs.dense_latency_ms,
        )
        # Another process may have added rows meanwhile.
        KeptRows(place.rows, Result, key_of).add(row, origin_now())
        print(row, flush=True)
    print(f"seed {seed}: {time.monotonic() - began:.0f} s", flush=True)


def networks(
    cost: str, lacking: list[Key], prepared: Prepared, workload: Workload, statistics: str | None
) -> list[tuple[Pruned, CostModel]]:
    """Make the network of each row, with the costs that it was allocated by."""
    known, latency = Statistics(Store(statistics) if statistics else None), table_of(cost, prepared, workload)
    spec = prepared.spec if latency is None else with_table(prepared.spec, prepared, latency)[0]
    graphs = {True: prepared.graph, False: replace(prepared.graph, gates=())}
    pruners = {depth: Pruner(workload, g, spec, statistics=known, latency=latency) for depth, g in graphs.items()}
    made = []
    for _, seed, budget, depth in lacking:
        target = Budget.model_validate({cost: budget})
        proposal = Proposal(number=0, method="reconstruction", allocation="least_damage", target=target, seed=seed)
        pruner = pruners[depth]
        if latency is not None:
            found = corrected(pruner, spec, [proposal])
            print(f"{'blocks and widths' if depth else 'widths'}: {found.sentence}", flush=True)
            pruner = pruner.knowing(found.table)
        made.append((pruner.cut_and_repair(proposal), pruner.cost))
    return made


def table_of(cost: str, prepared: Prepared, workload: Workload) -> LatencyTable | None:
    """Measure the table of operations for a budget of latency."""
    if cost != "latency":
        return None
    found = measure_table(workload.model, prepared.graph, prepared.spec.latency, device="cpu")
    print(f"table: median error {found.accuracy.median_error:.1%}, dense {found.dense_ms:.3g} ms", flush=True)
    return found


def latencies(models: list[nn.Module], prepared: Prepared, workload: Workload) -> list[float]:
    """Return the measured latencies over the dense network's: of each network the least of `TIMES` timings."""
    rounds = [
        measure_whole(models, workload.model, prepared.graph, prepared.spec.latency, device="cpu", repeats=OFTEN)
        for _ in range(TIMES)
    ]
    *times_ms, dense_ms = [min(of_one) for of_one in zip(*rounds, strict=True)]
    return [time_ms / dense_ms for time_ms in times_ms]


def table(kept: KeptRows[Result]) -> str:
    """Return the Markdown file."""
    lines = [
        "# Blocks and widths together, without fine-tuning",
        "",
        "Made by `jobs/benchmarks/blocks.py`, whose docstring has the terms: ResNet-56 on CIFAR-10 (JPEG), "
        f"`reconstruction` by `least_damage`, {TEST_IMAGES:,} test images. Latencies are for a batch of {BATCH} in "
        "eager PyTorch on one CPU thread, as fractions of the dense network's. Means over the seeds, and in brackets "
        "each seed.",
        "",
        "| budget | candidate | test accuracy, % | latency, measured | FLOPs | blocks that went | measured |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cost, budget in ((cost, budget) for cost, budgets in BUDGETS.items() for budget in budgets):
        for depth, name in ((False, "widths"), (True, "blocks and widths")):
            rows = sorted(
                (row for row in kept.rows.values() if (row.cost, row.budget, row.depth) == (cost, budget, depth)),
                key=lambda row: row.seed,
            )
            if not rows:
                continue
            origins = sorted({kept.origins[key_of(row)] for row in rows}, key=str)
            said = "; ".join(dict.fromkeys(f"{o.date}, {o.commit}, {o.machine}" for o in origins))
            accuracy = (
                f"**{100 * mean(row.test for row in rows):.1f}** ({', '.join(f'{100 * r.test:.1f}' for r in rows)})"
            )
            latency = ", ".join(f"{row.latency_fraction:.3f}" for row in rows if row.latency_fraction is not None)
            flops = ", ".join(f"{row.flops_fraction:.0%}" for row in rows)
            gone = ", ".join(str(row.gone) for row in rows)
            limited = {"latency": "latency", "flops": "FLOPs"}[cost]
            lines.append(f"| {budget:.0%} of {limited} | {name} | {accuracy} | {latency} | {flops} | {gone} | {said} |")
    dense = {row.seed: row.dense for row in kept.rows.values()}
    if dense:
        lines += [
            "",
            f"The dense network has {100 * mean(dense.values()):.2f} % on these images, and 25 blocks that can go.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.environ.setdefault("RAPRUNE_DATA", str(Path(__file__).parents[3] / "shared" / "data"))
    main()
