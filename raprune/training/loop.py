"""The only training loop: for dense networks, sparsity phases, and the fine-tuning of finalists.

SGD or AdamW under a learning rate that changes with each step (optimiser.py); the loss of a task (tasks/), and
distillation if there is a teacher (distillation.py). One process or several (distributed.py), with checkpoints after
epochs.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raprune.channels.evaluating import evaluating
from raprune.data.augment import Augmentation
from raprune.data.batches import DeviceSplit, batch_sizes
from raprune.data.host import HostSplit
from raprune.data.ranks import ALONE as ALONE
from raprune.data.ranks import Ranks as Ranks
from raprune.errors import ModelError
from raprune.models.memory_format import laid_out
from raprune.models.precision import half_precision
from raprune.spec.job import TrainSpec
from raprune.training import distributed
from raprune.training.checkpoint import Checkpoints as Checkpoints
from raprune.training.checkpoint import unpack
from raprune.training.distillation import Answers, ChannelMap, FeatureMaps, balanced_weight, teacher_in
from raprune.training.epoch import Epoch
from raprune.training.mixing import Mixing
from raprune.training.optimiser import rate
from raprune.training.state import TrainingState
from raprune.training.step import FEWEST_STEPS, BatchStep, GraphedStep
from raprune.training.tasks.classification import CLASSIFICATION
from raprune.training.tasks.task import Task, in_float32

BENCHMARK_FROM = 500
"""Number of steps from which cuDNN times its algorithms: for a few steps the timings take longer than they save."""

_LOG = logging.getLogger(__name__)


class TrainingSplit(Protocol):
    """Protocol of a training split: images in memory (data/batches.py), or streamed (data/streamed.py)."""

    @property
    def device(self) -> torch.device:
        """Device of the batches."""

    @property
    def layout(self) -> torch.memory_format:
        """Memory format of the batches."""

    def __len__(self) -> int:
        """Return the number of images in an epoch."""

    def shuffled(
        self, batch_size: int, generator: torch.Generator, augment: str | Augmentation, ranks: Ranks
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch in random order: the part of this process of each batch of `batch_sizes`.

        Images are normalised and augmented, `(B, C, H, W)`; targets have the task's shape, labels `(B,)`. `generator`
        is on the CPU and the same in all processes.
        """


