"""The bench that a section works at: device, sizes, data, time left, and the lines that it records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from acceptance.results import Line, Results, SectionResult, judged
from acceptance.sizes import Sizes
from acceptance.tables import VERDICTS, shown

Arrays = dict[str, npt.NDArray[np.generic]]
"""Arrays by name, as `numpy.savez` stores them."""


@dataclass
class Bench:
    """Conditions of a run, and where its results go."""

    device: str
    """`cpu`, `cuda`, or one card, `cuda:0`."""
    sizes: Sizes
    data: Path | None
    """Folder with images and weights; None: the bundled data and network."""
    out: Path
    """Folder for the results."""
    work: Path
    """Folder for files that nobody keeps."""
    file: Path
    """JSON file of the results, written after every line."""
    results: Results
    deadline_s: float = math.inf
    """Seconds from `began` after which nothing new begins."""
    clock: Callable[[], float] = time.monotonic
    began: float = 0.0
    reference: Arrays = field(default_factory=dict)
    """Scores of a run on the CPU, to compare with."""
    scores: Arrays = field(default_factory=dict)
    """Scores of this run."""

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_s - (self.clock() - self.began)

    def record(self, name: str, figure: float | None = None, unit: str = "", *, text: str = "") -> None:
        """Record a line that nothing judges."""
        self._add(Line(name=name, figure=figure, unit=unit, text=text))

    def at_least(
        self, name: str, figure: float, bar: float, unit: str, *, text: str = "", anywhere: bool = False
    ) -> None:
        """Record a figure that has to reach `bar`; on a CPU only if the bar holds `anywhere`."""
        self._judge(Line(name=name, figure=figure, unit=unit, text=text, bar=bar), anywhere)

    def at_most(
        self, name: str, figure: float, bar: float, unit: str, *, text: str = "", anywhere: bool = False
    ) -> None:
        """Record a figure that may not pass `bar`; on a CPU only if the bar holds `anywhere`."""
        self._judge(Line(name=name, figure=figure, unit=unit, text=text, bar=bar, more_is_better=False), anywhere)

    def check(self, name: str, held: bool, text: str = "") -> None:
        """Record a fact that has to hold, on every device."""
        self._add(Line(name=name, text=text, passed=bool(held)))

    def _judge(self, line: Line, anywhere: bool) -> None:
        self._add(judged(line) if self.on_gpu or anywhere else line)

    def _add(self, line: Line) -> None:
        section = self.results.sections[-1]
        section.lines.append(line)
        self.results.save(self.file)
        seconds = self.clock() - self.began
        print(f"[{seconds:4.0f} s] {VERDICTS[line.passed]:4} {section.name}: {line.name}: {shown(line)}", flush=True)

    # Times on the device

    def wait(self) -> None:
        """Wait until the GPU has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], *, repeats: int = 1) -> float:
        """Return the mean wall time of `repeats` calls."""
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        self.wait()
        return (time.perf_counter() - began) / repeats

    def peak_gb(self, work: Callable[[], object]) -> float:
        """Return the peak of the GPU's memory during `work`, in GB; 0 on a CPU."""
        if not self.on_gpu:
            work()
            return 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        self.wait()
        return torch.cuda.max_memory_allocated() / 1e9

    def begin(self, name: str) -> SectionResult:
        """Begin a section: lines now belong to it."""
        self.results.sections.append(SectionResult(name))
        return self.results.sections[-1]
