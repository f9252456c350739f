"""How good the sampler's proposals are, trial by trial: `uv run python jobs/benchmarks/sampler.py`.

`search_quality.py` measures whole searches in equal wall time, and needs a quiet machine for hours. Here the errors are
made up, so that a search of hundreds of trials takes seconds, another load on the machine changes nothing, and many
seeds can be compared. Costs, widths and proposals are the real ones of a ResNet-56 (28 groups) with three methods and
their hyper-parameters; no network is evaluated.

The error of a network grows with the damage of its groups: each has a random sensitivity and a random power of its
width, and pairs of groups add to one another's damage. A method's scores know the sensitivities only up to a random
factor; every method and setting has a factor of its own; a measured error has 2 % of noise. A seed draws all of that.

The figure is the hypervolume of the front of the errors without noise: the fraction of the area between (error 0, no
FLOPs) and (error 1, half of the FLOPs) that it dominates. The table `sampler.md` beside this file has a row for each
number of workers, sampler and commit; rows that were not measured by this run stay as they are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from bar import commit

from raprune import pareto
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel, Counts
from raprune.methods import method_named, searched_settings
from raprune.models.cifar_resnet import CifarResNet
from raprune.pruning.allocate import allocate
from raprune.pruning.target import Target
from raprune.records import Candidate, Metrics, Proposal, Setting, Trial, TrialState
from raprune.sampling.point import Point
from raprune.sampling.proposals import Proposals
from raprune.sampling.space import SearchSpace, make_blocks
from raprune.spec.job import SamplerSpec

TABLE = Path(__file__).with_name("sampler.md")
METHODS = ("reconstruction", "thinet", "lasso")
ALLOCATIONS = ("ratios", "global_rank", "uniform")
"""Without `least_damage`, which takes half a second a network of this size, and is no part of the sampler."""
HIGHEST = 0.5
MARKS = (50, 100, 200)
"""Numbers of trials after which the front is judged."""
WORKERS = (2, 100)
HEADER = (
    "| workers | sampler | seeds | after 50 trials | after 100 | after 200 | commit | date |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)


class MadeUpErrors:
    """The errors of networks and what methods predict of them, drawn by a seed."""

    def __init__(self, cost: CostModel, seed: int) -> None:
        self._cost, self._seed = cost, seed
        generator = np.random.default_rng([7, seed])
        count = len(cost.group_names)
        self._sensitivity = generator.lognormal(-4.2, 1.0, count)
        self._power = generator.uniform(0.7, 1.6, count)
        self._pairs = 0.045 * np.abs(generator.normal(0.0, 1.0, (count, count)))
        self._factor = dict(zip(METHODS, generator.uniform(0.9, 1.25, len(METHODS)), strict=True))
        # What methods predict is wrong by a factor for each group.
        predicted = self._sensitivity * generator.lognormal(0.0, 0.6, count)
        self.damage: dict[str, np.ndarray] = {}
        self.scores: dict[str, np.ndarray] = {}
        for name, channels, size, power in zip(
            cost.group_names, cost.num_channels.tolist(), predicted, self._power, strict=True
        ):
            left = np.maximum(channels - np.arange(channels + 1), 0.01 * channels)
            self.damage[name] = size * ((channels / left) ** power - 1)
            self.scores[name] = generator.lognormal(0.0, 1.0, channels) * size / channels

    def error(self, proposal: Proposal, widths: Counts) -> float:
        """The error of a network without noise, in [0, 1]."""
        ratios = widths / self._cost.num_channels
        damages = self._sensitivity * ((1 / ratios) ** self._power - 1)
        total = float(damages.sum() + np.sqrt(damages) @ self._pairs @ np.sqrt(damages))
        return 1.0 - 0.92 * float(np.exp(-self._factor_of(proposal.method, proposal.settings) * total))

    def noise(self, number: int) -> float:
        """Factor of the measured error of a trial."""
        return float(np.exp(np.random.default_rng([11, self._seed, number]).normal(0.0, 0.02)))

    def _factor_of(self, method: str, settings: Mapping[str, Setting]) -> float:
        # Baselines repair nothing.
        factor = self._factor.get(method, 1.8)
        for name, value in sorted(settings.items()):
            if isinstance(value, int | float) and not isinstance(value, bool):
                best = np.random.default_rng([9, self._seed, *f"{method}.{name}".encode()]).uniform()
                factor *= 1.0 + 0.15 * abs(np.tanh(float(value)) - best)
            else:
                factor *= (
                    1.0 + 0.1 * np.random.default_rng([10, self._seed, *f"{method}.{name}.{value}".encode()]).uniform()
                )
        return float(factor)


def hypervolumes(cost: CostModel, *, seed: int, workers: int, sampler: str) -> list[float]:
    """The hypervolume after each of `MARKS` trials of one search."""
    groups = dict(zip(cost.group_names, cost.num_channels.tolist(), strict=True))
    space = SearchSpace(
        methods=METHODS,
        allocations=ALLOCATIONS,
        blocks=make_blocks(tuple(groups)),
        channels=groups,
        lowest=0.05,
        highest=HIGHEST,
        settings={name: searched_settings(method_named(name)) for name in METHODS},
    )
    spec = SamplerSpec.model_validate({"trials": MARKS[-1], "lookahead": 2 * workers, "sampler": sampler})
    proposals, errors = Proposals(space, spec, seed=seed), MadeUpErrors(cost, seed)
    points: list[tuple[float, float]] = []
    found = []
    for proposal in iter(proposals.next, None):
        trial, point = tried(proposal, cost, errors)
        points.append(point)
        proposals.tell(proposal.number, Point.of(trial))
        if len(points) in MARKS:
            found.append(pareto.hypervolume(points, (1.0, HIGHEST + 1e-9)) / HIGHEST)
    return found


def tried(proposal: Proposal, cost: CostModel, errors: MadeUpErrors) -> tuple[Trial, tuple[float, float]]:
    """The trial of a proposal; its error without noise and its fraction of the FLOPs."""
    target = Target(budget=proposal.target)
    widths = allocate(
        proposal.allocation,
        cost,
        target,
        scores=errors.scores,
        keep_ratios=proposal.keep_ratios,
        damage=errors.damage,
        comparable=True,
    )
    error, fraction = errors.error(proposal, widths), int(cost.flops(widths)) / cost.dense_flops
    metrics = Metrics(
        accuracy=1.0 - min(0.95, error * errors.noise(proposal.number)),
        loss=1.0,
        flops=int(cost.flops(widths)),
        params=int(cost.params(widths)),
        flops_fraction=fraction,
        params_fraction=int(cost.params(widths)) / cost.dense_params,
    )
    kept = {name: tuple(range(width)) for name, width in zip(cost.group_names, widths.tolist(), strict=True)}
    trial = Trial(
        trial_id=proposal.trial_id,
        proposal=proposal,
        state=TrialState.COMPLETE,
        candidate=Candidate(proposal.method, kept, proposal.settings),
        metrics=metrics,
        seconds=1.0,
    )
    return trial, (error, fraction)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)), help="default 0 to 7")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="default 2 100")
    parser.add_argument("--samplers", nargs="+", default=["mixed"], help="default mixed")
    parser.add_argument("--no-table", action="store_true", help="print the rows only")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    cost = CostModel(trace(CifarResNet(56, num_classes=10, in_channels=3).eval(), torch.zeros(1, 3, 32, 32)))
    for workers in arguments.workers:
        for sampler in arguments.samplers:
            each = []
            for seed in arguments.seeds:
                each.append(hypervolumes(cost, seed=seed, workers=workers, sampler=sampler))
                told = ", ".join(f"{one:.4f}" for one in each[-1])
                print(f"{sampler}, {workers} workers, seed {seed}: {told}", flush=True)
            row = row_of(workers, sampler, arguments.seeds, each)
            print(row, flush=True)
            if not arguments.no_table:
                TABLE.write_text(table([row], TABLE.read_text() if TABLE.exists() else ""))


def row_of(workers: int, sampler: str, seeds: Sequence[int], each: Sequence[Sequence[float]]) -> str:
    """A row of the table: the mean over the seeds, and its standard error."""
    cells = [str(workers), sampler, ", ".join(map(str, seeds))]
    for values in zip(*each, strict=True):
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        cells.append(f"{statistics.fmean(values):.4f} ± {deviation / len(values) ** 0.5:.4f}")
    return f"| {' | '.join([*cells, commit(), f'{datetime.now(UTC):%Y-%m-%d}'])} |"


def table(rows: Sequence[str], before: str) -> str:
    """The Markdown file, with the rows of the file `before` that are of other settings."""
    kept = {_key(line): line for line in before.splitlines() if line.startswith("| ") and line not in HEADER}
    kept |= {_key(line): line for line in rows}
    lines = [
        "# How good the sampler's proposals are, trial by trial",
        "",
        "Made by `jobs/benchmarks/sampler.py`, whose docstring says what the figures are: hypervolumes, mean over the "
        "seeds and its standard error.",
        "",
        *HEADER,
        *(line for _, line in sorted(kept.items())),
    ]
    return "\n".join(lines) + "\n"


def _key(row: str) -> tuple[int, str, str]:
    """Workers, sampler and commit of a row."""
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    return int(cells[0]), cells[1], cells[6]


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":
        # NumPy reads the number of threads when it is imported.
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
