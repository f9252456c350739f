"""Runs of MLflow: one for the search, with a step of its metrics for each trial, and one below it for each finalist.

`MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` say where; the experiment is `raprune` by default.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from raprune.report.trackers.tracker import TrackedFinalist, TrackedRun, TrackedTrial, Value
from raprune.store.folder import Store

TAG = "raprune.run"
"""Tag with the address of the run, by which a resumed run is found again."""
NETWORK = "raprune.network"
LONGEST = 500
"""Longest value of a parameter that every server takes."""


class MlflowTracker:
    """Writes by the client's own calls with explicit run ids: MLflow's active run belongs to the user."""

    def __init__(self, store: Store) -> None:
        self._client = MlflowClient()
        self._address = store.name

    def begin(self, run: TrackedRun) -> None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "raprune"
        known = self._client.get_experiment_by_name(name)
        self._experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        found = self._find(f"tags.`{TAG}` = '{self._address}'")
        searches = [one for one in found if NETWORK not in one.data.tags]
        self._finalists = {one.data.tags[NETWORK] for one in found if NETWORK in one.data.tags}
        if searches:
            self._run_id = searches[0].info.run_id
            history = self._client.get_metric_history(self._run_id, "seconds")
            self._first = 1 + max((metric.step for metric in history), default=-1)
            return
        self._first = 0
        made = self._client.create_run(self._experiment, run_name=run.name, tags={TAG: self._address})
        self._run_id = made.info.run_id
        self._client.log_batch(self._run_id, params=_params(run.settings))

    def trial(self, trial: TrackedTrial) -> None:
        if trial.number >= self._first:
            self._client.log_batch(self._run_id, metrics=_metrics(trial))

    def finalist(self, finalist: TrackedFinalist) -> None:
        if finalist.network in self._finalists:
            return
        tags = {TAG: self._address, NETWORK: finalist.network, "mlflow.parentRunId": self._run_id}
        made = self._client.create_run(self._experiment, run_name=finalist.network, tags=tags)
        curve = [
            Metric(name, value, int(1000 * finalist.trial.ended_at), int(epoch["epoch"]))
            for epoch in finalist.curve
            for name, value in epoch.items()
            if name != "epoch"
        ]
        self._client.log_batch(made.info.run_id, params=_params(finalist.trial.settings))
        self._client.log_batch(made.info.run_id, metrics=[*curve, *_metrics(finalist.trial, step=0)])
        self._client.set_terminated(made.info.run_id)
        self._finalists.add(finalist.network)

    def end(self, rows: Sequence[TrackedTrial], summary: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, 0) for name, value in summary.items()]
        self._client.log_batch(self._run_id, metrics=metrics, tags=[RunTag("raprune.trials", str(len(rows)))])
        table = [row.row() for row in rows]
        names = list(dict.fromkeys(name for row in table for name in row))
        # The form of `mlflow.log_table`, which needs pandas.
        content = {"columns": names, "data": [[row.get(name) for name in names] for row in table]}
        self._client.log_text(self._run_id, json.dumps(content), "trials.json")
        self._client.set_tag(self._run_id, "mlflow.loggedArtifacts", '[{"path": "trials.json", "type": "table"}]')
        self._client.set_terminated(self._run_id)

    def _find(self, query: str) -> list[Run]:
        return list(self._client.search_runs([self._experiment], query, max_results=1000))


def _params(settings: Mapping[str, Value]) -> list[Param]:
    return [Param(name, str(value)[:LONGEST]) for name, value in settings.items()]


def _metrics(trial: TrackedTrial, step: int | None = None) -> list[Metric]:
    at = int(1000 * trial.ended_at)
    return [Metric(name, value, at, trial.number if step is None else step) for name, value in trial.metrics.items()]
