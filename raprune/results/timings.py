"""Measured times of whole networks, and the speedups of candidates over the dense network.

No torch, no ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from raprune.records import Trial
from raprune.results.rows import CandidateRow, MeasuredSpeed
from raprune.store.folder import Store
from raprune.store.networks import named_as_today

LATENCY_FILE = "report/latency.json"

NOT_FASTER = 0.95
"""Fraction of the dense network's time above which a network is not called faster."""
HARDLY_FASTER = 1 / 3
"""Fraction of the saved FLOPs that a network must save in time, or it is called hardly faster."""
RUNTIMES = {"onnxruntime": "ONNX Runtime", "compile": "torch.compile", "tensorrt": "TensorRT"}
"""Value of `latency.runtime` -> its name; eager PyTorch is not named."""
BUSY = 0.1
"""Fraction of the time that the threads waited for a CPU from which on times say little. Two other processes on two
CPUs made a network of 0.35 ms take 220 ms."""
_WORTH_MENTIONING = 0.1
"""Minimum fraction of saved FLOPs for a remark on a network's time."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of the dense network and of candidates that were taken under the same conditions, in turns."""

    device: str
    threads: int | None
    """CPU threads; None on a GPU, and in runs of earlier versions, which name them in `device`."""
    precision: str
    batch_size: int
    dense_ms: float
    candidates: Mapping[str, float]
    """Network (`Trial.network`) -> milliseconds a batch."""
    runtime: str | None = None
    """Runtime, a value of `latency.runtime`; None in runs of versions that did not write it."""
    waited: float | None = None
    """Fraction of the time of the CPU threads in which other work had the CPUs, in [0, 1]; None where it is not known:
    on a GPU or another machine, on systems other than Linux, and in runs of earlier versions."""

    def speedup(self, candidate: str) -> float | None:
        """The dense network's time over the candidate's; None if the candidate was not timed."""
        time_ms = self.candidates.get(candidate)
        return None if time_ms is None else self.dense_ms / time_ms

    @property
    def is_disturbed(self) -> bool:
        """True if other work of the machine makes the times worthless."""
        return self.waited is not None and self.waited >= BUSY

    @property
    def where(self) -> str:
        """Precision and device in words: `float32 on AMD EPYC, 2 threads`."""
        threads = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.precision} on {self.device}{threads}{runtime_words(self.runtime)}"


def runtime_words(runtime: str | None) -> str:
    """The runtime behind the device, as in `, ONNX Runtime`; empty for eager PyTorch and for None."""
    return f", {RUNTIMES[runtime]}" if runtime in RUNTIMES else ""


@dataclass(frozen=True, kw_only=True)
class Times:
    """All measured times of a run's networks; empty until they are measured."""

    conditions: tuple[Timing, ...] = ()
    """By ascending batch size: one image, and a batch that fills the device, on all threads of the machine."""
    budget: Timing | None = None
    """Times under the conditions of the latency budget; None in a run without one."""

    @property
    def single(self) -> Timing | None:
        """The times of one image; None if they were not measured."""
        return next((timing for timing in self.conditions if timing.batch_size == 1), None)

    @property
    def batch(self) -> Timing | None:
        """The times of the largest batch; None if none were measured."""
        return self.conditions[-1] if self.conditions else None

    # A JSON edge.
    def to_json(self) -> dict[str, Any]:
        """Content of `report/latency.json`: `{"conditions": [timing, ...], "budget": timing or null}`."""
        return {
            "conditions": [asdict(timing) for timing in self.conditions],
            "budget": None if self.budget is None else asdict(self.budget),
        }


def read_times(store: Store, trials: Sequence[Trial]) -> Times:
    """Stored times of the networks of a run with these trials; empty if they were not measured."""
    return times_from(store.read_json(LATENCY_FILE), trials) if store.exists(LATENCY_FILE) else Times()


def times_from(content: Mapping[str, Any], trials: Sequence[Trial] = ()) -> Times:
    """Times from the content of `report/latency.json`.

    Earlier versions wrote a single timing, under the former names of networks (`raprune.store.networks`).
    """
    if "conditions" not in content:
        return Times(conditions=(_timing(named_as_today(content, trials)),))
    budget = content.get("budget")
    return Times(
        conditions=tuple(_timing(entry) for entry in content["conditions"]),
        budget=None if budget is None else _timing(budget),
    )


def _timing(entry: Mapping[str, Any]) -> Timing:
    return Timing(
        **{"threads": None} | {field.name: entry[field.name] for field in fields(Timing) if field.name in entry}
    )


def with_times(rows: Sequence[CandidateRow], times: Times) -> list[CandidateRow]:
    """The rows with their measured times."""
    return [replace(row, measured=_measured(row.candidate, times)) for row in rows]


def _measured(candidate: str, times: Times) -> MeasuredSpeed:
    batch, single, budget = times.batch, times.single, times.budget
    latency_ms = None if budget is None else budget.candidates.get(candidate)
    return MeasuredSpeed(
        measured_batch_size=None if batch is None else batch.batch_size,
        measured_ms=None if batch is None else batch.candidates.get(candidate),
        speedup=None if batch is None else batch.speedup(candidate),
        measured_batch1_ms=None if single is None else single.candidates.get(candidate),
        speedup_batch1=None if single is None else single.speedup(candidate),
        measured_latency_ms=latency_ms,
        measured_latency_fraction=latency_ms / budget.dense_ms if budget and latency_ms else None,
    )


def measured_at(timings: Sequence[Timing]) -> str:
    """Conditions of timings on one device, and the dense network's times under them, in words."""
    if not timings:
        return ""
    sizes = [f"{timing.batch_size} ({timing.dense_ms:.3g} ms for the dense network)" for timing in timings]
    return f"a batch of {' and one of '.join(sizes)}, {timings[0].where}"


def is_faster(row: CandidateRow) -> bool:
    """True if the row's network was measured and takes at most `NOT_FASTER` of the dense network's time."""
    return row.speedup is not None and 1 / row.speedup <= NOT_FASTER


def slow(rows: Sequence[CandidateRow], times: Times) -> str:
    """A remark on the networks that have fewer FLOPs and are measured not, or hardly, faster; empty for none.

    Of times that other work disturbed it says just this.
    """
    measured = [(row, 1 / row.speedup) for row in rows if row.speedup is not None]
    saving = [(row, time) for row, time in measured if 1 - row.flops_fraction >= _WORTH_MENTIONING]
    not_faster = [(row, time) for row, time in saving if not is_faster(row)]
    hardly = [
        (row, time) for row, time in saving if is_faster(row) and 1 - time < HARDLY_FASTER * (1 - row.flops_fraction)
    ]
    if times.batch is not None and times.batch.is_disturbed:
        return (
            f"Other work of the machine had the CPUs for {times.batch.waited:.0%} of the time in which the networks "
            "were timed, so the times say little. `raprune export` times the network it writes."
        )
    if times.batch is None or not (not_faster or hardly):
        return ""
    groups = (("not faster", not_faster), ("hardly faster", hardly))
    counted = [f"{len(some)} of {len(measured)} networks {_are(len(some))} {how}" for how, some in groups if some]
    worst, time = max(not_faster or hardly, key=lambda one: (one[1] - one[0].flops_fraction, one[0].candidate))
    return (
        f"{' and '.join(counted)} than the dense network at batch {times.batch.batch_size}, because narrow layers do "
        f"not fill the device, or operations that have no FLOPs take the time: {worst.candidate} has "
        f"{worst.flops_fraction:.1%} of the FLOPs and takes {time:.1%} of the time. "
        "A search with --budget-latency looks for fast ones."
    )


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
