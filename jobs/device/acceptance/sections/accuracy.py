"""Section `accuracy`: ResNet-56 on CIFAR-10 at 2.1 and 2.57 times fewer FLOPs, trained for the time that is left."""

from __future__ import annotations

import json
import subprocess
import sys

from acceptance.bench import Bench
from acceptance.machine import ROOT
from acceptance.processes import ended, environment
from acceptance.sections.throughput import JUDGED_BATCH

TARGETS = ((1 / 2.1, 0.5), (1 / 2.57, 1.0))
"""Fraction of the FLOPs, and the largest loss of test accuracy in points."""
SETUP_S = 45.0
"""Seconds for loading, scores, repair and the last evaluation of such a training."""
SIDE_BY_SIDE = 0.6
"""Speed of each of two trainings on one card, against one alone; an assumption."""
ASSUMED_RATE = 10_000.0
"""Images a second of one training, where the section `throughput` did not measure it."""
MOST_EPOCHS = 60


def run(bench: Bench) -> None:
    """Train both networks side by side in processes of their own, and judge their test accuracies."""
    epochs = _epochs(bench)
    processes = [_start(bench, flops, epochs) for flops, _ in TARGETS]
    limit_s = 600.0 if bench.sizes.dry else max(30.0, bench.left_s - 5)
    with ended(processes):
        found = [_result(process, limit_s) for process in processes]
    for (flops, most), result in zip(TARGETS, found, strict=True):
        name = f"ResNet-56, {1 / flops:.2f} times fewer FLOPs"
        if isinstance(result, str):
            bench.check(name, False, result)
            continue
        dense, repaired, tuned = (100 * result[key] for key in ("dense", "repaired", "tuned"))
        bench.at_most(
            f"{name}: loss of test accuracy",
            dense - tuned,
            most,
            "points",
            text=f"dense {dense:.2f} %, repaired {repaired:.2f} %, after {epochs:g} epochs {tuned:.2f} %, "
            f"{result['images_a_second']:,.0f} images/s",
        )


def _epochs(bench: Bench) -> float:
    """Return the epochs that fit into the time that is left, at the speed that this run has measured."""
    if bench.sizes.dry:
        return 0.1
    name = f"distilled, batch {JUDGED_BATCH}"
    rates = [line.figure for _, line in bench.results.lines() if line.name == name and line.figure]
    rate = SIDE_BY_SIDE * (rates[-1] if rates else ASSUMED_RATE)
    return float(min(MOST_EPOCHS, max(1, int((bench.left_s - SETUP_S) * rate / 45_000))))


def _start(bench: Bench, flops: float, epochs: float) -> subprocess.Popen[str]:
    options = json.dumps(
        {
            "device": bench.device,
            "dry": bench.sizes.dry,
            "data": None if bench.data is None else str(bench.data),
            "work": str(bench.work),
            "flops": flops,
            "epochs": epochs,
        }
    )
    return subprocess.Popen(
        [sys.executable, "-m", "acceptance.finalist", options],
        env=environment(bench),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _result(process: subprocess.Popen[str], limit_s: float) -> dict[str, float] | str:
    """Return the figures of a training, or the end of its output if it gave none."""
    try:
        text = process.communicate(timeout=limit_s)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        text = f"{process.communicate()[0]}\nended after {limit_s:.0f} s"
    last = text.strip().splitlines()[-1:]
    try:
        figures: dict[str, float] = json.loads(last[0])
    except (IndexError, ValueError):
        return text.strip()[-400:] or f"exit code {process.returncode}, without a word"
    return figures
