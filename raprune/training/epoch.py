"""The results of one epoch of a training. Whoever shows them needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch."""

    number: int
    """Number of the epoch, from 1. After each of several cuts a part of an epoch may count as one."""
    epochs: float
    """Number of epochs of the whole training."""
    loss: float
    """Mean of the minimised loss."""
    accuracy: float | None
    """Value of the task's metric on the augmented training images, while the weights changed; None if not known."""
    lr: float
    """Learning rate at the epoch's last step."""
    seconds: float
    """Duration of the epoch."""

    @property
    def reached(self) -> int:
        """How many epochs have begun, at most those of the training: `number` where no epoch has parts."""
        return min(self.number, math.ceil(self.epochs))

    def described(self, metric: str) -> str:
        """Return how the training goes in a few words; `metric` is the name of the task's metric."""
        return f"training loss {self.loss:.4g}" if self.accuracy is None else f"training {metric} {self.accuracy:.2%}"

    def row(self) -> dict[str, float | None]:
        """Return the epoch as a row of its training's learning curve."""
        return {
            "epoch": self.number,
            "epochs": self.epochs,
            "train_loss": self.loss,
            "train_accuracy": self.accuracy,
            "lr": self.lr,
            "seconds": self.seconds,
        }
