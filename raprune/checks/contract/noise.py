"""Data for the networks of the checks: a little seeded noise with random labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from raprune.checks.contract.networks import CLASSES
from raprune.data.dataset import Dataset, Split
from raprune.pruning.services import WorkloadServices
from raprune.pruning.workload import Workload
from raprune.spec.job import FinalistSpec, FinetuneSpec, SearchSpec


class Noise:
    """Two calibration batches of noise, and the number of times that they were used."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(2)
        self.data = [
            (torch.randn(8, 3, 8, 8, generator=generator).to(dtype), torch.randint(CLASSES, (8,), generator=generator))
            for _ in range(2)
        ]
        self.calls = 0

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.calls += 1
        yield from self.data


def services_of(model: nn.Module, *, seed: int) -> WorkloadServices:
    """A services around the dense network `model`; an epoch is two steps."""
    rng = np.random.default_rng(3)
    train, validation = (
        Split(rng.integers(256, size=(count, 3, 8, 8), dtype=np.uint8), rng.integers(CLASSES, size=count))
        for count in (16, 40)
    )
    data = Dataset(
        name="noise",
        train=train,
        validation=validation,
        test=None,
        num_classes=CLASSES,
        label_names=(),
        mean=(0.5,) * 3,
        std=(0.3,) * 3,
    )
    spec = SearchSpec(finalists=FinalistSpec(train=FinetuneSpec(batch_size=8, lr=0.01)))
    return WorkloadServices(Workload(model, data, torch.device("cpu"), spec), Noise(), seed=seed)
