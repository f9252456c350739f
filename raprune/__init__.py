"""Condense a trained vision network: a distributed search for its Pareto-optimal pruned sub-networks.

The public names load on first use, so that `import raprune` costs nothing and asks for no GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raprune.channels.cut import cut
    from raprune.channels.trace import trace
    from raprune.orchestration.search import search
    from raprune.pruning.artifact import load

    __version__: str

__all__ = ["__version__", "cut", "load", "search", "trace"]

_HOMES = {
    "trace": "raprune.channels.trace",
    "cut": "raprune.channels.cut",
    "search": "raprune.orchestration.search",
    "load": "raprune.pruning.artifact",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("raprune")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'raprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
