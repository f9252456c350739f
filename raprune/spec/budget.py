"""What may remain of the dense network."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The largest fraction of the dense network that may remain, for each kind of cost.

    `flops`, `params` and `latency` are fractions in (0, 1]; 0.3 keeps at most 30 %. `None` leaves that cost free.
    `raprune.spec.job.Limits` checks what a user gives.
    """

    flops: float | None = None
    params: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        fractions = [value for value in (self.flops, self.params, self.latency) if value is not None]
        assert all(0.0 < value <= 1.0 for value in fractions), f"no fractions of the dense network: {self}"

    @property
    def cost(self) -> str:
        """What accuracy is set against: `flops`, or `latency` where that is limited and FLOPs are not."""
        return "latency" if self.latency is not None and self.flops is None else "flops"

    @property
    def limit(self) -> float:
        """How much of that cost may remain, as a fraction; 1 where it is free."""
        limit = self.latency if self.cost == "latency" else self.flops
        return 1.0 if limit is None else limit

    def share(self, share: float) -> Budget:
        """The budget with so much of its first limit: of FLOPs, else of latency, else of parameters."""
        # Rounded: two thirds of 0.3 is 0.2, and a network of exactly that is within it.
        if self.cost == "latency":
            return replace(self, latency=round(share * self.limit, 6))
        if self.flops is None and self.params is not None:
            return replace(self, params=round(share * self.params, 6))
        return replace(self, flops=round(share * self.limit, 6))

    def admits(self, *, flops_fraction: float, params_fraction: float, latency_fraction: float | None = None) -> bool:
        """Whether a network of these fractions of the dense one is within the budget (equality is within).

        One whose latency was never measured is within no budget of latency.
        """
        return (
            (self.flops is None or flops_fraction <= self.flops)
            and (self.params is None or params_fraction <= self.params)
            and (self.latency is None or (latency_fraction is not None and latency_fraction <= self.latency))
        )


def accuracy_floor(min_accuracy: float | None, max_drop: float | None, dense_accuracy: float | None) -> float | None:
    """The validation accuracy that a candidate has to keep, the higher of the two; None where nothing is asked.

    `max_drop` is the largest loss against `dense_accuracy`; all three in [0, 1].
    """
    floors = [] if min_accuracy is None else [min_accuracy]
    if max_drop is not None and dense_accuracy is not None:
        floors.append(dense_accuracy - max_drop)
    return max(floors, default=None)
