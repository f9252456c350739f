"""How many trials run side by side, and on what. Pure: what the cluster has and what was asked, to a decision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raprune.errors import UsageError
from raprune.spec import ResourceSpec

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Placement:
    """`workers` trials side by side, each on `cpus` processors and `gpus` GPUs of one node."""

    workers: int
    cpus: float
    gpus: float
    reason: str

    @property
    def threads(self) -> int:
        """Torch threads of a trial."""
        return max(1, int(self.cpus))

    @property
    def device(self) -> str:
        return "cuda" if self.gpus > 0 else "cpu"

    @property
    def resources(self) -> dict[str, float]:
        """In Ray's words, for a trial."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus > 0 else {"CPU": self.cpus}


def place(nodes: Sequence[Mapping[str, float]], spec: ResourceSpec, *, lookahead: int) -> Placement:
    """The placement on nodes of these resources (`CPU`, `GPU`, as Ray names them).

    A trial lies on one node. Never more than `lookahead` workers, since proposal n waits for the result of
    n - `lookahead`.

    Raises:
        UsageError: if no node carries a trial, or fewer trials fit than workers were asked for.
    """
    has_gpu = any(node.get("GPU", 0.0) > 0 for node in nodes)
    gpus = spec.gpus_per_trial if spec.gpus_per_trial is not None else float(has_gpu)
    cpus = spec.cpus_per_trial
    capacity = sum(_fits(node, cpus, gpus) for node in nodes)
    if capacity == 0:
        largest = max(nodes, key=lambda n: (n.get("GPU", 0.0), n.get("CPU", 0.0)), default={})
        raise UsageError(
            f"resources: a trial asks for {_words(cpus, gpus)}, and no node of the cluster has that.",
            hint=f"The largest of {len(nodes)} nodes has {_words(largest.get('CPU', 0.0), largest.get('GPU', 0.0))}: "
            f"lower resources.cpus_per_trial or resources.gpus_per_trial.",
        )
    if spec.workers is not None and spec.workers > capacity:
        raise UsageError(
            f"resources.workers (--workers) {spec.workers}: the cluster carries {capacity} "
            f"trial{'s' * (capacity > 1)} of {_words(cpus, gpus)} side by side.",
            hint=f"Use --workers {capacity} or fewer, or lower resources.cpus_per_trial"
            f"{' or resources.gpus_per_trial' if gpus else ''}.",
        )
    asked = spec.workers or capacity
    workers = min(asked, lookahead)
    reason = f"{workers} x {_words(cpus, gpus)}"
    if workers < asked:
        reason += f" (search.lookahead {lookahead} keeps {asked - workers} more idle)"
    return Placement(workers, cpus, gpus, reason)


def _fits(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    by_cpu = math.floor(node.get("CPU", 0.0) / cpus + _TOLERANCE)
    if gpus == 0:
        return by_cpu
    cards = node.get("GPU", 0.0)
    if gpus < 1:
        # A fraction is cut from one card: two halves of different cards carry nothing.
        return min(by_cpu, math.floor(cards) * math.floor(1 / gpus + _TOLERANCE))
    return min(by_cpu, math.floor(cards / gpus + _TOLERANCE))


def _words(cpus: float, gpus: float) -> str:
    text = f"{cpus:g} CPU{'s' * (cpus != 1)}"
    return f"{text} and {gpus:g} GPU{'s' * (gpus != 1)}" if gpus else text
