"""Sections one after another: each skipped whole when time is short, and none ends the run by its failure."""

from __future__ import annotations

import gc
import math
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from acceptance.bench import Bench
from acceptance.results import SectionState

PATIENCE = 2.5
"""Times of its own seconds after which a section is ended, if there is a deadline."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the acceptance run."""

    name: str
    seconds: float
    """Seconds that the section needs on an H100; with less time left it is skipped."""
    run: Callable[[Bench], None]
    takes_the_rest: bool = False
    """True if the section uses all the time that is left."""


def run_sections(bench: Bench, sections: Sequence[Section]) -> list[Section]:
    """Run the sections in their order, and save the results after each.

    Return the sections that did not run because the GPU no longer answers this process.
    """
    for number, section in enumerate(sections, start=1):
        run_section(bench, section)
        bench.results.save(bench.file)
        if bench.on_gpu and not is_alive():
            return list(sections[number:])
    return []


def run_section(bench: Bench, section: Section) -> None:
    """Run one section; record its failure with its traceback instead of raising it."""
    result = bench.begin(section.name)
    if bench.left_s < section.seconds:
        result.state = SectionState.SKIPPED
        result.reason = f"{bench.left_s:.0f} s were left, it needs {section.seconds:.0f} s"
        print(f"{section.name}: skipped, {result.reason}", flush=True)
        return
    began = bench.clock()
    try:
        with warnings.catch_warnings(), limited(_limit_s(bench, section)):
            warnings.simplefilter("ignore")
            section.run(bench)
        bench.wait()
        result.state = SectionState.PASSED if result.met else SectionState.FAILED
    # Also SystemExit and asserts of what a section calls; Ctrl-C alone ends the run.
    except (Exception, SystemExit) as error:
        result.state = SectionState.FAILED
        result.traceback = traceback.format_exc()
        result.reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        print(result.traceback, flush=True)
    result.seconds = round(bench.clock() - began, 2)
    _tidy(bench)


def is_alive() -> bool:
    """Return True if the GPU still answers this process: after some errors of CUDA every call fails."""
    try:
        return float(torch.ones(1, device="cuda").item()) == 1.0
    except RuntimeError:
        return False


class OverTimeError(RuntimeError):
    """A section that took too long."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise an `OverTimeError` in this thread after so many seconds; infinity sets no limit."""
    if math.isinf(seconds):
        yield
        return

    def end(signal_number: int, frame: FrameType | None) -> None:
        raise OverTimeError(f"it took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _limit_s(bench: Bench, section: Section) -> float:
    """Return the seconds after which a section is ended: what hangs must not take the time of all others."""
    no_limit = section.takes_the_rest or math.isinf(bench.left_s)
    return bench.left_s if no_limit else min(bench.left_s, PATIENCE * section.seconds)


def _tidy(bench: Bench) -> None:
    """Give back the section's memory."""
    gc.collect()
    if bench.on_gpu and is_alive():
        torch.cuda.empty_cache()
