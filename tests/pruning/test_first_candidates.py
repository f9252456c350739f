"""The first candidates of a budget of latency: timed by a device that the table does not know well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from torch import nn

from raprune.cost.measure import measure_table
from raprune.pruning import first_candidates
from raprune.pruning.first_candidates import MOST, MOST_ROUNDS, TOLERATED, corrected, corrected_once, first_proposals
from raprune.pruning.preparation import Prepared, prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import build_workload
from raprune.records import Candidate
from raprune.spec.budget import Budget
from raprune.spec.job import SearchSpec
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from raprune.store.scores import Statistics

Factor = Callable[[Sequence[int]], float]
"""Time over the prediction, by the widths of the groups."""


@cache
def job() -> tuple[SearchSpec, Prepared, Any]:
    fields = {
        "model.name": "digits-net",
        "data.name": "digits",
        "data.max_images": 200,
        "methods": ["l1", "l2"],
        "budget": {"latency": 0.75},
        "latency": {"batch_size": 64, "repeats": 3, "widths": 3},
    }
    prepared = prepare(load_spec(None, fields))
    workload = build_workload(prepared.spec, data=prepared.data, device="cpu", weights=prepared.weights)
    table = measure_table(workload.model, prepared.graph, prepared.spec.latency, device="cpu")
    # Half of the dense time in the widths: a budget of 75 % is in reach on any machine.
    sums = table.predict(prepared.cost.sizes(prepared.cost.num_channels))
    return prepared.spec, prepared, (workload, replace(table, dense_ms=float(sums)))


def pruner(folder: Path | None = None) -> Pruner:
    spec, prepared, (workload, table) = job()
    statistics = Statistics(None if folder is None else Store(folder))
    return Pruner(workload, prepared.graph, spec, statistics=statistics, latency=table)


class Device:
    """A device on which a network takes its prediction times a factor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, factor: Factor) -> None:
        self.timed: list[list[int]] = []
        self._factor = factor
        monkeypatch.setattr(first_candidates, "whole_timer", lambda *given, **named: self._measure)

    def milliseconds(self, widths: Sequence[int]) -> float:
        own = pruner().cost
        return self._factor(widths) * float(own.latency_ms(np.array(widths)))

    def _measure(self, models: Sequence[nn.Module]) -> list[float]:
        found = []
        for model in models:
            self.timed.append([len(model.get_parameter(f"{name}.weight")) for name in pruner().cost.group_names])
            found.append(self.milliseconds(self.timed[-1]))
        # The clock of the device runs at half the speed at which the table was measured.
        return [2 * ms for ms in (*found, pruner().cost.dense_latency_ms)]


def widths_of(candidate: Candidate) -> list[int]:
    cost = pruner().cost
    return [int(n) for n in cost.vector(candidate.widths)]


def test_table_that_is_right_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, lambda widths: 1.01)
    spec = job()[0]
    found = corrected(pruner(), spec, first_proposals(spec, spec.methods))
    assert found.table.correction is None and found.networks == len(device.timed) <= MOST
    assert found.before == found.after == pytest.approx(0.01, abs=1e-3)
    assert "within 1.0% of the prediction" in found.sentence and "correct" not in found.sentence


@pytest.mark.parametrize(
    "factor",
    [
        lambda widths: 1.2,
        lambda widths: 0.85,
        # Wide first layers are slower than the table says, narrow ones faster.
        lambda widths: 0.95 + 0.02 * widths[0],
    ],
)
def test_candidates_after_the_correction_take_what_is_predicted(
    monkeypatch: pytest.MonkeyPatch, factor: Factor
) -> None:
    device, spec = Device(monkeypatch, factor), job()[0]
    proposals = first_proposals(spec, spec.methods)
    made = pruner()
    found = corrected(made, spec, proposals)
    assert found.table.correction is not None and found.before > TOLERATED
    assert len(device.timed) == found.networks <= MOST * MOST_ROUNDS
    assert "correct the prediction" in found.sentence
    aiming = made.knowing(found.table)
    cost = aiming.cost
    for proposal in proposals:
        widths = widths_of(aiming.candidate(proposal))
        taken = device.milliseconds(widths) / cost.dense_latency_ms
        assert taken <= 0.75 * (1 + TOLERATED)
        assert taken == pytest.approx(float(cost.latency_ms(np.array(widths))) / cost.dense_latency_ms, rel=0.03)


def test_scores_that_take_long_leave_the_rounds_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A correction that no further candidate has confirmed may be far off for the networks that follow it."""
    device, spec = Device(monkeypatch, lambda widths: 1.2), job()[0]
    made, now = pruner(), [0.0]

    class Scoring:
        """The pruner's own, whose first scores take an hour."""

        def __getattr__(self, name: str) -> Any:
            now[0] = max(now[0], 3600.0)
            return getattr(pruner().scoring, name)

    made.scoring = cast(Any, Scoring())
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    found = corrected(made, spec, first_proposals(spec, spec.methods))
    assert found.after <= TOLERATED < found.before
    assert found.networks == len(device.timed)


def test_correction_is_measured_once_for_a_folder_of_statistics(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device, spec = Device(monkeypatch, lambda widths: 1.2), job()[0]
    proposals = first_proposals(spec, spec.methods)
    first = corrected_once(pruner(tmp_path), spec, proposals)
    timed = len(device.timed)
    again = corrected_once(pruner(tmp_path), spec, proposals)
    assert len(device.timed) == timed and again.sentence == first.sentence
    assert again.table.describe() == first.table.describe()
    narrower = [replace(one, target=Budget(latency=0.7)) for one in proposals]
    corrected_once(pruner(tmp_path), spec, narrower)
    assert len(device.timed) > timed


def test_first_proposals_are_few_and_of_methods_that_need_no_training() -> None:
    spec = load_spec(None, {"methods": ["l1", "slimming", "reconstruction"], "budget": {"latency": 0.5}})
    proposals = first_proposals(spec, ("auto_balanced", "slimming", "l1", "reconstruction", "l2"))
    assert [one.method for one in proposals] == ["l1"] * 3 + ["reconstruction"] * 3
    assert all(one.target == Budget(latency=0.5) for one in proposals)
    alone = spec.model_copy(update={"allocations": ("ratios",)})
    assert first_proposals(alone, ("l1",)) == []
