"""Learning curves: `RUN/curves/<trial id>.json` and `dense.json`, each written once, at the end of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raprune.store.folder import Store

DENSE = "dense"
"""Name of the dense network's learning curve."""


def write_curve(store: Store, name: str, epochs: Sequence[Mapping[str, float | None]]) -> None:
    """Keep the epochs of the training `name`, each a row of `raprune.training.epoch.Epoch.row`."""
    store.write_json(_file(name), [dict(epoch) for epoch in epochs])


# A JSON edge: the epochs as they were written.
def read_curve(store: Store, name: str) -> list[dict[str, Any]]:
    """The epochs of the training `name`; an empty list if the run has no curve of it.

    Raises:
        StoreError: if it cannot be read.
    """
    curve = store.read_json(_file(name)) if store.exists(_file(name)) else []
    return curve if isinstance(curve, list) else []


def _file(name: str) -> str:
    return f"curves/{name}.json"
