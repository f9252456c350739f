"""Tells the trackers of a run what is new in its folder. A tracker that fails is named once and left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from raprune.records import Stage, Trial
from raprune.report.trackers.tracker import TrackedFinalist, Tracker, summary_of, tracked_run, tracked_trial
from raprune.results.run_results import read_run_results
from raprune.store.folder import Store
from raprune.store.learning_curves import read_curve
from raprune.store.new_trials import TrialReader


class TrackerFeed:
    """The trackers of one run, and what they were told."""

    def __init__(
        self,
        store: Store,
        openers: Sequence[tuple[str, Callable[[], Tracker]]],
        *,
        say: Callable[[str], None],
    ) -> None:
        """`openers` are those of `begin_tracking`; `say` prints a warning."""
        self._store, self._say = store, say
        self._reader = TrialReader(store)
        self._told = 0
        self._trackers: dict[str, Tracker] = {}
        for name, opened in openers:
            self._try(name, partial(self._open, name, opened))

    def tell_new(self) -> None:
        """Tell the trials that were recorded since the last call.

        Raises:
            StoreError: if the store cannot be read.
        """
        for _ in self._reader.read_new(self._store.parts()):
            pass
        new = self._reader.trials[self._told :]
        for number, trial in enumerate(new, start=self._told):
            row = tracked_trial(trial, number)
            for name in list(self._trackers):
                self._try(name, partial(self._trackers[name].trial, row))
        self._told += len(new)

    def end(self) -> None:
        """Tell what is left: new trials, finalists with their curves and accuracies, and the whole run.

        Raises:
            StoreError: if the store cannot be read.
        """
        if not self._trackers:
            return
        self.tell_new()
        results = read_run_results(self._store)
        tested = {row.candidate: row.test_accuracy for row in results.rows}
        rows = [
            tracked_trial(trial, number, test_accuracy=tested.get(trial.network) if trial.counts else None)
            for number, trial in enumerate(self._reader.trials)
        ]
        finalists = [
            TrackedFinalist(network=trial.network, trial=row, curve=_figures(self._store, trial))
            for trial, row in zip(self._reader.trials, rows, strict=True)
            if trial.counts and trial.proposal.stage is Stage.FINETUNE
        ]
        for name in list(self._trackers):

            def work(tracker: Tracker = self._trackers[name]) -> None:
                for finalist in finalists:
                    tracker.finalist(finalist)
                tracker.end(rows, summary_of(results))

            self._try(name, work)

    def _open(self, name: str, opened: Callable[[], Tracker]) -> None:
        tracker = opened()
        tracker.begin(tracked_run(read_run_results(self._store)))
        self._trackers[name] = tracker

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            # Whatever a tracker's library raises: the run is worth more than its picture in a tracker.
            self._trackers.pop(name, None)
            first = (str(error).strip().splitlines() or [""])[0]
            self._say(f"track: {name} is left out from here on: {type(error).__name__}: {first}")


def _figures(store: Store, trial: Trial) -> list[dict[str, float]]:
    """The learning curve of a trial without what is no number."""
    return [
        {name: float(value) for name, value in epoch.items() if isinstance(value, int | float)}
        for epoch in read_curve(store, trial.trial_id)
    ]
