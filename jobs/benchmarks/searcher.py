"""The searcher's own time, as searches and clusters grow: `uv run python jobs/benchmarks/searcher.py`.

Made-up results on the widths of a ResNet-56 (28 groups) with three methods; no network is built and Ray is not used.

* *A proposal* of the default sampler `mixed`, after a number of trials, with the lookahead of a number of workers and
  that many proposals under way: the mean over mutations of the front and TPE.
* *A decision* of successive halving and of `patience`, at a number of results.
* *A resume*: the stored proposals of a number of trials are told to the samplers.

All figures are CPU times of one thread, so that other work on the machine does not count. The table is written to
`searcher.md` beside this file, with the commit, the date and the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from bar import commit, show

from raprune.methods import method_named, searched_settings
from raprune.pareto import Fronts
from raprune.records import Candidate, Metrics, Proposal, Setting, Trial, TrialState
from raprune.sampling.point import Point
from raprune.sampling.promotion import is_promoted
from raprune.sampling.proposals import Proposals
from raprune.sampling.source import trial_seed
from raprune.sampling.space import RATIOS, SearchSpace, make_blocks
from raprune.sampling.stopping import Stagnation
from raprune.spec.budget import Budget
from raprune.spec.job import SamplerSpec

TABLE = Path(__file__).with_name("searcher.md")
PROPOSALS = ((200, 4), (5_000, 4), (5_000, 1_000), (20_000, 4))
"""Trials and workers."""
DECISIONS = (1_000, 5_000, 20_000)
RESUMED = 20_000
TIMED = 60
"""Proposals and decisions that are timed; ten of the proposals are TPE's."""
PROPOSAL_MS, RESUME_S, DECISION_MS = 40.0, 60.0, 5.0
METHODS = ("reconstruction", "taylor", "l2")
CHANNELS = {f"layer{index // 9 + 1}.{index % 9}": 16 << (index // 9) for index in range(27)} | {"stream": 64}
SPACE = SearchSpace(
    methods=METHODS,
    allocations=(RATIOS, "least_damage", "global_rank", "uniform"),
    blocks=make_blocks(tuple(CHANNELS)),
    channels=CHANNELS,
    lowest=0.05,
    highest=0.5,
    settings={name: searched_settings(method_named(name)) for name in METHODS},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-table", action="store_true", help="print the figures only")
    arguments = parser.parse_args()
    rows: list[tuple[str, str, float, str]] = []
    for trials, workers in PROPOSALS:
        figure = proposal_ms(trials, workers)
        show(f"proposal, {trials:,} trials, {workers:,} workers", figure=figure, bar=PROPOSAL_MS, unit="ms", **LESS)
        rows.append((f"a proposal, {workers:,} workers", f"{trials:,}", figure, "ms"))
    for name, decide in (("successive halving", halving), ("patience", patience)):
        for results in DECISIONS:
            figure = decision_ms(decide, results)
            show(f"{name}, {results:,} results", figure=figure, bar=DECISION_MS, unit="ms", **LESS)
            rows.append((f"a decision of {name}", f"{results:,}", figure, "ms"))
    figure = resume_s(RESUMED)
    show(f"resume, {RESUMED:,} trials", figure=figure, bar=RESUME_S, unit="s", **LESS)
    rows.append(("a resume", f"{RESUMED:,}", figure, "s"))
    if not arguments.no_table:
        TABLE.write_text(table(rows))
        print(f"wrote {TABLE.name}")


LESS: dict[str, bool] = {"more_is_better": False}


def proposal_ms(trials: int, workers: int) -> float:
    """Mean CPU milliseconds of a proposal, with as many under way as the lookahead allows."""
    spec = SamplerSpec(trials=1_000_000, lookahead=2 * workers)
    proposals = Proposals(SPACE, spec, seed=0, stored=history(trials))
    running = [proposal for proposal in iter(proposals.next, None) if proposal is not None]
    assert len(running) == 2 * workers
    spent_s = 0.0
    for _ in range(TIMED):
        oldest = running.pop(0)
        proposals.tell(oldest.number, Point.of(tried(oldest)))
        began = time.process_time()
        proposal = proposals.next()
        spent_s += time.process_time() - began
        assert proposal is not None
        running.append(proposal)
    return 1000 * spent_s / TIMED


def decision_ms(
    decide: Callable[[Sequence[tuple[float, float]]], Callable[[tuple[float, float]], object]], results: int
) -> float:
    """Mean CPU milliseconds of a decision after `results` results."""
    points = [Point.of(trial).objectives() for trial in history(results + TIMED)]
    decision = decide(points[:results])
    began = time.process_time()
    for point in points[results:]:
        decision(point)
    return 1000 * (time.process_time() - began) / TIMED


def halving(points: Sequence[tuple[float, float]]) -> Callable[[tuple[float, float]], object]:
    """Decisions about the candidates that come to a rung after `points`."""
    fronts = Fronts()
    for point in points:
        fronts.add(point)
    return lambda point: is_promoted(fronts, point, 1 / 3)


def patience(points: Sequence[tuple[float, float]]) -> Callable[[tuple[float, float]], object]:
    """Decisions about the results after `points`."""
    stagnation = Stagnation(200)
    for point in points:
        stagnation.add(point)

    def decision(point: tuple[float, float]) -> bool:
        stagnation.add(point)
        return stagnation.is_reached

    return decision


def resume_s(trials: int) -> float:
    """CPU seconds until a resumed search makes its first proposal."""
    stored = history(trials)
    began = time.process_time()
    proposals = Proposals(SPACE, SamplerSpec(trials=1_000_000, lookahead=8), seed=0, stored=stored)
    proposal = proposals.next()
    assert proposal is not None and proposal.number == trials
    return time.process_time() - began


def history(trials: int) -> list[Trial]:
    """Trials as a search of `SPACE` proposes them: five of six with ratios, after the warm starts."""
    found = []
    for number in range(trials):
        generator = np.random.default_rng([1, number])
        has_ratios = number >= 27 and number % 6 != 0
        method = METHODS[number % 3] if not has_ratios else METHODS[0]
        target = float(np.exp(generator.uniform(np.log(SPACE.lowest), np.log(SPACE.highest))))
        ratios = np.clip(target**0.5 * np.exp(generator.normal(0, 0.3, len(CHANNELS))), 0.05, 1.0).round(6)
        proposal = Proposal(
            number=number,
            method=method,
            allocation=RATIOS if has_ratios else SPACE.simple[number // 3 % len(SPACE.simple)],
            target=Budget(flops=target),
            settings={name: _drawn(options, generator) for name, options in SPACE.settings[method].items()},
            keep_ratios=dict(zip(CHANNELS, ratios.tolist(), strict=True)) if has_ratios else {},
            seed=trial_seed(0, number),
        )
        found.append(tried(proposal))
    return found


def tried(proposal: Proposal) -> Trial:
    """A made-up trial: the error falls with the cost, and rises with the spread of the ratios."""
    generator = np.random.default_rng([2, proposal.number])
    target = proposal.target.flops or 1.0
    ratios = np.array([proposal.keep_ratios.get(name, target**0.5) for name in CHANNELS])
    error = 0.05 / target**0.5 * (0.9 + 0.2 * ratios.std()) * np.exp(generator.normal(0, 0.15))
    widths = np.maximum(1, (ratios * np.array(list(CHANNELS.values()))).round()).astype(int)
    kept = {name: tuple(range(width)) for name, width in zip(CHANNELS, widths.tolist(), strict=True)}
    metrics = Metrics(
        accuracy=1.0 - min(0.9, float(error)),
        loss=1.0,
        flops=1,
        params=1,
        flops_fraction=target,
        params_fraction=target,
    )
    return Trial(
        trial_id=proposal.trial_id,
        proposal=proposal,
        state=TrialState.COMPLETE,
        candidate=Candidate(proposal.method, kept, proposal.settings),
        metrics=metrics,
        seconds=1.0,
    )


def _drawn(options: Mapping[str, object], generator: np.random.Generator) -> Setting:
    choices = options.get("choices")
    if isinstance(choices, list | tuple):
        drawn: Setting = choices[int(generator.integers(len(choices)))]
        return drawn
    low, high = float(str(options["low"])), float(str(options["high"]))
    return (
        int(generator.integers(int(low), int(high) + 1)) if options.get("int") else float(generator.uniform(low, high))
    )


def table(rows: Sequence[tuple[str, str, float, str]]) -> str:
    """The Markdown file."""
    lines = [
        "# The searcher's own time, as searches and clusters grow",
        "",
        "Made by `jobs/benchmarks/searcher.py`, whose docstring says what the figures are. CPU time of one thread; "
        f"commit {commit()}, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} CPUs.",
        "",
        "| what | trials or results | CPU time |",
        "| --- | --- | --- |",
        *(f"| {what} | {count} | {figure:.3g} {unit} |" for what, count, figure, unit in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":
        # NumPy reads the number of threads when it is imported.
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
