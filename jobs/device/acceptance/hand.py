"""The training loop that a careful person writes by hand: distilled, augmented, in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from acceptance.bench import Bench
from raprune.data.batches import DeviceSplit

DISTILLATION, TEMPERATURE = 0.9, 4.0
WARM_UP = 12
"""Steps that are not timed."""
BEFORE_CAPTURE = 4
"""Steps on a stream of their own before a step is captured as a CUDA graph: they make all lazy allocations."""


@dataclass
class HandLoop:
    """A student, its teacher and the images, all on one device."""

    bench: Bench
    student: nn.Module
    teacher: nn.Module
    split: DeviceSplit
    batch: int
    graphed: bool = False
    """Replay the step as a CUDA graph instead of launching its kernels one by one."""

    def __post_init__(self) -> None:
        device, shape = self.split.device, tuple(self.split.images.shape[1:])
        self.student.to(memory_format=torch.channels_last).train()
        # Once, not at each step.
        self.teacher.to(memory_format=torch.channels_last).to(torch.bfloat16 if self.bench.on_gpu else torch.float32)
        self.teacher.eval()
        self.x = torch.empty(self.batch, *shape, device=device).contiguous(memory_format=torch.channels_last)
        self.y = torch.empty(self.batch, dtype=torch.int64, device=device)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
        )

    def images_a_second(self, steps: int) -> float:
        """Return the images a second of `steps` steps."""
        run = self._captured() if self.graphed else self.step
        for _ in range(WARM_UP if self.bench.on_gpu else 1):
            self.feed()
            run()

        def timed() -> None:
            for _ in range(steps):
                self.feed()
                run()

        return steps * self.batch / self.bench.seconds(timed)

    def feed(self) -> None:
        """Fill the next batch: random images, moved by up to four pixels and mirrored by halves."""
        split, device = self.split, self.split.device
        rows = torch.randint(len(split), (self.batch,), device=device)
        padded = functional.pad(split.images[rows], (4, 4, 4, 4))
        height, width = self.x.shape[2:]
        top, left = torch.randint(9, (2, self.batch), device=device).unbind()
        down = (top[:, None] + torch.arange(height, device=device))[:, None, :, None]
        across = left[:, None] + torch.arange(width, device=device)
        mirrored = torch.rand(self.batch, 1, device=device) < 0.5
        across = torch.where(mirrored, across.flip(1), across)[:, None, None, :]
        images = padded[
            torch.arange(self.batch, device=device)[:, None, None, None],
            torch.arange(padded.shape[1], device=device)[None, :, None, None],
            down,
            across,
        ]
        self.x.copy_((images.float() - split.mean) * split.scale)
        self.y.copy_(split.labels[rows])

    def step(self) -> None:
        """Take one step of the optimiser on the batch."""
        device = self.x.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.bench.on_gpu, cache_enabled=not self.graphed):
            logits = self.student(self.x).float()
        with torch.no_grad():
            soft = self.teacher(self.x.to(next(self.teacher.parameters()).dtype)).float()
        divergence = functional.kl_div(
            functional.log_softmax(logits / TEMPERATURE, 1),
            functional.log_softmax(soft / TEMPERATURE, 1),
            reduction="batchmean",
            log_target=True,
        )
        loss = (1 - DISTILLATION) * functional.cross_entropy(logits, self.y)
        loss = loss + DISTILLATION * TEMPERATURE**2 * divergence
        # While a graph is captured, the gradients are allocated in its memory, and each replay writes them anew.
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def _captured(self) -> Callable[[], None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(BEFORE_CAPTURE):
                self.feed()
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay
