"""Budgets of latency against budgets of FLOPs, the bundled network in ONNX Runtime on the CPU, without fine-tuning.

    uv run python jobs/benchmarks/latency_budget.py

The bundled network and its sample of MNIST, a batch of one image, one thread. For each seed, which draws 1,024
calibration images and the validation split, `reconstruction` makes networks by the allocations `least_damage`,
`global_rank` and `uniform`, in three ways:

* `latency`: for each budget of latency and 97 %, 94 % and 91 % of it, as a search tries smaller targets too, widths in
  multiples of 8;
* `latency, auto`: the same with `--multiple-of auto`, which a job gets that names none;
* `FLOPs`: for every FLOPs budget from 5 % to 90 % in steps of 5 %, widths in multiples of 8.

As in a search, the first candidates of a budget of latency are timed as whole networks and correct the table, until
they take the time that it predicts. Then all networks of a seed are timed as a whole: six in turns with the dense one,
and of each the least time of six rounds counts, because other load of the machine only adds time. Of each way
counts the network with the best validation accuracy; of `FLOPs` among those that take at most the budget of the dense
network's time (+3 %), so that it may choose by the measured latency, and among more networks. Of equally
accurate networks counts the one with the least loss. Accuracies are those on the test split.

ResNet-20 cannot be cut to half its latency there: with 8 channels in every layer it takes 0.65 to 0.69 of it.

Rows are kept in `latency_budget.jsonl` beside this file, each with its commit, date and machine; seeds that stand there
are measured again only with `--again`. The table `latency_budget.md` is written from all of them.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from kept_rows import KeptRows, origin_now
from torch import nn

from raprune.cost.measure import measure_table
from raprune.cost.stopwatch import Repeats
from raprune.cost.timed import timed_network
from raprune.pruning.first_candidates import corrected, first_proposals
from raprune.pruning.preparation import Prepared, prepare, with_table
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import Workload, build_workload
from raprune.records import Proposal
from raprune.spec.budget import Budget
from raprune.spec.job import SearchSpec
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from raprune.store.scores import Statistics
from raprune.training.evaluate import Evaluation, evaluate

TABLE = Path(__file__).with_name("latency_budget.md")
ROWS = Path(__file__).with_name("latency_budget.jsonl")
SEEDS = (0, 1, 2)
BUDGETS, TOLERATED = (0.5,), 1.03
"""Budgets of latency, and the factor by which a measured latency may be above them."""
TARGETS = (1.0, 0.97, 0.94, 0.91)
"""Parts of a budget of latency that its networks aim at."""
ALLOCATIONS = ("least_damage", "global_rank", "uniform")
FLOPS = tuple(round(0.05 * n, 2) for n in range(1, 19))
WAYS = ("latency", "latency, auto", "FLOPs")
CALIBRATION = 1_024
TOGETHER, ROUNDS = 6, 2
"""Number of networks that are timed in turns with the dense one, and how often they are, each time in three rounds."""
OFTEN = Repeats(most=200, least=20, limit_s=0.5)


@dataclass(frozen=True)
class Result:
    """The network that one way of dividing the budget gives."""

    seed: int
    budget: float
    """Fraction of the dense network's latency."""
    way: str
    test: float
    validation: float
    latency_fraction: float
    """Measured as a whole, of the dense network's."""
    predicted_fraction: float | None
    """Predicted by the table; None for networks by FLOPs."""
    flops_fraction: float
    allocation: str
    multiple_of: int
    networks: int
    """Number of networks within the budget that it was chosen from."""
    dense: float
    """Test accuracy of the dense network."""


@dataclass(frozen=True)
class Network:
    """A network before it is judged."""

    way: str
    budget: float | None
    """Budget of latency; None for networks by FLOPs."""
    model: nn.Module
    allocation: str
    multiple_of: int
    flops_fraction: float
    predicted_fraction: float | None


Key = tuple[int, float, str]


