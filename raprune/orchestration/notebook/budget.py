"""The budget as a user of Python writes it: its errors are raprune's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from raprune.errors import UsageError
from raprune.spec.budget import Budget
from raprune.spec.fields import problems


class AskedBudget(Budget):
    """The largest part of the dense network that may remain: `Budget(flops=0.3)` keeps at most 30 % of the FLOPs.

    `flops`, `params`, `latency` and `memory` are fractions of the dense network's, in (0, 1]; `latency` may also be a
    time per batch, such as "3ms", and `memory` a size, such as "64MiB". A cost without a value has no limit.

    Raises:
        UsageError: if a value is out of range or a name is unknown.
    """

    def __init__(self, **limits: Any) -> None:
        try:
            super().__init__(**limits)
        except ValidationError as error:
            raise UsageError(
                "\n".join(f"budget: {problem}" for problem in problems(error, Budget, limits, {})),
                hint='For example raprune.Budget(flops=0.3), or raprune.Budget(latency="3ms").',
            ) from None

    def __repr_name__(self) -> str:
        return "Budget"


def limits_of(budget: Budget | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The limits of a budget that have a value, by name.

    Raises:
        UsageError: if a value is out of range or a name is unknown.
    """
    if budget is None:
        return {}
    checked = budget if isinstance(budget, Budget) else AskedBudget(**budget)
    return checked.model_dump(exclude_none=True)


def plain_budget(budget: Budget | Mapping[str, Any] | None) -> Budget:
    """The budget of a job that has these limits.

    Raises:
        UsageError: as `limits_of`.
    """
    return Budget(**limits_of(budget))
