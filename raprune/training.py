"""The training loop, the only one: dense networks, sparsity phases, and the fine-tuning of finalists.

SGD with Nesterov momentum under a one-cycle learning rate; cross-entropy with label smoothing, and the distillation of
Hinton, Vinyals and Dean (2015), "Distilling the Knowledge in a Neural Network", when there is a teacher.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.data.batches import DeviceSplit, batch_sizes
from raprune.errors import ModelError
from raprune.layout import laid_out
from raprune.spec import TrainSpec

WARM_UP = 0.15
"""Share of the steps over which the learning rate rises."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    number: int
    """From 1."""
    epochs: float
    """How many there will be."""
    loss: float
    """Mean of what was minimised."""
    accuracy: float
    """Top-1 on the augmented training images, while the weights changed."""
    lr: float
    """At the epoch's last step."""
    seconds: float


def train(
    model: nn.Module,
    split: DeviceSplit,
    spec: TrainSpec,
    *,
    augment: str,
    seed: int,
    teacher: nn.Module | None = None,
    regularize: Callable[[nn.Module], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train `model` in place and leave it in evaluation mode; what each epoch came to.

    On the CPU the same seed gives the same weights. `regularize` may change the gradients: it is called between the
    backward pass and the optimiser's step.

    Raises:
        ModelError: if the loss is no longer finite.
    """
    sizes = batch_sizes(len(split), spec.batch_size)
    # Less a hair: 0.1 * 30 is a little more than 3.
    total = math.ceil(spec.epochs * len(sizes) - 1e-9)
    optimizer = _optimizer(model, spec)
    generator = torch.Generator().manual_seed(seed)
    history: list[Epoch] = []
    step = 0
    model.train()
    # Dropout draws from the global generator: seeded here, and given back as it was.
    devices = [split.device] if split.device.type == "cuda" else []
    with torch.random.fork_rng(devices), laid_out(model, split.layout), laid_out(teacher, split.layout):
        torch.manual_seed(seed)
        while step < total:
            started, tally = time.perf_counter(), _Tally(split.device)
            for x, y in split.shuffled(spec.batch_size, generator, augment):
                lr = spec.lr * one_cycle(step, total)
                loss, logits = _loss(model, teacher, x, y, spec)
                _step(optimizer, loss, lr, model, regularize)
                tally.add(loss, logits, y)
                step += 1
                if step == total:
                    break
            epoch = tally.epoch(len(history) + 1, spec, lr, time.perf_counter() - started)
            _check_finite(epoch, spec)
            history.append(epoch)
            if on_epoch is not None:
                on_epoch(epoch)
    # Gradients are as large as the weights, and nobody reads them any more.
    model.zero_grad(set_to_none=True)
    model.eval()
    return history


def one_cycle(step: int, total: int) -> float:
    """The share of the peak learning rate at `step` of `total`, in (0, 1]: linear up, then half a cosine down."""
    warm_up = max(1, round(WARM_UP * total))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - warm_up) / (total + 1 - warm_up)))


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(teacher || student)` of the softened outputs, mean over the batch; logits `(B, num_classes)`."""
    student = functional.log_softmax(logits / temperature, dim=1)
    target = functional.log_softmax(teacher_logits / temperature, dim=1)
    return functional.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def _optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.SGD:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Shrinking a bias or a norm's scale does not simplify the function.
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    nesterov = spec.momentum > 0
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=nesterov, fused=True)


def _loss(model: nn.Module, teacher: nn.Module | None, x: Tensor, y: Tensor, spec: TrainSpec) -> tuple[Tensor, Tensor]:
    half = spec.precision == "bfloat16" or (spec.precision == "auto" and x.is_cuda)
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
        logits = model(x).float()
        if teacher is None or spec.distillation == 0:
            return functional.cross_entropy(logits, y, label_smoothing=spec.label_smoothing), logits
        # Not inference_mode: autograd keeps the teacher's output for the backward pass, which that forbids.
        with torch.no_grad():
            teacher_logits = teacher(x).float()
    labels = functional.cross_entropy(logits, y, label_smoothing=spec.label_smoothing)
    soft = distillation(logits, teacher_logits, spec.temperature)
    return (1 - spec.distillation) * labels + spec.distillation * soft, logits


def _step(
    optimizer: torch.optim.SGD,
    loss: Tensor,
    lr: float,
    model: nn.Module,
    regularize: Callable[[nn.Module], None] | None,
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if regularize is not None:
        regularize(model)
    optimizer.step()


class _Tally:
    """Sums over an epoch, kept on the device so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.count = 0

    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        self.loss += loss.detach().double() * len(y)
        self.correct += (logits.detach().argmax(1) == y).sum()
        self.count += len(y)

    def epoch(self, number: int, spec: TrainSpec, lr: float, seconds: float) -> Epoch:
        loss, accuracy = self.loss.item() / self.count, self.correct.item() / self.count
        return Epoch(number, spec.epochs, loss, accuracy, lr, seconds)


def _check_finite(epoch: Epoch, spec: TrainSpec) -> None:
    if not math.isfinite(epoch.loss):
        raise ModelError(
            f"Training diverged in epoch {epoch.number}: the loss is {epoch.loss}.",
            hint=f"Lower the learning rate (lr is {spec.lr:g}), or look for images or weights that are not finite.",
        )
