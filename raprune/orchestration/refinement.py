"""Widths near the best so far: those of the front, changed a little. Pure: results in, keep ratios out.

A sampler over keep ratios begins with networks that are cut at random; the first proposals of a search, by predicted
damage, uniform and global, are far better than those. What is near them is better still, as no prediction knows how
the groups' damages come together. So a part of the proposals are children of the front: of the member whose cost is
nearest to the target, with the ratios of a few groups multiplied by a random factor. The projection onto the target
(`allocate.ratios`) does the rest.

Among some children the one that a linear model of all results takes for the best is tried: the logarithm of the error
by those of the ratios, fitted by ridge regression around the parent, as soon as there are results enough to tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raprune.candidate import Setting
from raprune.pareto import non_dominated

STEP = 0.3
"""Standard deviation of the logarithm of a factor: most are between three quarters and four thirds."""
CHANGED = 0.5
"""Share of the groups that a child changes, one at least."""
CHILDREN = 64
"""Of which the model picks one."""
LOWEST = 0.01
LEARNED = 512
"""Results of the nearest costs that the model is fitted to, at most."""
NEAR = np.log(2.0)
"""Distance of two costs, as logarithms, at which a result counts for 1 / e in the model."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A result that proposals may learn from."""

    method: str
    settings: Mapping[str, Setting]
    ratios: Mapping[str, float]
    """Group name -> the share of its channels that stayed, in (0, 1]."""
    cost: float
    """What accuracy is set against, as a fraction of the dense network, in (0, 1]."""
    error: float
    """1 - accuracy, in [0, 1]."""


def parent_of(seen: Sequence[Seen], target: float) -> Seen | None:
    """The member of the front whose cost is nearest to `target`, on a logarithmic scale; None if there is none."""
    front = [seen[index] for index in non_dominated([(one.error, one.cost) for one in seen])]
    return min(front, key=lambda one: abs(np.log(one.cost / target)), default=None)


def child_of(parent: Seen, seen: Sequence[Seen], *, generator: np.random.Generator) -> dict[str, float]:
    """Keep ratios near those of `parent`, in [`LOWEST`, 1]."""
    names = list(parent.ratios)
    own = np.log([parent.ratios[name] for name in names])
    changes = generator.normal(0.0, STEP, (CHILDREN, len(names)))
    changes *= generator.random(changes.shape) < CHANGED
    # One group at least.
    unchanged = np.flatnonzero(~changes.any(axis=1))
    changes[unchanged, generator.integers(len(names), size=len(unchanged))] = STEP
    children = np.clip(own + changes, np.log(LOWEST), 0.0)
    slopes = _slopes(parent, [one for one in seen if one.method == parent.method], names)
    best = 0 if slopes is None else int((_shape(children) @ slopes).argmin())
    # Rounded: a resumed search on another machine has to find the same.
    return {name: round(float(ratio), 6) for name, ratio in zip(names, np.exp(children[best]), strict=True)}


def _shape(logarithms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Without what all ratios have in common, which the projection onto the target sets."""
    return logarithms - logarithms.mean(axis=-1, keepdims=True)


def _slopes(parent: Seen, seen: Sequence[Seen], names: Sequence[str]) -> npt.NDArray[np.float64] | None:
    """How the logarithm of the error changes with that of each ratio at one cost, shape `(G,)`."""
    if len(seen) < 8:
        return None
    seen = sorted(seen, key=lambda one: abs(np.log(one.cost / parent.cost)))[:LEARNED]
    ratios = np.log([[one.ratios[name] for name in names] for one in seen])
    cost = np.log([one.cost for one in seen])
    error = np.log(np.maximum([one.error for one in seen], 1e-4))
    weights = np.sqrt(np.exp(-(((cost - np.log(parent.cost)) / NEAR) ** 2)))
    columns = np.column_stack([np.ones(len(seen)), cost, cost**2, _shape(ratios)]) * weights[:, None]
    penalty = np.diag([1e-6, 1e-6, 1e-3, *[1.0] * len(names)])
    solution = np.linalg.solve(columns.T @ columns + penalty, columns.T @ (error * weights))
    return np.asarray(solution[3:])
