"""Event files of TensorBoard: `RUN/tensorboard/search`, and a folder beside it for each finalist.

A run on an object store has its event files in `tensorboard/<run>` of the working folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboardX import SummaryWriter

from raprune.report.trackers.tracker import TrackedFinalist, TrackedRun, TrackedTrial
from raprune.store.folder import Store


class EventFileTracker:
    """Writes the trials as scalars, whose step is the number of the trial, and the finalists by their epochs."""

    def __init__(self, store: Store) -> None:
        name = store.name.rstrip("/").rpartition("/")[2]
        self.folder = Path("tensorboard", name) if "://" in store.uri else Path(store.uri) / "tensorboard"

    def begin(self, run: TrackedRun) -> None:
        # From step 0 on a resumed run writes again: TensorBoard forgets what an earlier driver wrote.
        self._search = self._writer("search")
        lines = "".join(f"| {name} | {value} |\n" for name, value in run.settings.items())
        self._search.add_text("run", f"{run.address}\n\n| field | value |\n| --- | --- |\n{lines}", 0)

    def trial(self, trial: TrackedTrial) -> None:
        for name, value in trial.metrics.items():
            self._search.add_scalar(f"trial/{name}", value, trial.number, walltime=trial.ended_at)
        self._search.flush()

    def finalist(self, finalist: TrackedFinalist) -> None:
        writer, trial = self._writer(finalist.network), finalist.trial
        for epoch in finalist.curve:
            for name, value in epoch.items():
                if name != "epoch":
                    writer.add_scalar(f"training/{name}", value, int(epoch["epoch"]))
        for name, value in trial.metrics.items():
            writer.add_scalar(f"result/{name}", value, 0, walltime=trial.ended_at)
        lines = "".join(f"| {name} | {value} |\n" for name, value in trial.settings.items())
        writer.add_text("finalist", f"| setting | value |\n| --- | --- |\n{lines}", 0)
        writer.close()

    def end(self, rows: Sequence[TrackedTrial], summary: Mapping[str, float]) -> None:
        for name, value in summary.items():
            self._search.add_scalar(f"run/{name}", value, 0)
        self._search.close()

    def _writer(self, name: str) -> SummaryWriter:
        return SummaryWriter(str(self.folder / name), purge_step=0)
