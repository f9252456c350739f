"""Condense a trained vision network: a distributed search for its Pareto-optimal pruned sub-networks.

The public names load on first use, so that `import raprune` costs nothing and asks for no GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raprune.channels.cut import cut
    from raprune.channels.trace import trace
    from raprune.orchestration.notebook.budget import AskedBudget as Budget
    from raprune.orchestration.notebook.prune import prune
    from raprune.orchestration.notebook.run import OpenedRun as Run
    from raprune.orchestration.notebook.search import search
    from raprune.pruning.artifact import load

    __version__: str

__all__ = ["Budget", "Run", "__version__", "cut", "load", "prune", "search", "trace"]

_HOMES = {
    "Budget": "raprune.orchestration.notebook.budget:AskedBudget",
    "Run": "raprune.orchestration.notebook.run:OpenedRun",
    "cut": "raprune.channels.cut:cut",
    "load": "raprune.pruning.artifact:load",
    "prune": "raprune.orchestration.notebook.prune:prune",
    "search": "raprune.orchestration.notebook.search:search",
    "trace": "raprune.channels.trace:trace",
}
"""Public name -> its module, and its name there."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("raprune")
    if name in _HOMES:
        module, _, there = _HOMES[name].partition(":")
        return getattr(importlib.import_module(module), there)
    raise AttributeError(f"module 'raprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
