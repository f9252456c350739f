"""`raprune inspect` over torchvision's classification models: `uv run python jobs/benchmarks/zoo.py [MODEL ...]`.

Each model has random weights and images of the size that torchvision made it for, and is inspected in a process of its
own on one thread. The seconds are those of the whole command, including the start of Python and PyTorch. The largest
models take more than 16 GB. The rows are kept in `zoo.jsonl` beside this file, and the table `zoo.md` is written from
all of them: a run over some models leaves the others as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bar import show
from kept_rows import KeptRows, Origin, origin_now
from torchvision import models

TABLE = Path(__file__).with_name("zoo.md")
ROWS = Path(__file__).with_name("zoo.jsonl")
LIMIT_S = 60.0
COMMAND = [sys.executable, "-c", "from raprune.cli import main; main()", "inspect"]


@dataclass(frozen=True)
class Inspected:
    """One run of the command."""

    name: str
    seconds: float
    cpu_seconds: float
    error: str = ""
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One model's line of the table."""

    name: str
    cpu_seconds: float
    error: str = ""
    pixels: int = 0
    groups: int = 0
    prunable: float = 0.0
    """Fraction of the parameters that belong to a channel that can be removed."""
    lowest: float = 0.0
    """Fraction of the FLOPs that one channel in each group leaves."""
    permutation: float = 0.0
    """Largest difference after a permutation, relative to the largest output."""
    cut: float | None = None
    """Largest difference from the masked dense network; None where no group can be masked."""
    stays: str = ""

    @classmethod
    def of(cls, run: Inspected) -> Row:
        if run.error:
            return cls(run.name, run.cpu_seconds, run.error)
        found, proof = run.found, run.found["proof"]
        return cls(
            name=run.name,
            cpu_seconds=run.cpu_seconds,
            pixels=found["input_shape"][-1],
            groups=len(found["groups"]),
            prunable=found["prunable_params_fraction"],
            lowest=found["min_flops_fraction"],
            permutation=proof["permutation_error"],
            cut=proof["cut_error"],
            stays=stays(found),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names; default all")
    arguments = parser.parse_args()
    names = arguments.models or models.list_models(module=models)
    kept = KeptRows(ROWS, Row, key=lambda row: row.name)
    inspected = []
    for name in names:
        inspected.append(inspect(name))
        print(summary(inspected[-1]), flush=True)
        kept.add(Row.of(inspected[-1]), origin_now())
        TABLE.write_text(table(kept))
    passed = [run for run in inspected if not run.error and run.found["proof"]["passed"]]
    slowest = max(inspected, key=lambda run: run.seconds)
    show(
        "models that end without an error, every proof passed",
        figure=len(passed),
        bar=len(names),
        unit="models",
        more_is_better=True,
    )
    show(f"slowest model ({slowest.name})", figure=slowest.seconds, bar=LIMIT_S, unit="s", more_is_better=False)


def inspect(name: str) -> Inspected:
    """Run the command on one model and wait for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    with subprocess.Popen(
        [*COMMAND, name, "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        before = os.times()
        out, err = process.communicate()
        after = os.times()
    seconds = time.perf_counter() - started
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    if process.returncode != 0:
        return Inspected(
            name, seconds, cpu, error=(err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        )
    return Inspected(name, seconds, cpu, found=json.loads(out))


def summary(run: Inspected) -> str:
    """One line for the terminal."""
    if run.error:
        return f"{run.name}: {run.error} ({run.seconds:.1f} s)"
    found = run.found
    return (
        f"{run.name} at {found['input_shape'][-1]} px: {len(found['groups'])} groups, "
        f"{found['prunable_params_fraction']:.1%} of the parameters prunable, down to "
        f"{found['min_flops_fraction']:.2%} FLOPs, {run.seconds:.1f} s ({run.cpu_seconds:.1f} s of CPU time)"
    )


def table(kept: KeptRows[Row]) -> str:
    """The Markdown file."""
    lines = [
        "# What can be pruned in torchvision's classification models",
        "",
        f"Made by `jobs/benchmarks/zoo.py`, which runs `raprune inspect` on each of the {len(kept.rows)} models with "
        "random weights, on one thread. *px* is the height and width of the images: the size that torchvision made the "
        "model for. *Prunable* is the fraction of the parameters that belong to a channel that can be removed. *Lowest "
        "FLOPs* is the fraction of the FLOPs that one channel in each group leaves. The errors are the largest "
        "differences in float64, relative to the largest output: after a random permutation of all channels, and "
        "between random cut networks and the masked dense network (- where no group can be masked). The proof runs on "
        "the smallest images that the model takes. *Stays* counts the channels of frozen layers by reason, without the "
        "output layer. *CPU s* is the CPU time of the whole command in seconds, with the start of Python and PyTorch.",
        "",
        "| model | px | groups | prunable | lowest FLOPs | CPU s | permutation | cut | stays | measured |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = sorted(kept.rows.values(), key=lambda row: row.name)
    return "\n".join([*lines, *(line(row, kept.origins[row.name]) for row in rows)]) + "\n"


def line(row: Row, origin: Origin) -> str:
    """One line of the table."""
    measured = f"{origin.date}, {origin.commit}, {origin.machine}"
    if row.error:
        return f"| {row.name} | | | | | {row.cpu_seconds:.1f} | | | {row.error} | {measured} |"
    cells = [
        row.name,
        str(row.pixels),
        str(row.groups),
        f"{row.prunable:.1%}",
        f"{row.lowest:.2%}",
        f"{row.cpu_seconds:.1f}",
        f"{row.permutation:.0e}",
        f"{row.cut:.0e}" if row.cut else "-",
        row.stays,
        measured,
    ]
    return f"| {' | '.join(cells)} |"


def stays(found: dict[str, Any]) -> str:
    """Why channels stay, the output layer aside: the three reasons with the most channels."""
    channels: Counter[str] = Counter()
    for frozen in found["frozen"]:
        reason = frozen["reason"].partition(" (in ")[0]
        if reason != "the network's output":
            channels[reason] += frozen["num_channels"]
    return "; ".join(f"{reason} ({count:,})" for reason, count in channels.most_common(3)) or "the output only"


if __name__ == "__main__":
    main()
