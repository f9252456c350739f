"""Blocks and widths together against widths alone, ResNet-56 on CIFAR-10 (JPEG), without any fine-tuning.

    uv run python jobs/benchmarks/blocks.py

From the checkpoint and the data in the folder that RAPRUNE_DATA names. For each seed, which draws 1,024 calibration
images and the validation split, `reconstruction` with the allocation `least_damage` makes a network at each FLOPs
budget: with all blocks (`search.depth = false`) and with the blocks and widths of least predicted damage (`true`). Both
have the same scores and the same least-squares repair. 4,000 test images, the same for all.

Rows are kept in `blocks.jsonl` beside this file, each with its commit, date and machine; what stands there is measured
again only with `--again`. The table `blocks.md` is written from all of them.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from kept_rows import KeptRows, origin_now

from raprune.pruning.preparation import prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import build_workload
from raprune.records import Proposal
from raprune.spec.budget import Budget
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from raprune.store.scores import Statistics
from raprune.training.evaluate import evaluate

JOB = Path(__file__).parents[1] / "resnet56_cifar10_reconstruction.toml"
TABLE = Path(__file__).with_name("blocks.md")
ROWS = Path(__file__).with_name("blocks.jsonl")
SEEDS, BUDGETS = (0, 1), (0.5, 0.25)
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


Key = tuple[int, float, bool]


def key_of(row: Result) -> Key:
    """Return what makes two rows the same one, measured again."""
    return (row.seed, row.budget, row.depth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--statistics", help="folder for scores and damages of blocks, for a later run")
    parser.add_argument("--again", action="store_true", help="measure also what stands in the table")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further row after so long")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        wanted = [(seed, budget, depth) for budget in BUDGETS for depth in (False, True)]
        kept = KeptRows(ROWS, Result, key_of)
        lacking = [key for key in wanted if arguments.again or key not in kept]
        if lacking and time.monotonic() < until:
            measure(seed, lacking, arguments.statistics, until)
    TABLE.write_text(table(KeptRows(ROWS, Result, key_of)))
    print(f"wrote {TABLE.name}")


def measure(seed: int, lacking: list[Key], statistics: str | None, until: float) -> None:
    """Measure rows of one seed."""
    changes = {"seed": seed, "search.depth": True, "search.calibration_images": CALIBRATION}
    prepared = prepare(load_spec(JOB, changes))
    workload = build_workload(prepared.spec, data=prepared.data, device="cpu", weights=prepared.weights)
    assert workload.test is not None
    test = workload.test.take(TEST_IMAGES, torch.Generator().manual_seed(0))
    known = Statistics(Store(statistics) if statistics else None)
    dense = evaluate(workload.model, test).accuracy
    graphs = {True: prepared.graph, False: replace(prepared.graph, gates=())}
    pruners = {depth: Pruner(workload, graph, prepared.spec, statistics=known) for depth, graph in graphs.items()}
    for _, budget, depth in lacking:
        if time.monotonic() > until:
            return
        proposal = Proposal(
            number=0, method="reconstruction", allocation="least_damage", target=Budget(flops=budget), seed=seed
        )
        pruned, cost = pruners[depth].cut_and_repair(proposal), pruners[depth].cost
        gone = pruned.candidate.identity
        left = cost.closed(gone)
        row = Result(
            seed=seed,
            budget=budget,
            depth=depth,
            test=evaluate(pruned.model, test).accuracy,
            flops_fraction=float(left.flops(left.vector(pruned.candidate.widths))) / cost.dense_flops,
            gone=len(gone),
            dense=dense,
        )
        # Another process may have added rows meanwhile.
        KeptRows(ROWS, Result, key_of).add(row, origin_now())
        print(row, flush=True)


def table(kept: KeptRows[Result]) -> str:
    """Return the Markdown file."""
    lines = [
        "# Blocks and widths together, without fine-tuning",
        "",
        "Made by `jobs/benchmarks/blocks.py`, whose docstring has the terms: ResNet-56 on CIFAR-10 (JPEG), "
        f"`reconstruction` by `least_damage`, {TEST_IMAGES:,} test images. Means over the seeds, and in brackets each "
        "seed.",
        "",
        "| FLOPs budget | candidate | test accuracy, % | blocks that went | measured |",
        "| --- | --- | --- | --- | --- |",
    ]
    for budget in BUDGETS:
        for depth, name in ((False, "widths"), (True, "blocks and widths")):
            rows = sorted(
                (row for row in kept.rows.values() if (row.budget, row.depth) == (budget, depth)),
                key=lambda row: row.seed,
            )
            if not rows:
                continue
            origins = sorted({kept.origins[key_of(row)] for row in rows}, key=str)
            said = "; ".join(dict.fromkeys(f"{o.date}, {o.commit}, {o.machine}" for o in origins))
            accuracy = (
                f"**{100 * mean(row.test for row in rows):.1f}** ({', '.join(f'{100 * r.test:.1f}' for r in rows)})"
            )
            gone = ", ".join(str(row.gone) for row in rows)
            lines.append(f"| {budget:.0%} | {name} | {accuracy} | {gone} | {said} |")
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
