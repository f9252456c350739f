"""A training step that is captured once as a CUDA graph and replayed: one launch instead of hundreds.

The captured function is the step itself, so that a graph changes the speed and nothing else. Only steps whose work is
the same every time can be captured: what Python decides in a step is decided once, at the capture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

BatchStep = Callable[[Tensor, Tensor], None]
"""Function that trains on images `(B, C, H, W)` with labels `(B,)`."""

FEWEST_STEPS = 50
"""Number of steps from which a capture pays: it takes about 0.3 s, and a replayed step saves some milliseconds."""
WARM_UP = 3
"""Number of steps that run as they are before the capture: they allocate momentum, and cuDNN chooses its algorithms."""

_LOG = logging.getLogger(__name__)


class GraphedStep:
    """A step whose full batches are replayed as a CUDA graph; batches of another size run as they are."""

    def __init__(self, step: BatchStep, *, batch_size: int, device: torch.device, forget: Callable[[], None]) -> None:
        """Wrap `step`. `forget` drops the gradients that a capture has left behind."""
        self._step = step
        self._batch_size = batch_size
        self._forget = forget
        self._stream = torch.cuda.Stream(device)
        self._run = 0
        self._failed = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._x: Tensor | None = None
        self._y: Tensor | None = None

    def __call__(self, x: Tensor, y: Tensor) -> None:
        if self._failed or len(x) != self._batch_size:
            self._step(x, y)
        elif self._run < WARM_UP:
            self._run += 1
            self._beside(x, y)
        elif self._replayed(x, y):
            return
        else:
            self._step(x, y)

    def _beside(self, x: Tensor, y: Tensor) -> None:
        """Run the step on the stream of the capture, as a capture demands of the steps before it."""
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            self._step(x, y)
        here.wait_stream(self._stream)

    def _replayed(self, x: Tensor, y: Tensor) -> bool:
        """Replay the step, after its capture at the first time; False if it cannot be captured."""
        if self._graph is None or self._x is None or self._y is None:
            self._x, self._y = x.clone(), y.clone()
            self._graph = self._captured(self._x, self._y)
            if self._graph is None:
                return False
        else:
            self._x.copy_(x)
            self._y.copy_(y)
        self._graph.replay()
        return True

    def _captured(self, x: Tensor, y: Tensor) -> torch.cuda.CUDAGraph | None:
        """Capture the step, which does not run it; None, with a logged reason, if the step cannot be captured."""
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads may copy batches meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._step(x, y)
        except RuntimeError as error:
            self._failed = True
            # PyTorch stays on the stream of a capture that fails.
            torch.cuda.set_stream(here)
            here.wait_stream(self._stream)
            self._forget()
            _LOG.warning("Training step is not replayed as a CUDA graph: %s", str(error).partition("\n")[0])
            return None
        return graph
