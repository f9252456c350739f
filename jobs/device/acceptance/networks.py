"""Networks, data and pruners that the sections work on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from acceptance.bench import Bench
from raprune.channels.cache import cached_trace
from raprune.channels.cut import rebuild
from raprune.channels.graph import ChannelGraph
from raprune.data import load_data
from raprune.data.dataset import Dataset, Split
from raprune.models import build_model
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import Workload, build_workload
from raprune.records import Proposal, Setting
from raprune.spec.budget import Budget
from raprune.spec.job import SearchSpec

RESNET20, RESNET56 = "cifar-resnet20", "cifar-resnet56"
WEIGHTS = {RESNET20: "resnet20-cifar10.safetensors", RESNET56: "resnet56-cifar10-jpeg.safetensors"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation that all weights were trained with."""
CLASSES = 1000


class Subject(NamedTuple):
    """A network that candidates are made of."""

    workload: Workload
    graph: ChannelGraph
    pruner: Pruner

    def dense_copy(self) -> nn.Module:
        """Return a copy of the dense network."""
        return rebuild(self.workload.model, lambda name, tensor: tensor.clone())


def cifar_job(bench: Bench, network: str, *, images: int | None, **search: int) -> SearchSpec:
    """The job of a network on CIFAR-10; in a dry run without data, that of the bundled network on its images."""
    job: dict[str, Any] = {
        "budget_flops": 0.5,
        "search": {"calibration_images": bench.sizes.calibration, **search},
        "output": str(bench.work / "run"),
    }
    if bench.data is None:
        return SearchSpec.model_validate({**job, "data": {"max_images": images}})
    data = {
        "name": "parquet",
        "train": str(bench.data / "cifar10-train.parquet"),
        "test": str(bench.data / "cifar10-test.parquet"),
        "max_images": images,
        "validation_fraction": 0.1,
        "mean": MEAN,
        "std": STD,
        "augment": "shift-flip",
    }
    return SearchSpec.model_validate(
        {**job, "data": data, "model": {"name": network, "weights": str(bench.data / WEIGHTS[network])}}
    )


def imagenet_job(bench: Bench) -> tuple[SearchSpec, Dataset]:
    """The job of a network with random weights on random images of ImageNet's size and number of classes."""
    sizes, random = bench.sizes, np.random.default_rng(0)

    def split(count: int) -> Split:
        images = random.integers(0, 256, (count, 3, sizes.pixels, sizes.pixels), dtype=np.uint8)
        return Split(images, random.integers(0, CLASSES, count))

    data = Dataset(
        name="random",
        train=split(sizes.imagenet_images),
        validation=split(max(8, sizes.imagenet_images // 4)),
        test=None,
        num_classes=CLASSES,
        label_names=tuple(str(label) for label in range(CLASSES)),
        mean=MEAN,
        std=STD,
        augment="crop-flip",
    )
    spec = SearchSpec.model_validate(
        {
            "model": {"name": sizes.imagenet},
            "budget_flops": 0.5,
            "search": {"calibration_images": min(2048, sizes.imagenet_images), "eval_batch_size": sizes.imagenet_batch},
            "output": str(bench.work / "run"),
        }
    )
    return spec, data


def make_subject(bench: Bench, spec: SearchSpec, data: Dataset | None = None) -> Subject:
    """Build the network of `spec` on the device, with its data, its channels and a pruner."""
    data = load_data(spec.data, seed=spec.seed) if data is None else data
    workload = build_workload(spec, data=data, device=bench.device)
    # Traced on the CPU, as a search does.
    dense = build_model(spec.model, num_classes=data.num_classes, image_shape=data.image_shape).eval()
    graph = cached_trace(dense, torch.zeros(1, *data.image_shape))
    return Subject(workload, graph, Pruner(workload, graph, spec))


def proposal(
    method: str, *, flops: float = 0.5, allocation: str = "uniform", settings: Mapping[str, Setting] | None = None
) -> Proposal:
    """Propose one candidate of a method with this fraction of the FLOPs."""
    return Proposal(
        number=0, method=method, allocation=allocation, target=Budget(flops=flops), settings=settings or {}, seed=1
    )