def train(
    model: nn.Module,
    split: TrainingSplit,
    spec: TrainSpec,
    *,
    augment: str,
    seed: int,
    task: Task = CLASSIFICATION,
    teacher: nn.Module | None = None,
    channels: ChannelMap | None = None,
    regularize: Callable[[nn.Module], None] | None = None,
    ranks: Ranks = ALONE,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    before: Sequence[Epoch] = (),
) -> list[Epoch]:
    """Train `model` for `task` in place, leave it in evaluation mode, and return the epochs, with those of a resume.

    On the CPU the same seed gives the same weights, also after a resume from `checkpoints`. `channels` maps the
    teacher's feature maps to the model's; without it the loss does not use feature maps. `regularize` may change the
    gradients of the whole batch: it is called between the backward pass and the optimiser's step. `before` are the
    epochs of trainings that this one continues; numbers go on from them, checkpoints keep them, and they are returned.

    With several `ranks` each process calls this function with an equal model and equal arguments; all end with equal
    weights. `spec.batch_size` is the batch of all processes together, so their number changes only the speed, the
    statistics of batch norm, and the random numbers of dropout. Only rank 0 saves checkpoints; everything else happens
    in all processes, including `on_epoch`.

    Raises:
        ModelError: if the loss is no longer finite, or the processes hold different networks.
    """
    sizes = batch_sizes(len(split), spec.batch_size)
    # Minus a small number, because 0.1 * 30 is slightly larger than 3.
    total = math.ceil(spec.epochs * len(sizes) - 1e-9)
    layout = split.layout if spec.channels_last else torch.contiguous_format
    model.train()
    with ExitStack() as stack:
        # Dropout draws from the global generator, which is seeded for each epoch and restored afterwards.
        stack.enter_context(torch.random.fork_rng([split.device] if split.device.type == "cuda" else []))
        stack.enter_context(laid_out(model, layout))
        half = _half_precision(spec, split.device)
        if teacher is not None and half is not None:
            teacher = teacher_in(half, teacher)
        stack.enter_context(laid_out(teacher, layout))
        if distributed.synchronises(spec, ranks):
            stack.enter_context(distributed.synchronised(model, ranks))
        # Gradients of float16 would often be too small for the type.
        scaler = torch.amp.GradScaler(split.device.type, enabled=half is torch.float16)
        course = TrainingState(model, spec, seed, scaler, of=_description(model, split, spec, augment, seed))
        course.before = list(before)
        if checkpoints is not None:
            course.resume(checkpoints.load())
        distributed.check_equal(model, ranks, split.device, step=course.step)
        policy = spec.policy if task.augments else "none"
        changes = Augmentation(augment if task.augments else "none", spec.crop_scale, policy, spec.policy_magnitude)
        mixing = _mixing(spec, task, split.device, seed, ranks)
        share = None if mixing is None else mixing.share
        answers = None
        if spec.teacher_once and teacher is not None and mixing is None and not changes.augments and spec.features == 0:
            split, answers = _with_answers(split, teacher.eval(), spec, task, half)
        trained = task.smoothed(spec.label_smoothing)
        objective = stack.enter_context(
            _objective(model, teacher, channels, spec, trained, share, answers, half, split, ranks)
        )
        if course.features is None:
            course.features = _weight_of_maps(objective, model, split, spec, seed)
        objective = replace(objective, features=course.features)
        tally = _Tally(split.device, task)

        def step(x: Tensor, y: Tensor) -> None:
            _backward(objective, scaler, x, y, sizes[course.step % len(sizes)], ranks, tally)
            course.unscale()
            if regularize is not None:
                regularize(model)
            if spec.clip > 0:
                nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
            course.update()

        take_step: BatchStep = step
        if split.device.type == "cuda" and spec.cuda_graph and task.capturable:
            take_step = _replayed(step, course, sizes[0], split.device, ranks, regularize, steps=total - course.step)
        if split.device.type == "cuda" and total > BENCHMARK_FROM:
            stack.enter_context(timed_algorithms())
        while course.step < total:
            torch.manual_seed(_epoch_seed(seed, ranks.rank, len(course.history)))
            started = time.perf_counter()
            tally.clear()
            batches = split.shuffled(spec.batch_size, course.generator, changes, ranks)
            if mixing is not None:
                own = [part.stop - part.start for part in map(ranks.part, sizes)]
                batches = mixing.epoch(batches, own, len(course.history))
            for x, y in batches:
                lr = rate(course.step, total, spec)
                course.set_lr(lr)
                take_step(x.contiguous(memory_format=layout), y)
                tally.count += sizes[course.step % len(sizes)]
                course.end_step()
                if course.step == total:
                    break
            number = len(course.before) + len(course.history) + 1
            epochs = spec.epochs + (course.before[-1].epochs if course.before else 0.0)
            epoch = tally.epoch(number, epochs, lr, started, ranks)
            _check_finite(epoch, spec)
            course.end_epoch(epoch, ranks)
            if checkpoints is not None and ranks.rank == 0 and (course.step == total or checkpoints.is_due()):
                checkpoints.save(course.content())
            if on_epoch is not None:
                on_epoch(epoch)
        course.finish()
    # Gradients take as much memory as the weights, and are not needed any more.
    model.zero_grad(set_to_none=True)
    model.eval()
    return [*course.before, *course.history]


def is_checkpoint_of(
    content: bytes | None, model: nn.Module, split: TrainingSplit, spec: TrainSpec, *, augment: str, seed: int
) -> bool:
    """True if `train` with these arguments would resume from `content`."""
    if content is None:
        return False
    try:
        _, progress = unpack(content)
    except ValueError:
        return False
    of = _description(model, split, spec, augment, seed)
    return all(value == of.get(name) for name, value in progress["of"].items())


def _with_answers(
    split: TrainingSplit, teacher: nn.Module, spec: TrainSpec, task: Task, half: torch.dtype | None
) -> tuple[TrainingSplit, Answers | None]:
    """Return the split with each image's place as its label, and the teacher's answers at these places.

    The split is returned as it is, with None, where the answers are too large or it is not in memory.
    """
    if not isinstance(split, DeviceSplit | HostSplit) or spec.distillation == 0 or not task.distils:
        return split, None
    answers = Answers.of(teacher, split, spec.batch_size, half)
    if answers is None:
        return split, None
    return replace(split, labels=torch.arange(len(split), device=split.labels.device)), answers


def _mixing(spec: TrainSpec, task: Task, device: torch.device, seed: int, ranks: Ranks) -> Mixing | None:
    """Return the changes of whole batches; None if there are none. Images are mixed for tasks that allow it."""
    if not task.mixes:
        spec = spec.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    if max(spec.erase, spec.mixup, spec.cutmix) == 0:
        return None
    return Mixing(spec, device, seed=seed, rank=ranks.rank)


