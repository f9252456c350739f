"""Runs of Weights & Biases: one for the search with a row for each trial, and one of its group for each finalist.

`WANDB_API_KEY`, `WANDB_PROJECT`, `WANDB_ENTITY` and `WANDB_MODE` say where; the project is `raprune` by default.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import wandb

from raprune.report.trackers.tracker import TrackedFinalist, TrackedRun, TrackedTrial, Value
from raprune.store.folder import Store


class WandbTracker:
    """Writes to runs of its own, whose ids follow from the address of the run, so that a resumed run goes on there."""

    def __init__(self, store: Store) -> None:
        self._address = store.name

    def begin(self, run: TrackedRun) -> None:
        self._name = run.name
        self._search = self._opened("search", run.name, {**run.settings, "address": run.address})
        # Where the run is resumed, the step says how many trials it has.
        self._first = int(self._search.step or 0)

    def trial(self, trial: TrackedTrial) -> None:
        if trial.number >= self._first:
            self._search.log({f"trial/{name}": value for name, value in trial.metrics.items()}, step=trial.number)

    def finalist(self, finalist: TrackedFinalist) -> None:
        opened = self._opened(finalist.network, finalist.network, finalist.trial.settings)
        for epoch in finalist.curve:
            opened.log(dict(epoch), step=int(epoch["epoch"]))
        opened.summary.update(dict(finalist.trial.metrics))
        opened.finish()

    def end(self, rows: Sequence[TrackedTrial], summary: Mapping[str, float]) -> None:
        table = [row.row() for row in rows]
        names = list(dict.fromkeys(name for row in table for name in row))
        self._search.log({"trials": wandb.Table(names, [[row.get(name) for name in names] for row in table])})
        self._search.summary.update(dict(summary))
        self._search.finish()

    def _opened(self, part: str, name: str, config: Mapping[str, Value]) -> Any:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "raprune",
            id=hashlib.sha256(f"{self._address} {part}".encode()).hexdigest()[:16],
            name=name,
            group=self._name,
            job_type="search" if part == "search" else "finalist",
            config=dict(config),
            resume="allow",
            reinit="create_new",
        )
