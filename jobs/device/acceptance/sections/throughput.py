"""Section `throughput`: images of ResNet-56 a second, by raprune's training loop and by a loop written by hand."""

from __future__ import annotations

import warnings

import torch

from acceptance.bench import Bench
from acceptance.hand import HandLoop
from acceptance.networks import RESNET56, Subject, cifar_job, make_subject
from raprune.data.batches import DeviceSplit
from raprune.spec.job import TrainSpec
from raprune.training.epoch import Epoch
from raprune.training.loop import train

RATE = 30_000.0
"""Distilled images a second at a batch of 128, on an H100."""
JUDGED_BATCH = 128


def run(bench: Bench) -> None:
    """Time the training; at a batch of 128 it has to reach `RATE`, and always the loop that is written by hand."""
    subject = make_subject(bench, cifar_job(bench, RESNET56, images=bench.sizes.cifar))
    for batch in bench.sizes.batches:
        bench.record(f"labels alone, batch {batch}", images_a_second(bench, subject, batch, 0.0), "images/s")
        rate, name = images_a_second(bench, subject, batch, 0.9), f"distilled, batch {batch}"
        if batch == JUDGED_BATCH:
            bench.at_least(name, rate, RATE, "images/s")
        else:
            bench.record(name, rate, "images/s")
        by_hand = _by_hand(bench, subject, batch)
        bench.record(f"the same by hand, batch {batch}", by_hand, "images/s")
        bench.at_least(f"raprune over the loop by hand, batch {batch}", rate / by_hand, 1.0, "x")
        if bench.on_gpu:
            graphed = _by_hand(bench, subject, batch, graphed=True)
            bench.record(f"by hand as a CUDA graph, batch {batch}", graphed, "images/s")
    if bench.on_gpu:
        count = _synchronising_calls(bench, subject)
        bench.record(f"waits for the GPU in a training of {bench.sizes.steps_watched} steps", count, "waits")


def images_a_second(bench: Bench, subject: Subject, batch: int, distillation: float) -> float:
    """Return the images a second of the last epoch of a training by raprune's loop."""
    epochs: list[Epoch] = []
    train(
        subject.dense_copy(),
        subject.workload.training,
        TrainSpec(epochs=bench.sizes.epochs, batch_size=batch, distillation=distillation, lr=0.01),
        augment="shift-flip",
        seed=0,
        teacher=subject.workload.model if distillation else None,
        on_epoch=epochs.append,
    )
    return len(subject.workload.training) / epochs[-1].seconds


def _by_hand(bench: Bench, subject: Subject, batch: int, *, graphed: bool = False) -> float:
    split = subject.workload.training
    assert isinstance(split, DeviceSplit), "the images of CIFAR-10 fit on every card"
    loop = HandLoop(bench, subject.dense_copy(), subject.dense_copy(), split, batch, graphed)
    return loop.images_a_second(bench.sizes.steps * (2 if graphed else 1))


def _synchronising_calls(bench: Bench, subject: Subject) -> int:
    """Return how often a short training waits for the GPU, as PyTorch's debug mode counts it."""
    batch, images = bench.sizes.batches[0], len(subject.workload.training)
    spec = TrainSpec(epochs=bench.sizes.steps_watched * batch / images, batch_size=batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            train(
                subject.dense_copy(),
                subject.workload.training,
                spec,
                augment="shift-flip",
                seed=0,
                teacher=subject.workload.model,
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