def _replayed(
    step: BatchStep,
    course: TrainingState,
    batch_size: int,
    device: torch.device,
    ranks: Ranks,
    regularize: Callable[[nn.Module], None] | None,
    *,
    steps: int,
) -> BatchStep:
    """Return `step`, replayed as a CUDA graph where that is possible and pays."""
    reasons = {
        f"{steps} steps are too few": steps < FEWEST_STEPS,
        "several processes train together": ranks.size > 1,
        "float16 may leave steps out": course.scales,
        # A regulariser that counts its calls, for example, does other work in each of them.
        "the regulariser's work may change": regularize is not None and not getattr(regularize, "capturable", False),
    }
    for reason, holds in reasons.items():
        if holds:
            _LOG.info("Training step is not replayed as a CUDA graph: %s.", reason)
            return step
    return GraphedStep(step, batch_size=batch_size, device=device, forget=course.forget_gradients)


@contextmanager
def timed_algorithms() -> Iterator[None]:
    """Let cuDNN time its algorithms for each shape within the context, and take the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@dataclass(frozen=True)
class _Objective:
    """The loss that is minimised."""

    model: nn.Module
    """The trained network, wrapped if there are several processes."""
    teacher: nn.Module | None
    maps: FeatureMaps | None
    features: float
    """Weight of the feature maps."""
    spec: TrainSpec
    task: Task
    share: Tensor | None
    """Part of an image's own label where images are mixed: see `Mixing.share`."""
    answers: Answers | None
    """The teacher's outputs and the targets, where they were computed once; the targets are then the images' places."""
    half: torch.dtype | None
    """16-bit type of the forward pass; None for float32."""

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Any, Tensor]:
        """Return the mean loss over images `(B, C, H, W)` with targets `y`, the outputs, and the targets.

        Targets have a second axis of length 2 where images are mixed.
        """
        spec, task = self.spec, self.task
        with torch.autocast(x.device.type, dtype=self.half or torch.bfloat16, enabled=self.half is not None):
            outputs = in_float32(task.run(self.model, x, y))
            # Not inference_mode, because autograd keeps the teacher's outputs for the backward pass.
            with torch.no_grad():
                asked = self.teacher if self.answers is None else None
                taught = None if asked is None else in_float32(task.run(asked, x, y))
        if self.answers is not None:
            taught, y = self.answers.logits[y], self.answers.labels[y]
        own, *partners = [y] if self.share is None else y.unbind(1)
        loss = task.loss(outputs, own)
        if self.share is not None:
            loss = torch.lerp(task.loss(outputs, partners[0]), loss, self.share)
        if taught is not None and spec.distillation > 0 and task.distils:
            soft = task.distil(outputs, taught, spec)
            loss = (1 - spec.distillation) * loss + spec.distillation * soft
        if self.maps is not None:
            loss = loss + self.features * self.maps.loss()
        return loss, outputs, y


@contextmanager
def _objective(
    model: nn.Module,
    teacher: nn.Module | None,
    channels: ChannelMap | None,
    spec: TrainSpec,
    task: Task,
    share: Tensor | None,
    answers: Answers | None,
    half: torch.dtype | None,
    split: TrainingSplit,
    ranks: Ranks,
) -> Iterator[_Objective]:
    """Yield the objective; within the context the networks are observed and joined with those of other processes."""
    with_maps = spec.features != 0 and channels is not None and task.maps
    if teacher is not None:
        teacher = teacher.eval() if (spec.distillation > 0 and task.distils) or with_maps else None
    maps = None
    if teacher is not None and channels is not None and with_maps:
        maps = FeatureMaps(model, teacher, channels, split.device)

    def example() -> Tensor:
        x, _ = next(split.shuffled(2, torch.Generator(), "none", ALONE))
        return x

    try:
        with distributed.joined(model, ranks, example) as joined:
            yield _Objective(joined, teacher, maps, 0.0, spec, task, share, answers, half)
    finally:
        if maps is not None:
            maps.close()


def _weight_of_maps(objective: _Objective, model: nn.Module, split: TrainingSplit, spec: TrainSpec, seed: int) -> float:
    """Return the weight of the feature maps; with `auto` by the gradients of one batch, the same in all processes.

    The network is in evaluation mode: statistics of a batch would change the buffers of its batch norms.
    """
    if spec.features != "auto":
        return float(spec.features)
    if objective.maps is None:
        return 0.0
    count = max(1, spec.batch_size // spec.accumulate)
    x, y = next(split.shuffled(count, torch.Generator().manual_seed(seed), "none", ALONE))
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model):
        rest, _, _ = replace(objective, model=model, share=None)(x, y)
        return balanced_weight(_gradient_norm(rest, weights), _gradient_norm(objective.maps.loss(), weights))


