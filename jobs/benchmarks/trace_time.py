"""CPU time of a trace: `uv run python jobs/benchmarks/trace_time.py [MODEL ...] [--before CHECKOUT]`.

The networks are torchvision's at 224 pixels, by default ResNet-50, DenseNet-121 and ViT-L/16. Every run is a process of
its own on one thread, which traces each network once; neither the start of PyTorch nor the building of a network
counts. With `--before`, runs with the sources of another checkout, such as a worktree of an earlier commit, go by turns
with runs of this one: the median of this one must not be higher.
"""

from __future__ import annotations

import os

# Before NumPy is imported: its BLAS reads this once.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from bar import show
from torchvision import models

from raprune.channels.trace import trace

NETWORKS = ("resnet50", "densenet121", "vit_l_16")
LIMITS_S = {"vit_l_16": 5.0}
"""CPU seconds that a trace may take, whatever it took before."""
HERE = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=NETWORKS, help=f"names (default {' '.join(NETWORKS)})")
    parser.add_argument("--before", type=Path, help="checkout of another commit to compare with")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each checkout (default 5)")
    parser.add_argument("--this-process", action="store_true", help="trace once, here, and print JSON")
    arguments = parser.parse_args()
    if arguments.this_process:
        print(json.dumps({name: cpu_seconds(name) for name in arguments.models}))
        return
    checkouts = [HERE, *([arguments.before.resolve()] if arguments.before else [])]
    runs: list[list[dict[str, float]]] = [[] for _ in checkouts]
    for _ in range(arguments.repeats):
        for checkout, seconds in zip(checkouts, runs, strict=True):
            seconds.append(run(checkout, arguments.models))
    for name in arguments.models:
        now, *before = (statistics.median(one[name] for one in seconds) for seconds in runs)
        for bar in (*before, *([LIMITS_S[name]] if name in LIMITS_S else ())):
            show(name, figure=now, bar=bar, unit="CPU s", more_is_better=False)
        if not before and name not in LIMITS_S:
            print(f"{name}: {now:.3g} CPU s")


def run(checkout: Path, names: list[str]) -> dict[str, float]:
    """Return the CPU seconds of one trace of each network, in a process with the sources of `checkout`."""
    command = [sys.executable, __file__, "--this-process", *names]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(printed))


def cpu_seconds(name: str) -> float:
    """Return the CPU seconds of a trace of one network."""
    torch.set_num_threads(1)
    model, image = models.get_model(name).eval(), torch.zeros(1, 3, 224, 224)
    started = time.process_time()
    trace(model, image)
    return time.process_time() - started


if __name__ == "__main__":
    main()
