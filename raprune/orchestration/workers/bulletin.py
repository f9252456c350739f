"""The actor between groups of workers and their driver, and their words.

Its process, and that of Ray Train's actor that passes the words on, load neither torch nor Ray Train.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from raprune.errors import RapruneError
from raprune.results.stages import FINETUNE, PHASES
from raprune.training.epoch import Epoch


@dataclass(frozen=True)
class News:
    """An epoch that a group has finished."""

    name: str
    """Name of the training."""
    stage: str
    """Stage of the run that the training belongs to."""
    epoch: Epoch
    attempt: int
    """Number of the attempt at the training, from 1; each finished epoch resets it."""

    @property
    def title(self) -> str:
        """Name of the work, for the user."""
        if self.stage == FINETUNE:
            return f"fine-tuning {self.name}"
        return "training the dense network" + (" for a method" if self.stage == PHASES else "")


class Order(StrEnum):
    """The order for a training, of which all workers of a group get the same."""

    BEGIN = "begin"
    """Train it."""
    TAKE_OVER = "take over"
    """Its result is stored already."""
    LEAVE = "leave"
    """Another group trains it."""
    GIVE_UP = "give up"
    """Its workers were lost on all attempts."""
    STOP = "stop"
    """Begin no further training."""


class Bulletin:
    """The actor between groups and their driver. It outlives their workers and keeps what they reported."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}
        self._ended: set[int] = set()
        self._attempts: Counter[str] = Counter()
        self._faults: dict[str, str] = {}
        self._news: list[News] = []
        self._steps = 0
        self._failure: RapruneError | None = None

    def take(self, training: int, group: str) -> bool:
        """True if this group is to carry out the training of this number: no other group has taken it."""
        return self._owners.setdefault(training, group) == group

    def leave(self, group: str) -> None:
        """Let other groups take the trainings that this group has taken and not ended: it is lost."""
        self._owners = {
            training: owner for training, owner in self._owners.items() if owner != group or training in self._ended
        }

    def end(self, training: int) -> None:
        """Note that the training of this number needs no further work."""
        self._ended.add(training)

    def ended(self) -> int:
        """Number of trainings that need no further work."""
        return len(self._ended)

    def begin(self, name: str) -> int:
        """Number of this attempt at `name`, from 1, since its last progress."""
        self._attempts[name] += 1
        return self._attempts[name]

    def fault(self, name: str, text: str) -> None:
        """Keep the error with which a worker gave up an attempt."""
        self._faults[name] = text

    def last_fault(self, name: str) -> str | None:
        """The last error that `fault` was given for this name; None if there was none."""
        return self._faults.get(name)

    def epoch(self, name: str, stage: str, epoch: Epoch) -> None:
        """Note a finished epoch of a training."""
        self._news.append(News(name, stage, epoch, self._attempts[name]))
        self.came_on(name)
        self._attempts[name] = 1

    def came_on(self, name: str) -> None:
        """Note progress: the next loss counts as the first one again."""
        self._attempts[name] = 0
        self._steps += 1

    def came_up(self, group: str) -> None:
        """Note that a group's workers have network and data."""
        self._attempts[group] = 0

    def steps(self) -> int:
        """Number of times that any training made progress."""
        return self._steps

    def stop(self, failure: RapruneError) -> None:
        """Begin no further training, because of this failure."""
        self._failure = self._failure or failure

    def failure(self) -> RapruneError | None:
        """The failure because of which no further training is begun; None: there is none."""
        return self._failure

    def news(self) -> list[News]:
        """The epochs since the last call."""
        news, self._news = self._news, []
        return news