def key_of(row: Result) -> Key:
    """Return what makes two rows the same one, measured again."""
    return (row.seed, row.budget, row.way)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--statistics", help="folder for scores, for a later run")
    parser.add_argument("--folder", type=Path, default=ROWS.parent, help="folder of rows and table, for a trial run")
    parser.add_argument("--again", action="store_true", help="measure also what stands in the table")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further seed after so long")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    torch.set_num_threads(1)
    rows = arguments.folder / ROWS.name
    for seed in arguments.seeds:
        kept = KeptRows(rows, Result, key_of)
        if time.monotonic() < until and (
            arguments.again or any((seed, *row) not in kept for row in product(BUDGETS, WAYS))
        ):
            for row in measured(seed, arguments.statistics):
                # Another process may have added rows meanwhile.
                KeptRows(rows, Result, key_of).add(row, origin_now())
                print(row, flush=True)
    written = arguments.folder / TABLE.name
    written.write_text(table(KeptRows(rows, Result, key_of)))
    print(f"wrote {written.name}")


def measured(seed: int, statistics: str | None) -> list[Result]:
    """Make and judge the networks of one seed."""
    changes = {
        "seed": seed,
        "methods": ["reconstruction"],
        "budget": {"latency": min(BUDGETS)},
        "latency.runtime": "onnxruntime",
        "search.calibration_images": CALIBRATION,
        "search.multiple_of": "auto",
    }
    prepared = prepare(load_spec(None, changes))
    workload = build_workload(prepared.spec, data=prepared.data, device="cpu", weights=prepared.weights)
    known = Statistics(Store(statistics) if statistics else None)
    networks = [
        *by_latency("latency", with_multiple(prepared.spec, 8), prepared, workload, known),
        *by_latency("latency, auto", prepared.spec, prepared, workload, known),
        *by_flops(with_multiple(prepared.spec, 8), prepared, workload, known),
    ]
    print(f"seed {seed}: {len(networks)} networks made", flush=True)
    fractions = latencies(networks, prepared, workload)
    assert workload.test is not None
    dense = evaluate(workload.model, workload.test).accuracy
    judged: dict[int, Evaluation] = {}
    found = []
    for budget, way in product(BUDGETS, WAYS):
        places = [
            place
            for place, (network, fraction) in enumerate(zip(networks, fractions, strict=True))
            if network.way == way and (network.budget == budget or (way == "FLOPs" and fraction <= TOLERATED * budget))
        ]
        for place in places:
            if place not in judged:
                judged[place] = evaluate(networks[place].model, workload.validation)
        best = max(places, key=lambda place: (judged[place].accuracy, -judged[place].loss))
        network = networks[best]
        found.append(
            Result(
                seed=seed,
                budget=budget,
                way=way,
                test=evaluate(network.model, workload.test).accuracy,
                validation=judged[best].accuracy,
                latency_fraction=fractions[best],
                predicted_fraction=network.predicted_fraction,
                flops_fraction=network.flops_fraction,
                allocation=network.allocation,
                multiple_of=network.multiple_of,
                networks=len(places),
                dense=dense,
            )
        )
    return found


def latencies(networks: list[Network], prepared: Prepared, workload: Workload) -> list[float]:
    """Return the measured latencies over the dense network's: of each network the least of `ROUNDS` timings."""
    fractions: list[float] = []
    # One export of the dense network for all.
    subject = timed_network(workload.model, prepared.graph, prepared.spec.latency, device="cpu")
    for start in range(0, len(networks), TOGETHER):
        models = [network.model for network in networks[start : start + TOGETHER]]
        placed = [subject.placed(model) for model in (*models, workload.model)]
        rounds = [subject.least_medians(placed, OFTEN) for _ in range(ROUNDS)]
        *times_ms, dense_ms = [min(of_one) for of_one in zip(*rounds, strict=True)]
        fractions += [time_ms / dense_ms for time_ms in times_ms]
    return fractions


def with_multiple(spec: SearchSpec, multiple_of: int) -> SearchSpec:
    """Return the job with widths in these multiples."""
    return spec.model_copy(update={"search": spec.search.model_copy(update={"multiple_of": multiple_of})})


