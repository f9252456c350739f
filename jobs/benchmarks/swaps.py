"""Swaps after the greedy order, as OSSCAR makes them, on ResNet-56: `uv run python jobs/benchmarks/swaps.py`.

Meng, Ibrahim, Behdin, Hazimeh, Ponomareva, Mazumder: "OSSCAR: One-Shot Structured Pruning in Vision and Language Models
with Combinatorial Optimization", ICML 2024, improves the set of channels that stay by local search. `reconstruction`
removes channels one by one and never takes one back. This program tells what that costs: to the channels that
`least_damage` keeps of each group, it adds the removed channel that lowers the error of the layer behind most, takes
away the channel that then costs least, and goes on until no such swap lowers the error. The three best channels to add
are tried. Errors are those of the least-squares refit, fractions of the outputs of the layers behind; the weights are
then refitted as always. 2,048 calibration images, 5,000 validation images.

Rows are kept in `swaps.jsonl` beside this file; what stands there is measured again only with `--again`. The table
`swaps.md` is written from all of them.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from kept_rows import KeptRows, origin_now
from torch import Tensor

from raprune.channels.cut import cut
from raprune.channels.evaluating import evaluating
from raprune.methods import Cut
from raprune.methods.layer_observer import structure_of
from raprune.methods.reconstruction import ReaderProblem, Reconstruction, enough_images, reader_problems
from raprune.pruning.preparation import prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.room import repair_room
from raprune.pruning.workload import build_workload
from raprune.records import Candidate, Proposal
from raprune.spec.budget import Budget
from raprune.spec.toml import load_spec
from raprune.training.evaluate import evaluate

JOB = Path(__file__).parents[1] / "resnet56_cifar10_reconstruction.toml"
TABLE = Path(__file__).with_name("swaps.md")
ROWS = Path(__file__).with_name("swaps.jsonl")
BUDGETS = (0.5, 0.3)
ADDED = 3
"""Channels that are tried as the next one to add."""
LEAST_GAIN = 1e-6
"""Fraction of the error by which a swap lowers it at least."""
CHANGES = {"search.calibration_images": 2_048, "data.validation_fraction": 0.1}


@dataclass(frozen=True)
class Row:
    """The cut at one budget, before and after the swaps."""

    budget: float
    groups: int
    """Groups that lost channels and that a layer reads."""
    swaps: int
    before: float
    """Sum of the errors of the groups."""
    after: float
    accuracy_before: float
    accuracy_after: float
    """Validation accuracy once the weights are refitted."""
    seconds: float
    """CPU time of the swaps, of all cores together."""


@dataclass(frozen=True)
class Reader:
    """The least-squares problem of one layer that reads the group; columns have a mean square of one."""

    gram: Tensor
    """Shape `(P, P)`, with the ridge."""
    weight: Tensor
    """Shape `(P, outputs)`."""
    columns: Tensor
    """Columns of P of each channel."""
    unit: Tensor
    """Errors are multiplied by this one."""

    @classmethod
    def of(cls, problem: ReaderProblem, least: float) -> list[Reader]:
        """Return the problem of each of the layer's groups of outputs."""
        layer, ridge = problem.reading, problem.ridge(least)
        readers = []
        grams = layer.sums.whole.gram(centred=layer.centred)
        for gram, weight in zip(grams, layer.weight.flatten(2), strict=True):
            scale = gram.diagonal().clamp(min=1e-30).sqrt()
            unit_gram = gram / scale[:, None] / scale + ridge * torch.eye(len(gram), dtype=gram.dtype)
            scaled = weight * scale[:, None]
            energy = (scaled * (unit_gram @ scaled)).sum()
            readers.append(cls(unit_gram, scaled, problem.columns, 1 / energy.clamp(min=1e-30)))
        return readers

    def split(self, kept: list[int]) -> tuple[Tensor, Tensor]:
        """Return the columns of the channels `kept`, and those of the others."""
        gone = [channel for channel in range(len(self.columns)) if channel not in set(kept)]
        return self.columns[kept].flatten(), self.columns[gone].flatten()

    def error(self, kept: list[int]) -> float:
        """Return the error once only the channels `kept` are left and refitted."""
        _, schur, left_over = self._fitted(kept)
        return float(self.unit * (left_over * (schur @ left_over)).sum())

    def gains(self, kept: list[int]) -> Tensor:
        """Return how far each removed channel, added again, lowers the error."""
        _, schur, left_over = self._fitted(kept)
        taps = self.columns.shape[1]
        missing = (schur @ left_over).unflatten(0, (-1, taps))
        own = torch.stack([schur[at : at + taps, at : at + taps] for at in range(0, len(schur), taps)])
        return self.unit * (missing * torch.linalg.solve(own, missing)).sum((1, 2))

    def losses(self, kept: list[int]) -> Tensor:
        """Return how far the removal of each channel of `kept` raises the error, once the others are refitted."""
        inverse, _, _ = self._fitted(kept)
        here, gone = self.split(kept)
        fitted = self.weight[here] + inverse @ (self.gram[here[:, None], gone] @ self.weight[gone])
        taps = self.columns.shape[1]
        weights = fitted.unflatten(0, (-1, taps))
        own = torch.stack([inverse[at : at + taps, at : at + taps] for at in range(0, len(inverse), taps)])
        return self.unit * (weights * torch.linalg.solve(own, weights)).sum((1, 2))

    def _fitted(self, kept: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inverse of the kept part, the Schur complement of the rest, and the weights of the rest."""
        here, gone = self.split(kept)
        inverse = torch.linalg.inv(self.gram[here[:, None], here])
        across = self.gram[here[:, None], gone]
        schur = self.gram[gone[:, None], gone] - across.mT @ inverse @ across
        return inverse, schur, self.weight[gone]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="measure also what stands in the table")
    again = parser.parse_args().again
    kept = KeptRows(ROWS, Row, lambda row: row.budget)
    lacking = [budget for budget in BUDGETS if again or budget not in kept]
    if lacking:
        arena = Arena()
        for budget in lacking:
            row = arena.row(budget)
            print(row, flush=True)
            kept.add(row, origin_now())
    TABLE.write_text(table(kept))
    print(f"wrote {TABLE.name}")


class Arena:
    """The network, its images and the least-squares problem of every layer."""

    def __init__(self) -> None:
        prepared = prepare(load_spec(JOB, CHANGES))
        self.workload = build_workload(prepared.spec, data=prepared.data, device="cpu", weights=prepared.weights)
        self.pruner = Pruner(self.workload, prepared.graph, prepared.spec)
        self.method = Reconstruction()
        model, batches = self.workload.model, self.pruner.scoring.batches
        with evaluating(model), torch.no_grad():
            ran, _ = structure_of(model, next(iter(batches()))[0][:2])
            problems = reader_problems(model, prepared.graph, enough_images(model, ran, batches), ran, self.method.form)
        self.readers = {
            name: [reader for problem in own for reader in Reader.of(problem, self.method.ridge)]
            for name, own in groupby(problems, key=lambda problem: problem.group)
        }

    def row(self, budget: float) -> Row:
        target = Budget(flops=budget)
        proposal = Proposal(number=0, method="reconstruction", allocation="least_damage", target=target, seed=0)
        pruned = self.pruner.cut_and_repair(proposal)
        kept, started = dict(pruned.candidate.kept), time.process_time()
        swaps, before, after = [], 0.0, 0.0
        for group in self.pruner.graph.groups:
            if group.name in self.readers and len(kept[group.name]) < group.num_channels:
                readers = self.readers[group.name]
                found, made = swapped(readers, list(kept[group.name]))
                before += _error(readers, list(kept[group.name]))
                after += _error(readers, found)
                kept[group.name] = tuple(found)
                swaps.append(made)
        seconds = time.process_time() - started
        candidate = Candidate("reconstruction", kept)
        dense, graph = self.workload.model, self.pruner.graph
        model = cut(dense, graph, candidate)
        self.method.repair(
            model, self.pruner.scoring.batches, Cut(dense, graph, candidate.kept, repair_room(self.workload.device))
        )
        judged = [
            evaluate(network, self.workload.validation, task=self.workload.task, batch_size=256).accuracy
            for network in (pruned.model, model)
        ]
        return Row(budget, len(swaps), sum(swaps), before, after, judged[0], judged[1], seconds)


def swapped(readers: list[Reader], kept: list[int]) -> tuple[list[int], int]:
    """Return the channels that stay once no swap lowers the error, ascending, and the number of swaps."""
    error, made = _error(readers, kept), 0
    while True:
        gone = [channel for channel in range(len(readers[0].columns)) if channel not in set(kept)]
        gains = torch.stack([reader.gains(kept) for reader in readers]).sum(0)
        best: tuple[float, list[int]] = (error * (1 - LEAST_GAIN), [])
        for place in gains.argsort(descending=True)[:ADDED].tolist():
            more = sorted([*kept, gone[place]])
            losses = torch.stack([reader.losses(more) for reader in readers]).sum(0)
            least = int(losses.argmin())
            best = min(best, (error - float(gains[place]) + float(losses[least]), more[:least] + more[least + 1 :]))
        if not best[1]:
            return kept, made
        (error, kept), made = best, made + 1


def _error(readers: list[Reader], kept: list[int]) -> float:
    return sum(reader.error(kept) for reader in readers)


def table(kept: KeptRows[Row]) -> str:
    """The Markdown file."""
    lines = [
        "# Swaps after the greedy order",
        "",
        "Made by `jobs/benchmarks/swaps.py`, whose docstring has the terms: ResNet-56 on CIFAR-10 (JPEG), "
        "`reconstruction` by `least_damage`, no fine-tuning. The error is the sum over the groups, as fractions of the "
        "outputs of the layers behind.",
        "",
        "| FLOPs | groups | swaps | error, greedy | error, swapped | validation, greedy, % | swapped, % | CPU s "
        "| measured |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(kept.rows.values(), key=lambda row: -row.budget):
        origin = kept.origins[row.budget]
        cells = [
            *(f"{row.budget:.0%}", row.groups, row.swaps, f"{row.before:.4f}", f"{row.after:.4f}"),
            *(f"{100 * row.accuracy_before:.2f}", f"{100 * row.accuracy_after:.2f}", f"{row.seconds:.0f}"),
            f"{origin.date}, {origin.commit}, {origin.machine}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.environ.setdefault("RAPRUNE_DATA", str(Path(__file__).parents[3] / "shared" / "data"))
    main()