def _gradient_norm(loss: Tensor, weights: Sequence[nn.Parameter]) -> float:
    """Return the norm of the gradient of `loss` by all `weights`; the graph stays for another gradient."""
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return float(nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))


def _half_precision(spec: TrainSpec, device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type of the forward and backward pass; None for float32."""
    if spec.precision == "auto":
        return half_precision(device)
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(spec.precision)


def _backward(
    objective: _Objective,
    scaler: torch.amp.GradScaler,
    x: Tensor,
    y: Tensor,
    count: int,
    ranks: Ranks,
    tally: _Tally,
) -> None:
    """Compute the gradients of the mean loss over a batch of `count` images; `x`, `y` are this process's part."""
    factor = ranks.mean_factor(len(y), count)
    # At least two images per part, because batch norm cannot train on one image.
    parts = min(objective.spec.accumulate, max(1, len(y) // 2))
    for number, (images, labels) in enumerate(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True), start=1):
        # The processes add up their gradients once, after the last part.
        with distributed.apart(objective.model) if number < parts else nullcontext():
            loss, outputs, known = objective(images, labels)
            weight = factor * len(labels) / len(y)
            scaler.scale(loss if weight == 1 else loss * weight).backward()
        tally.add(loss, outputs, known, weight * count / ranks.size, objective.share)


class _Tally:
    """Sums over an epoch, kept on the device so that no step waits for a transfer."""

    def __init__(self, device: torch.device, task: Task) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self._task = task
        self._sums: Tensor | None = None if task.judges_training else torch.zeros(0, dtype=torch.float64, device=device)
        self.count = 0
        """Number of images of all processes."""

    def clear(self) -> None:
        """Begin an epoch with the same tensors, which a captured step adds to."""
        self.loss.zero_()
        if self._sums is not None:
            self._sums.zero_()
        self.count = 0

    @torch.no_grad()
    def add(self, loss: Tensor, outputs: Any, y: Tensor, images: float, share: Tensor | None) -> None:
        """Add the mean loss of a part that represents `images` images.

        A mixed image counts by the parts of its targets.
        """
        self.loss += loss.detach().double() * images
        if not self._task.judges_training:
            return
        if share is None:
            sums = self._task.sums(outputs, y)
        else:
            own, other = (self._task.sums(outputs, targets).float() for targets in y.unbind(1))
            sums = torch.lerp(other, own, share)
        if self._sums is None:
            self._sums = torch.zeros_like(sums, dtype=torch.float64)
        part = images / len(y)
        # Where every image counts once, integers stay exact.
        self._sums += sums if abs(part - 1) < 1e-9 else sums * part

    def epoch(self, number: int, epochs: float, lr: float, started: float, ranks: Ranks) -> Epoch:
        assert self._sums is not None, "an epoch has at least one step"
        loss, *sums = distributed.total(torch.cat([self.loss[None], self._sums]), ranks).tolist()
        # The transfer has waited for the epoch's work on the device.
        seconds = time.perf_counter() - started
        known = self._task.judges_training
        value = self._task.value(torch.tensor(sums, dtype=torch.float64), self.count) if known else None
        return Epoch(number, epochs, loss / self.count, value, lr, seconds)


def _check_finite(epoch: Epoch, spec: TrainSpec) -> None:
    if not math.isfinite(epoch.loss):
        raise ModelError(
            f"Training diverged in epoch {epoch.number}: the loss is {epoch.loss}.",
            hint=f"Lower the learning rate (lr is {spec.lr:g}), or check that images and weights are finite.",
        )


def _epoch_seed(seed: int, rank: int, epoch: int) -> int:
    """Return the global generator's seed for an epoch, counted from 0, which does not change after a resume."""
    return (seed + 0x9E3779B97F4A7C15 * rank + 0x2545F4914F6CDD1D * epoch) % 2**63


def _description(model: nn.Module, split: TrainingSplit, spec: TrainSpec, augment: str, seed: int) -> dict[str, Any]:
    """Return the description of a training, by which a checkpoint is matched with its training.

    The initial weights are not included, because a repair on another device gives other last digits.
    """
    shapes = ";".join(f"{name}{tuple(tensor.shape)}" for name, tensor in model.state_dict().items())
    return {
        "network": hashlib.sha256(shapes.encode()).hexdigest()[:16],
        "images": len(split),
        "spec": spec.identity(),
        "augment": augment,
        "seed": seed,
    }
