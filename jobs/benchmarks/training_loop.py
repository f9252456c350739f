"""The training loop against a plain PyTorch one: `uv run python jobs/benchmarks/training_loop.py`.

ResNet-20 from its checkpoint, CIFAR-10 (JPEG Parquet), both in the folder that RAPRUNE_DATA names; fine-tuning of
`jobs/resnet20_cifar10.toml` on labels alone, in float32. By turns: a stretch of `train()`, a stretch of the plain loop
with the same start, optimiser, schedule, batch and number of steps; a stretch is `--images` images. The bar is on the
median of the turns.

The plain loop is that of torchvision's examples: decoded images in memory (as torchvision's CIFAR10 holds them) go
through RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor and Normalize in a DataLoader with two worker
processes beside its own. Its workers are started before its clock. PyTorch has as many threads as there are processors
on both sides. `train()` reads a uint8 array that stands decoded in memory as well, in the one process. Each side has a
process of its own, as `train()` runs where `raprune.training.cpu_memory` has set up the allocator, and a plain loop
does not; one waits while the other runs.

`--precision bfloat16` is `train()`'s option of that name (`TrainSpec.precision`), `--plain-precision bfloat16` puts
autocast around the plain loop's forward pass.

Accuracy is on the test split's first `--test-images` after one epoch of `--epoch-images` on each side, from the same
checkpoint. The sides draw other augmentation, so that it is equal within noise: two standard errors of the difference
of the two, if they were right independently, are said with it.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from bar import medians, show
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from raprune.data import load_data
from raprune.data.batches import DeviceSplit
from raprune.data.dataset import Split
from raprune.data.host import ImageSplit
from raprune.models import build_model, load_weights
from raprune.pruning.preparation import prepare
from raprune.pruning.workload import Workload, build_workload
from raprune.spec.job import SearchSpec, TrainSpec
from raprune.spec.toml import load_spec
from raprune.training.evaluate import evaluate
from raprune.training.loop import train
from raprune.training.optimiser import one_cycle

JOB = Path(__file__).parent.parent / "resnet20_cifar10.toml"
WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3_840, help="images of a stretch (default 3,840)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default 5)")
    parser.add_argument("--epoch-images", type=int, default=45_000, help="images of the epoch (default: all 45,000)")
    parser.add_argument("--test-images", type=int, default=10_000)
    for flag in ("--precision", "--plain-precision"):
        parser.add_argument(flag, choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    job = load_spec(JOB)
    precisions = (arguments.precision, arguments.plain_precision)
    changes = [{"epochs": 1.0, "distillation": 0.0, "precision": precision} for precision in precisions]
    specs = [job.finalists.train.decided().model_copy(update=change) for change in changes]
    # Both from here, where the allocator is as Python left it: a process has its parent's environment.
    sides = (Apart(Ours, job, specs[0]), Apart(Plain, job, specs[1]))

    seconds: list[list[float]] = [[], []]
    for turn in range(1 + arguments.repeats):
        for side, runs in zip(sides, seconds, strict=True):
            took = side.stretch(arguments.images)
            if turn > 0:
                runs.append(took)
    ours, plain = (arguments.images / median for median in medians(seconds))
    print(
        f"train() in {precisions[0]}: {ours:,.0f} images a second; the plain loop in {precisions[1]}: {plain:,.0f}",
        flush=True,
    )
    show("train() against the plain loop", figure=ours / plain, bar=1.5, unit="x images/s", more_is_better=True)

    accuracies = [side.accuracy(arguments.epoch_images, arguments.test_images) for side in sides]
    error = math.sqrt(sum(accuracy * (1 - accuracy) / arguments.test_images for accuracy in accuracies))
    print("test accuracy after an epoch: train() {:.2%}, the plain loop {:.2%}".format(*accuracies))
    points = 100 * (accuracies[1] - accuracies[0])
    show("lost to the plain loop", figure=points, bar=200 * error, unit="points", more_is_better=False)
    for side in sides:
        side.close()


class Apart:
    """A side in a process of its own."""

    def __init__(self, kind: type[Ours | Plain], job: SearchSpec, spec: TrainSpec) -> None:
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, kind, job, spec), daemon=False).start()
        theirs.close()

    def stretch(self, images: int) -> float:
        """Seconds of training on so many images."""
        return self._asked("stretch", images)

    def accuracy(self, images: int, test_images: int) -> float:
        """On the test split, after an epoch of so many images from the checkpoint."""
        return self._asked("accuracy", images, test_images)

    def close(self) -> None:
        self._ours.close()

    def _asked(self, *question: str | int) -> float:
        self._ours.send(question)
        answer: float = self._ours.recv()
        return answer


def _serve(connection: Connection, kind: type[Ours | Plain], job: SearchSpec, spec: TrainSpec) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    side = kind(job, spec)
    with suppress(EOFError):
        while True:
            name, *arguments = connection.recv()
            connection.send(getattr(side, name)(*arguments))


class Ours:
    """`raprune.training.loop.train`."""

    def __init__(self, job: SearchSpec, spec: TrainSpec) -> None:
        self._job, self._spec = job, spec
        self._prepared = prepare(job)

    def stretch(self, images: int) -> float:
        workload = self._workload()
        started = time.perf_counter()
        self._train(workload, images)
        return time.perf_counter() - started

    def accuracy(self, images: int, test_images: int) -> float:
        workload = self._workload()
        self._train(workload, images)
        return tested(workload.model, workload.test, test_images)

    def _workload(self) -> Workload:
        return build_workload(self._job, data=self._prepared.data, device="cpu", weights=self._prepared.weights)

    def _train(self, workload: Workload, images: int) -> None:
        whole = workload.data.train
        split = workload.place(Split(whole.images[:images], whole.labels[:images]))
        train(workload.model, split, self._spec, augment=workload.augment, seed=0)


class Plain:
    """A loop as PyTorch's examples have it."""

    def __init__(self, job: SearchSpec, spec: TrainSpec) -> None:
        self._job, self._spec = job, spec
        self._data = load_data(job.data, seed=job.seed)

    def stretch(self, images: int) -> float:
        model, loader = self._model(), self._loader(len(self._data.train))
        batches = iter(loader)
        # The workers have come up and filled their queue, and fill it on: a stretch leaves it as full as it found it.
        next(batches)
        time.sleep(2.0)
        started = time.perf_counter()
        self._loop(model, batches, images // self._spec.batch_size)
        return time.perf_counter() - started

    def accuracy(self, images: int, test_images: int) -> float:
        model, loader, data = self._model(), self._loader(images), self._data
        self._loop(model, iter(loader), len(loader))
        assert data.test is not None, "the job names one"
        return tested(model, DeviceSplit.place(data.test, data.mean, data.std, "cpu"), test_images)

    def _model(self) -> nn.Module:
        model = build_model(self._job.model, num_classes=self._data.num_classes, image_shape=self._data.image_shape)
        assert self._job.model.weights is not None, "the job names a checkpoint"
        load_weights(model, self._job.model.weights)
        return model

    def _loader(self, images: int) -> DataLoader[tuple[Tensor, int]]:
        normalise = transforms.Normalize(self._data.mean, self._data.std)
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        pictures = Pictures(self._data.train, images, transforms.Compose([*steps, normalise]))
        return DataLoader(pictures, batch_size=self._spec.batch_size, shuffle=True, num_workers=WORKERS)

    def _loop(self, model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
        spec = self._spec
        decaying = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        groups = [{"params": decaying, "weight_decay": spec.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: one_cycle(min(step, steps - 1), steps, spec.warm_up)
        )
        model.train()
        for _, (x, y) in zip(range(steps), batches, strict=False):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=spec.precision == "bfloat16"):
                logits = model(x)
                loss = functional.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()


class Pictures(Dataset[tuple[Tensor, int]]):
    """Decoded images in memory, made pictures and transformed one by one: what torchvision's CIFAR10 does."""

    def __init__(self, split: Split, count: int, transform: transforms.Compose) -> None:
        # Height, width, channels: as CIFAR10.data.
        self._images = split.images[:count].transpose(0, 2, 3, 1).copy()
        self._labels = split.labels[:count].tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


def tested(model: nn.Module, test: ImageSplit | None, images: int) -> float:
    """Accuracy on the first images of the test split."""
    assert test is not None, "the job names one"
    part = replace(test, images=test.images[:images], labels=test.labels[:images])
    return evaluate(model, part).accuracy


if __name__ == "__main__":
    main()
