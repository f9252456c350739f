"""One process of the section `together`: `python -m acceptance.rank RANK SIZE BACKEND DEVICE FILE`; prints `fine`."""

from __future__ import annotations

import os
import sys

import torch
from torch import distributed as dist
from torch import nn

from raprune.data.ranks import Ranks
from raprune.training import distributed


def main() -> None:
    """Join the group, run what raprune's training uses of it, and print what came of it."""
    rank, size, backend, device, file = sys.argv[1:]
    ranks = Ranks(int(rank), int(size))
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group(backend, init_method=f"file://{file}", rank=ranks.rank, world_size=ranks.size)
    torch.manual_seed(0)
    model = _network().to(device)
    x = torch.randn(8, 3, 8, 8, device=device)
    _wrapped(model, x, device)
    distributed.check_equal(model, ranks, torch.device(device), step=0)
    distributed.agree_on_buffers(model, dict(model.named_buffers()), ranks)
    with distributed.joined(model, ranks, lambda: x) as joined:
        joined(x).sum().backward()
    with distributed.synchronised(model, ranks):
        model(x).sum().backward()
    values = torch.ones(2, dtype=torch.float64, device=device)
    dist.all_reduce(values)
    objects: list[object] = [None] * ranks.size
    dist.all_gather_object(objects, ("rank", ranks.rank))
    print("fine", backend, values.tolist(), objects, flush=True)
    dist.destroy_process_group()
    # Gloo's threads may still hold tensors while Python ends, and then end the process by "terminate called without an
    # active exception": the processes of multiprocessing leave this way too.
    os._exit(0)


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def _wrapped(model: nn.Module, x: torch.Tensor, device: str) -> None:
    """Take a backward pass through PyTorch's own wrapper, also in a group of one, where raprune needs none."""
    index = [next(model.parameters()).device] if torch.device(device).type == "cuda" else None
    nn.parallel.DistributedDataParallel(model, device_ids=index)(x).sum().backward()
    model.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
