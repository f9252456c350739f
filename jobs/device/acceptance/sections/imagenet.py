"""Section `imagenet`: ResNet-50 at 224 pixels, with random weights and images: evaluation, training, repair, memory."""

from __future__ import annotations

from torch import nn

from acceptance.bench import Bench
from acceptance.networks import Subject, imagenet_job, make_subject
from raprune.channels.cut import cut
from raprune.methods import Cut, Scores, method_named
from raprune.methods.reconstruction import Reconstruction
from raprune.models.precision import Precision
from raprune.pruning.allocate import allocate, select
from raprune.pruning.room import repair_room
from raprune.pruning.target import Target
from raprune.records import Candidate
from raprune.spec.budget import Budget
from raprune.spec.job import TrainSpec
from raprune.training.epoch import Epoch
from raprune.training.evaluate import evaluate
from raprune.training.loop import timed_algorithms, train

TRAINING_RATE, CANDIDATE_RATE = 2_400.0, 0.4
"""Distilled images a second, and candidates a second of an actor, on an H100."""
VALIDATION = 10_000
"""Validation images of a search on ImageNet, for the rate of candidates."""
MEMORY_GB, ROOM = 20.0, 12 * 10**9
"""Largest peak of the memory, and the bytes that the repair may take of it: an actor on a card of 24 GB."""
HALF = 0.5
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")


def run(bench: Bench) -> None:
    """Time evaluation, distilled training and repair, and see how much memory they take."""
    subject = make_subject(bench, *imagenet_job(bench))
    network, batch = bench.sizes.imagenet, bench.sizes.imagenet_batch

    for precision in PRECISIONS:
        rate = _evaluated_a_second(bench, subject, subject.workload.model, precision)
        bench.record(f"{network}: evaluation in {precision}", rate, "images/s")
    rates: list[float] = []
    peak = bench.peak_gb(lambda: rates.append(_images_a_second(bench, subject, subject.dense_copy())))
    bench.at_least(f"{network}: distilled, batch {batch}", rates[-1], TRAINING_RATE, "images/s")
    bench.record(f"{network}: peak memory of the training", peak, "GB")
    scores = subject.pruner.scoring.scores(method_named("l1")(), 0)
    for multiple_of in (1, 8):
        candidate = _half(subject, scores, multiple_of)
        model = cut(subject.workload.model, subject.graph, candidate)
        rate = _images_a_second(bench, subject, model)
        bench.record(f"half of its FLOPs, multiples of {multiple_of}: distilled", rate, "images/s")
        rate = _evaluated_a_second(bench, subject, model, PRECISIONS[-1])
        bench.record(f"half of its FLOPs, multiples of {multiple_of}: evaluation in {PRECISIONS[-1]}", rate, "images/s")
    seconds: list[float] = []
    peak = bench.peak_gb(lambda: seconds.append(bench.seconds(lambda: _repair(subject, candidate))))
    bench.record("half of its FLOPs: least-squares repair", seconds[-1], "s", text=f"peak memory {peak:.1f} GB")
    in_chunks = bench.peak_gb(lambda: _repair(subject, candidate, room=ROOM))
    bench.at_most(
        f"half of its FLOPs: peak memory of a repair that may take {ROOM / 1e9:g} GB", in_chunks, MEMORY_GB, "GB"
    )
    whole = seconds[-1] + VALIDATION / rate
    bench.at_least(
        f"candidates by reconstruction, {VALIDATION:,} validation images",
        1 / whole,
        CANDIDATE_RATE,
        "a second",
        text=f"repair {seconds[-1]:.2f} s, evaluation {VALIDATION / rate:.2f} s",
    )


def _evaluated_a_second(bench: Bench, subject: Subject, model: nn.Module, precision: Precision) -> float:
    """Return the validation images that are evaluated a second; kernels are chosen in a pass before."""
    split, batch = subject.workload.validation, bench.sizes.imagenet_batch

    def evaluated() -> None:
        evaluate(model, split, batch_size=batch, precision=precision)

    evaluated()
    return len(split) / bench.seconds(evaluated)


def _images_a_second(bench: Bench, subject: Subject, model: nn.Module) -> float:
    """Return the images a second of the second of two epochs, with cuDNN's choices of a long training."""
    epochs: list[Epoch] = []
    # A training as long as a job's lets cuDNN time its algorithms; two epochs here are too few for that.
    with timed_algorithms():
        train(
            model,
            subject.workload.training,
            TrainSpec(epochs=2, batch_size=bench.sizes.imagenet_batch, lr=0.001),
            augment="crop-flip",
            seed=0,
            teacher=subject.workload.model,
            on_epoch=epochs.append,
        )
    return len(subject.workload.training) / epochs[-1].seconds


def _half(subject: Subject, scores: Scores, multiple_of: int) -> Candidate:
    """Return the candidate with half of the FLOPs, all layers at the same ratio."""
    target = Target(budget=Budget(flops=HALF), multiple_of=multiple_of)
    cost = subject.pruner.cost
    widths = allocate("uniform", cost, target, scores=scores, keep_ratios={})
    return select(scores, cost, widths, method="l1", settings={})


def _repair(subject: Subject, candidate: Candidate, *, room: int | None = None) -> None:
    """Cut and repair by least squares, in `room` bytes or, without, in as many as a search on this card allows."""
    dense = subject.workload.model
    model = cut(dense, subject.graph, candidate)
    allowed = repair_room(subject.workload.device) if room is None else room
    Reconstruction().repair(model, subject.pruner.scoring.batches, Cut(dense, subject.graph, candidate.kept, allowed))
