"""How trainings went, epoch by epoch: `RUN/curves/<trial id>.json`, and `dense.json`, each written once, at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raprune.store.folder import Store

if TYPE_CHECKING:
    from raprune.training.loop import Epoch

DENSE = "dense"
"""What the dense network's curve is called."""


def write_curve(store: Store, name: str, epochs: Sequence[Epoch]) -> None:
    """Keep the epochs of the training `name`."""
    curve = [
        {
            "epoch": epoch.number,
            "epochs": epoch.epochs,
            "train_loss": epoch.loss,
            "train_accuracy": epoch.accuracy,
            "lr": epoch.lr,
            "seconds": epoch.seconds,
        }
        for epoch in epochs
    ]
    store.write_json(_file(name), curve)


def read_curve(store: Store, name: str) -> list[dict[str, Any]]:
    """The epochs of the training `name`; none where it was not kept.

    Raises:
        StoreError: if it cannot be read.
    """
    curve = store.read_json(_file(name)) if store.exists(_file(name)) else []
    return curve if isinstance(curve, list) else []


def _file(name: str) -> str:
    return f"curves/{name}.json"