def by_latency(way: str, spec: SearchSpec, prepared: Prepared, workload: Workload, known: Statistics) -> list[Network]:
    """Make the networks of the budgets of latency, with a table of the job's step."""
    multiple_of = spec.search.multiple_of or 1
    table = measure_table(workload.model, prepared.graph, spec.latency, device="cpu", multiple_of=multiple_of)
    spec, _ = with_table(spec, prepared, table)
    print(f"{way}: multiples of {spec.search.step}, median error {table.accuracy.median_error:.1%}", flush=True)
    pruner = Pruner(workload, prepared.graph, spec, statistics=known, latency=table)
    found = corrected(pruner, spec, first_proposals(spec, spec.methods))
    print(f"{way}: {found.sentence}", flush=True)
    pruner = pruner.knowing(found.table)
    return [
        replace(made(way, pruner, spec, allocation, Budget(latency=part * budget)), budget=budget)
        for budget, part, allocation in product(BUDGETS, TARGETS, ALLOCATIONS)
    ]


def by_flops(spec: SearchSpec, prepared: Prepared, workload: Workload, known: Statistics) -> list[Network]:
    """Make the networks of all budgets of FLOPs."""
    pruner = Pruner(workload, prepared.graph, spec, statistics=known)
    return [
        made("FLOPs", pruner, spec, allocation, Budget(flops=flops)) for flops in FLOPS for allocation in ALLOCATIONS
    ]


def made(way: str, pruner: Pruner, spec: SearchSpec, allocation: str, target: Budget) -> Network:
    """Make one network."""
    proposal = Proposal(number=0, method="reconstruction", allocation=allocation, target=target, seed=spec.seed)
    pruned, cost = pruner.cut_and_repair(proposal), pruner.cost
    widths = cost.vector(pruned.candidate.widths)
    return Network(
        way=way,
        budget=target.latency,
        model=pruned.model,
        allocation=allocation,
        multiple_of=spec.search.step,
        flops_fraction=int(cost.flops(widths)) / cost.dense_flops,
        predicted_fraction=None if cost.table is None else float(cost.latency_ms(widths)) / cost.dense_latency_ms,
    )


def table(kept: KeptRows[Result]) -> str:
    """Return the Markdown file."""
    lines = [
        "# Budgets of latency against budgets of FLOPs",
        "",
        "Made by `jobs/benchmarks/latency_budget.py`, whose docstring has the terms: the bundled network and its "
        "sample of MNIST, ONNX Runtime, one image, one thread, `reconstruction`, no fine-tuning. Latencies are "
        "measured, as fractions of the dense network's. Means, and in brackets each seed.",
        "",
        "| budget | way | test accuracy, % | latency | FLOPs | allocation | measured |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for budget, way in product(BUDGETS, WAYS):
        rows = sorted(
            (row for row in kept.rows.values() if (row.budget, row.way) == (budget, way)), key=lambda row: row.seed
        )
        if not rows:
            continue
        origins = sorted({kept.origins[key_of(row)] for row in rows}, key=str)
        said = "; ".join(dict.fromkeys(f"{o.date}, {o.commit}, {o.machine}" for o in origins))
        accuracies = ", ".join(f"{100 * row.test:.2f}" for row in rows)
        latencies = ", ".join(f"{row.latency_fraction:.3f}" for row in rows)
        flops = ", ".join(f"{row.flops_fraction:.0%}" for row in rows)
        names = "; ".join(f"{row.allocation}, {row.multiple_of}" for row in rows)
        lines.append(
            f"| {budget:.0%} | {way} | **{100 * mean(row.test for row in rows):.2f}** ({accuracies}) | "
            f"{mean(row.latency_fraction for row in rows):.3f} ({latencies}) | {flops} | {names} | {said} |"
        )
    dense = {row.seed: row.dense for row in kept.rows.values()}
    if dense:
        lines += ["", f"The dense network has {100 * mean(dense.values()):.2f} %."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
