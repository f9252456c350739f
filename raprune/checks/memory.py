"""The lines of `raprune check` on the memory of a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from raprune.data.residence import DeviceMemory
from raprune.pruning.memory import CONTEXT, WorkerMemory
from raprune.spec.job import ResourceSpec


def workers_a_card(resources: ResourceSpec) -> int:
    """Return the number of workers that share a GPU; 0 if the job uses none."""
    share = 1.0 if resources.gpus_per_trial is None else resources.gpus_per_trial
    return 0 if share == 0 else max(1, int(1 / share + 1e-9))


def too_small(needed: int, card: DeviceMemory | None) -> str | None:
    """Return a warning if the card has less than `needed` bytes; None if it is large enough or not known."""
    if card is None or needed <= card.total:
        return None
    return (
        f"The card has {size(card.total)} of memory, {size(needed - card.total)} less than the job needs. Lower "
        "search.eval_batch_size, raise finalists.train.accumulate, or give each trial a larger part of a card "
        "(resources.gpus_per_trial)."
    )


def described(memory: WorkerMemory, *, workers: int, card: DeviceMemory | None) -> Iterator[str]:
    """Yield the lines: what a card needs for `workers` workers, and what each of them holds."""
    needed = workers * memory.needed
    shared = f" for {workers} workers that share it" if workers > 1 else ""
    have = f"; this one has {size(card.total)}" if card is not None else ""
    yield f"needs a card of {size(needed)}{shared}{have}"
    always = (
        f"{size(CONTEXT)} CUDA context, {size(memory.calibration)} calibration images, {size(memory.validation)} "
        f"validation images, {size(memory.weights)} weights"
    )
    search = [f"{size(memory.evaluation)} evaluation", f"{size(memory.scores)} scores"]
    if memory.repair:
        search.append(f"{size(memory.repair)} repair")
    yield f"    search {size(memory.searching)}: {always}, and the largest of {', '.join(search)}"
    if memory.training:
        yield (
            f"    fine-tuning {size(memory.finetuning)}: the same, and {size(memory.training)} activations, gradients "
            "and optimiser"
        )
    if workers > 1:
        yield "    images of both splits: one copy in the host's memory for all, from which each batch is copied"
    elif memory.images:
        yield (
            f"    training images {size(memory.images)}: on the card from {size(memory.resident_from)} a worker on, "
            "else in the host's memory, from which each batch is copied"
        )


def size(num_bytes: int) -> str:
    """Return a size in words: in gigabytes of 10^9 bytes, below one in megabytes."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
