"""A network for `package.module:function` that meets a broken GPU in one of the workers, and a method that hangs."""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

import ray
import torch
from torch import Tensor, nn

from raprune.channels.graph import ChannelGraph
from raprune.methods import Batches, Scores
from raprune.methods.random import Random

_HELD: list[IO[str]] = []
"""The card of this process, locked."""


class OnCard(nn.Module):
    """A small network. Once its second layer is cut, each run on the broken one of two cards raises a CUDA error.

    A card is a file that a process locks until its end, so whoever replaces a process gets the same card.
    """

    def __init__(self, *, cards: str, num_classes: int) -> None:
        super().__init__()
        self.cards = cards
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.second.out_channels < 16 and _is_worker() and self._is_on_broken_card():
            raise RuntimeError("CUDA error: unspecified launch failure")
        x = torch.relu(self.second(torch.relu(self.first(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out

    def _is_on_broken_card(self) -> bool:
        if not _HELD:
            _HELD.append(_free_card(Path(self.cards)))
        return Path(_HELD[0].name).name == "broken"


def _is_worker() -> bool:
    """True in a worker of the search, which is an actor; tasks have no card."""
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def _free_card(folder: Path) -> IO[str]:
    while True:
        for name in ("broken", "whole"):
            card = (folder / name).open("w")
            try:
                fcntl.flock(card, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                card.close()
            else:
                (folder / f"{name}-{os.getpid()}").touch()
                return card
        time.sleep(0.05)


def build(cards: str = "", num_classes: int = 10) -> nn.Module:
    return OnCard(cards=cards, num_classes=num_classes)


@dataclass(frozen=True, kw_only=True)
class Hanging(Random):
    """Random scores; those of the first trial never come."""

    title: ClassVar[str] = "scores that may never come"

    mark: str = ""
    """File that the trial makes which hangs."""

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        try:
            Path(self.mark).touch(exist_ok=False)
        except FileExistsError:
            return super().score(model, graph, batches, seed=seed)
        while True:
            time.sleep(1.0)
