"""Two processes against one, same global batch and seed: `uv run python jobs/benchmarks/data_parallel.py`.

ResNet-20 from its checkpoint on 128 images of CIFAR-10 (JPEG), 50 steps of the project's training loop over gloo, batch
norm synchronised. The figure is the largest difference of two loss curves. The control is one process against itself
with the pictures in another order in memory (channels first instead of last): the same sums in another order, and no
second process. What the control shows as well is float32's rounding, which steps through batch norms enlarge, the more
the larger they are: with a peak learning rate of 0.02 control and two processes are both past the bar (8.5e-4 and
7.7e-4), with 0.005 both are at it. In float64 the same code is held to the same bar. Without batch norm the bar is held
in float32 at 0.02 as well (`tests/training/test_distributed.py`).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import tempfile
from pathlib import Path

import torch
from bar import show
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn

from raprune.data.batches import DeviceSplit
from raprune.data.ranks import ALONE, Ranks
from raprune.pruning.preparation import prepare
from raprune.pruning.workload import build_workload
from raprune.spec.job import SearchSpec, TrainSpec
from raprune.spec.toml import load_spec
from raprune.training.loop import train

JOB = Path(__file__).parents[1] / "resnet20_cifar10.toml"
IMAGES = 128
STEPS = 50
BAR = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=0.005, help="peak learning rate (default 0.005)")
    lr = parser.parse_args().lr
    for dtype in (torch.float32, torch.float64):
        model, split = given(dtype)
        one = curve(model, split, ALONE, lr)
        control = curve(model, split, ALONE, lr, channels_last=False)
        with tempfile.TemporaryDirectory() as folder:
            spawn(_process, (folder, model, split, lr), nprocs=2)
            both = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]
        assert torch.equal(*both), "the two processes tell of different losses"
        name = str(dtype).removeprefix("torch.")
        print(f"{name}: loss {one[0]:.4f} to {one[-1]:.4f} in {STEPS} steps", flush=True)
        for what, other in (("two processes - one", both[0]), ("control: memory order", control)):
            figure = float((other - one).abs().max())
            show(f"{name}, {what}, largest of the curve", figure=figure, bar=BAR, unit="nats", more_is_better=False)


def curve(model: nn.Module, split: DeviceSplit, ranks: Ranks, lr: float, *, channels_last: bool = True) -> torch.Tensor:
    """The loss of each step of a copy of `model`, `(STEPS,)`, float64."""
    # A batch is all there is: an epoch's loss is a step's.
    spec = TrainSpec(epochs=STEPS, batch_size=IMAGES, lr=lr, sync_batch_norm=True, channels_last=channels_last)
    history = train(copy.deepcopy(model), split, spec, augment="shift-flip", seed=0, ranks=ranks)
    return torch.tensor([epoch.loss for epoch in history], dtype=torch.float64)


def given(dtype: torch.dtype) -> tuple[nn.Module, DeviceSplit]:
    """The network, and the images."""
    spec: SearchSpec = load_spec(JOB, {"data.test": None})
    prepared = prepare(spec)
    workload = build_workload(spec, data=prepared.data, device="cpu", weights=prepared.weights)
    data = prepared.data
    split = DeviceSplit.place(data.train, data.mean, data.std, "cpu", dtype=dtype, layout=torch.channels_last)
    part = DeviceSplit(
        split.images[:IMAGES].clone(), split.labels[:IMAGES].clone(), split.mean, split.scale, split.layout
    )
    return workload.model.to(dtype), part


def _process(rank: int, folder: str, model: nn.Module, split: DeviceSplit, lr: float) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=datetime.timedelta(minutes=5)
    )
    torch.save(curve(model, split, Ranks(rank, 2), lr), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("RAPRUNE_DATA", str(Path(__file__).parents[3] / "shared" / "data"))
    main()
