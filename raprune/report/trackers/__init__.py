"""Trackers of experiments that people have: a run is shown there while it is under way.

    search     -> one run of the tracker, one row (a step of its metrics) for each trial
    finalist   -> one run of its own, with its learning curve and its accuracies

The job names the trackers (`track`); their servers, accounts and folders are set by their own environment variables.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence

from raprune.errors import UsageError
from raprune.report.trackers.tracker import Tracker
from raprune.store.folder import Store

TRACKERS = {
    "mlflow": ("mlflow", "raprune.report.trackers.mlflow_runs:MlflowTracker"),
    "tensorboard": ("tensorboardX", "raprune.report.trackers.event_files:EventFileTracker"),
    "wandb": ("wandb", "raprune.report.trackers.wandb_runs:WandbTracker"),
}
"""Name -> the module that it needs, and the class that writes to it."""


def check_installed(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        UsageError: with the command that installs it.
    """
    for name in names:
        module, _ = TRACKERS[name]
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"track: {name} is not installed.", hint=f"pip install 'raprune[{name}]'")


def begin_tracking(names: Sequence[str], store: Store) -> list[tuple[str, Callable[[], Tracker]]]:
    """Each tracker's name, and a function that opens it for the run in `store`, which may fail where it is away."""

    def opener(place: str) -> Callable[[], Tracker]:
        def opened() -> Tracker:
            module, _, kind = place.partition(":")
            tracker: Tracker = getattr(importlib.import_module(module), kind)(store)
            return tracker

        return opened

    return [(name, opener(TRACKERS[name][1])) for name in dict.fromkeys(names)]
