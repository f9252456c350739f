"""The budget of a job, and how it is written: `Budget` is its only form and its only check."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from raprune.errors import UsageError
from raprune.spec.fields import VALID, Part

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
LATENCIES = "a fraction of the dense network's latency, above 0 and at most 1, or a time such as 3ms"
MEMORIES = "a fraction of the dense network's peak, above 0 and at most 1, or a size such as 64MiB"
LatencyFraction = Annotated[float, Field(gt=0.0, le=1.0, json_schema_extra={VALID: LATENCIES})]
MemoryFraction = Annotated[float, Field(gt=0.0, le=1.0, json_schema_extra={VALID: MEMORIES})]

EARLIER = {
    "budget_flops": "budget.flops",
    "budget_params": "budget.params",
    "budget_latency": "budget.latency",
}
"""Field of jobs and runs before the table `[budget]` existed -> the field that replaced it."""

_TIME = re.compile(r"([0-9.]+(?:e-?[0-9]+)?)\s*(us|ms|s)")
_SIZE = re.compile(r"([0-9.]+)\s*([kmg]i?)?b")
_BYTES = {None: 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Budget(Part):
    """The largest fraction of the dense network that may remain. A cost without a value has no limit."""

    flops: Fraction | None = None
    """Fraction of the dense network's FLOPs that may remain. Default: no limit; 0.3 if the job asks for no budget and
    no accuracy."""
    params: Fraction | None = None
    """Fraction of the dense network's parameters that may remain. Default: no limit."""
    latency: LatencyFraction | None = None
    """Latency that may remain: a fraction of the dense network's (0.5), or a time per batch ("3ms"). A time is kept in
    `latency_ms`. Default: no limit."""
    latency_ms: Annotated[float, Field(gt=0.0)] | None = None
    """Latency that may remain, in milliseconds per batch. It becomes the fraction `latency` once the dense network is
    measured. Default: no limit."""
    memory: MemoryFraction | None = None
    """Peak activation memory that may remain: a fraction of the dense network's, or a size. A size, such as "64MiB",
    is for a batch of `latency.batch_size` images, and is kept in `memory_bytes`. Default: no limit."""
    memory_bytes: Annotated[float, Field(gt=0)] | None = None
    """Peak activation memory that may remain, in bytes for a batch of `latency.batch_size` images. It becomes the
    fraction `memory` once the dense network is traced. Default: no limit."""

    @model_validator(mode="before")
    @classmethod
    def _time_is_latency_ms(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        time_ms = _read_time_ms(values.get("latency"))
        if values.get("latency") is not None and values.get("latency_ms") is not None:
            raise ValueError("latency and latency_ms are two limits of one latency; give one of them")
        return values if time_ms is None else values | {"latency": None, "latency_ms": time_ms}

    @model_validator(mode="before")
    @classmethod
    def _size_is_memory_bytes(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        size = _read_bytes(values.get("memory"))
        if values.get("memory") is not None and values.get("memory_bytes") is not None:
            raise ValueError("memory and memory_bytes are two limits of one memory; give one of them")
        return values if size is None else values | {"memory": None, "memory_bytes": size}

    @field_validator("memory", mode="before")
    @classmethod
    def _memory_reads(cls, value: Any) -> Any:
        fraction = None if value is None else _read_fraction(value)
        if value is not None and fraction is None:
            raise ValueError(f"must be {MEMORIES}")
        return fraction

    @field_validator("latency", mode="before")
    @classmethod
    def _latency_reads(cls, value: Any) -> Any:
        if value is None:
            return None
        fraction = _read_fraction(value)
        if fraction is None:
            raise ValueError(f"must be {LATENCIES}")
        return fraction

    @property
    def limits_latency(self) -> bool:
        """True if the budget limits latency, as a fraction or as a time."""
        return self.latency is not None or self.latency_ms is not None

    @property
    def limits_memory(self) -> bool:
        """True if the budget limits peak activation memory, as a fraction or as a size."""
        return self.memory is not None or self.memory_bytes is not None

    @property
    def is_free(self) -> bool:
        """True if the budget limits no cost."""
        return self.flops is None and self.params is None and not self.limits_latency and not self.limits_memory

    @property
    def cost(self) -> str:
        """Cost that accuracy is compared against: `latency` if it is limited and FLOPs are not, else `flops`."""
        return "latency" if self.limits_latency and self.flops is None else "flops"

    @property
    def limit(self) -> float:
        """Fraction of `cost` that may remain; 1 if there is no limit, or a time that is not measured yet."""
        limit = self.latency if self.cost == "latency" else self.flops
        return 1.0 if limit is None else limit

    @property
    def fractions(self) -> dict[str, float | None]:
        """The limits of `flops`, `params`, `latency` and `memory`, in this order; None: no limit."""
        return {"flops": self.flops, "params": self.params, "latency": self.latency, "memory": self.memory}

    def measured(self, dense_ms: float) -> Budget:
        """The budget with its time as a fraction, at most 1, of a dense network that takes `dense_ms`."""
        if self.latency_ms is None:
            return self
        return self.model_copy(update={"latency": min(1.0, self.latency_ms / dense_ms), "latency_ms": None})

    def traced(self, dense_bytes: int) -> Budget:
        """The budget with its size as a fraction, at most 1, of a dense network whose batch needs `dense_bytes`."""
        if self.memory_bytes is None:
            return self
        return self.model_copy(update={"memory": min(1.0, self.memory_bytes / dense_bytes), "memory_bytes": None})

    def share(self, share: float) -> Budget:
        """The budget with this fraction of its first limit: of FLOPs, else of latency, parameters or memory."""
        # Rounded: two thirds of 0.3 is 0.2, and a network of exactly that is within it.
        if self.cost == "latency":
            return self.model_copy(update={"latency": round(share * self.limit, 6), "latency_ms": None})
        if self.flops is None and self.params is not None:
            return self.model_copy(update={"params": round(share * self.params, 6)})
        if self.flops is None and self.memory is not None:
            return self.model_copy(update={"memory": round(share * self.memory, 6)})
        return self.model_copy(update={"flops": round(share * self.limit, 6)})

    def admits(
        self,
        *,
        flops_fraction: float,
        params_fraction: float,
        latency_fraction: float | None = None,
        memory_fraction: float | None = None,
    ) -> bool:
        """True if a network of these fractions of the dense one is within the budget (equality is within).

        A network whose latency was never measured is within no budget of latency, and likewise for memory. A limit in
        `latency_ms` counts only once it is `measured`, and a limit in `memory_bytes` once it is `traced`.
        """
        return (
            (self.flops is None or flops_fraction <= self.flops)
            and (self.params is None or params_fraction <= self.params)
            and (self.latency is None or (latency_fraction is not None and latency_fraction <= self.latency))
            and (self.memory is None or (memory_fraction is not None and memory_fraction <= self.memory))
        )


def with_budget_table(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a job in which the fields of `EARLIER` are moved into the table `budget`.

    Raises:
        UsageError: if a limit is given in both forms.
    """
    found = {key: value for key, value in values.items() if key not in EARLIER}
    earlier = {EARLIER[key].partition(".")[2]: value for key, value in values.items() if key in EARLIER}
    budget = found.get("budget", {})
    if not earlier or not isinstance(budget, Mapping):
        return dict(values)
    both = [name for name, value in earlier.items() if value is not None and budget.get(name) is not None]
    if both:
        raise UsageError(
            f"budget_{both[0]} and budget.{both[0]}: two forms of the same field.",
            hint=f"Give one of them: {both[0]} in the table [budget].",
        )
    return found | {"budget": earlier | {key: value for key, value in budget.items() if value is not None}}


def accuracy_floor(min_accuracy: float | None, max_drop: float | None, dense_accuracy: float | None) -> float | None:
    """The validation accuracy that a candidate has to keep, the higher of the two; None where nothing is asked.

    `max_drop` is the largest loss against `dense_accuracy`; all three in [0, 1].
    """
    floors = [] if min_accuracy is None else [min_accuracy]
    if max_drop is not None and dense_accuracy is not None:
        floors.append(dense_accuracy - max_drop)
    return max(floors, default=None)


def _read_time_ms(value: object) -> float | None:
    """Milliseconds of a time such as "3ms"; None if the value is not a time above 0."""
    match = _TIME.fullmatch(str(value).strip().lower())
    number = _number(match[1]) if match else math.nan
    return number * _MILLISECONDS[match[2]] if match and number > 0 else None


def _read_bytes(value: object) -> float | None:
    """Bytes of a size such as "64MiB" or "2GB"; None if the value is not a size of one byte or more."""
    match = _SIZE.fullmatch(str(value).strip().lower())
    number = _number(match[1]) if match else math.nan
    return number * _BYTES[match[2]] if match and number > 0 else None


def _read_fraction(value: object) -> float | None:
    """The fraction of 0.5, "0.5" or "50%"; None if the value is no fraction in (0, 1]."""
    text = str(value).strip().lower()
    number = _number(text.removesuffix("%"))
    fraction = number / 100 if text.endswith("%") else number
    return fraction if 0 < fraction <= 1 else None


def _number(text: str) -> float:
    """The number, or NaN."""
    try:
        return float(text) if re.fullmatch(r"[0-9.]+(e-?[0-9]+)?\s*", text) else math.nan
    except ValueError:
        return math.nan
