"""What scoring by `reconstruction` takes: `uv run --group dev python jobs/benchmarks/scoring.py`.

All scores of a network from its calibration images, as a search computes them once: ResNet-56 on CIFAR-10 (JPEG) with
2,048 images, and EfficientNet-Lite0 at 224 pixels with 320 photographs, from the checkpoints and the data in the folder
that RAPRUNE_DATA names. Wall time on all cores of a quiet machine; CPU time beside it shows how quiet it was.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from bar import show

from raprune.methods import METHODS
from raprune.pruning.preparation import prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import build_workload
from raprune.spec.toml import load_spec

JOBS = Path(__file__).parents[1]
BARS = {"resnet56_cifar10_reconstruction": (2_048, 10.0), "efficientnet_lite0_sample": (320, 180.0)}
"""Job -> number of calibration images, and the seconds of wall time that it may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", choices=[[], *BARS], help=f"of {', '.join(BARS)}; default all")
    for job in parser.parse_args().jobs or BARS:
        images, bar = BARS[job]
        prepared = prepare(load_spec(JOBS / f"{job}.toml", {"search.calibration_images": images}))
        workload = build_workload(prepared.spec, data=prepared.data, device="cpu", weights=prepared.weights)
        pruner = Pruner(workload, prepared.graph, prepared.spec)
        wall, cpu = time.perf_counter(), time.process_time()
        pruner.scoring.scores(METHODS["reconstruction"](), 0)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        show(f"{job}, wall time of the scores", figure=wall, bar=bar, unit="s", more_is_better=False)
        print(f"    CPU time {cpu:.1f} s, {torch.get_num_threads()} threads", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("RAPRUNE_DATA", str(Path(__file__).parents[3] / "shared" / "data"))
    main()
