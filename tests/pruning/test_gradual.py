"""Finalists that are cut in several steps, with training in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.data import load_data
from raprune.pruning.gradual import kept_in_steps, positions_of
from raprune.pruning.prune import Pruner, Result
from raprune.pruning.workload import Workload, build_workload
from raprune.records import Proposal, Stage
from raprune.spec.budget import Budget
from raprune.spec.job import DataSpec, ModelSpec, SamplerSpec, SearchSpec, TrainSpec
from raprune.training.epoch import Epoch
from tests.factories import SavedCheckpoints

torch.set_num_threads(1)

SPEC = SearchSpec(
    model=ModelSpec(name="digits-net", arguments={"width": 8}),
    data=DataSpec(name="digits", max_images=150),
    search=SamplerSpec(calibration_images=32),
    seed=3,
)
TRAINING = TrainSpec(epochs=3.0, lr=0.01, batch_size=32)


def groups(**channels: int) -> ChannelGraph:
    found: Any = SimpleNamespace(groups=[SimpleNamespace(name=n, num_channels=c) for n, c in channels.items()])
    graph: ChannelGraph = found
    return graph


def test_cuts_are_nested_take_equal_fractions_and_end_with_the_candidate() -> None:
    scores = {"a": np.arange(64.0), "b": np.arange(10.0)}
    kept = {"a": tuple(range(56, 64)), "b": (0, 3)}
    stages = kept_in_steps(groups(a=64, b=10, c=4), kept, scores | {"c": np.arange(4.0)}, 3)
    assert [len(stage["a"]) for stage in stages] == [32, 16, 8]
    assert [len(stage["b"]) for stage in stages] == [6, 3, 2]
    assert stages[-1] == kept | {"c": (0, 1, 2, 3)}
    for narrow, wide in zip(stages[1:], stages[:-1], strict=True):
        assert all(set(narrow[name]) <= set(wide[name]) for name in narrow)
    # The best by score stay besides the candidate's own.
    assert stages[1]["b"] == (0, 3, 9)


def test_cuts_that_take_nothing_are_left_out() -> None:
    assert kept_in_steps(groups(a=4), {"a": (0, 1, 2)}, {"a": np.arange(4.0)}, 5) == [
        {"a": (0, 1, 2, 3)},
        {"a": (0, 1, 2)},
    ]


def test_positions_are_places_among_what_is_left() -> None:
    assert positions_of({"a": (2, 7)}, {"a": (1, 2, 5, 7)}) == {"a": (1, 3)}


@cache
def workload() -> Workload:
    return build_workload(SPEC, data=load_data(SPEC.data, seed=SPEC.seed), device="cpu")


def pruner() -> Pruner:
    x = workload().example_input()
    graph = prove(workload().model, trace(workload().model, x), x).graph
    return Pruner(workload(), graph, SPEC)


PARENT = Proposal(number=0, method="l2", allocation="uniform", target=Budget(flops=0.3), seed=1)
CHILD = replace(PARENT, number=4, stage=Stage.FINETUNE, parent=PARENT.trial_id, seed=9)


def tuned(cuts: int, memory: SavedCheckpoints | None = None, on_epoch: Callable[[Epoch], None] | None = None) -> Result:
    return pruner().finetune(replace(CHILD, cuts=cuts), PARENT, TRAINING, checkpoints=memory, on_epoch=on_epoch)


def test_gradual_finalist_is_the_network_of_its_parent_after_equal_epochs() -> None:
    seen: list[Epoch] = []
    at_once, gradual = tuned(1), tuned(3, on_epoch=seen.append)
    assert gradual.trial.candidate == at_once.trial.candidate
    assert gradual.trial.metrics is not None and at_once.trial.metrics is not None
    assert gradual.trial.metrics.flops == at_once.trial.metrics.flops
    assert gradual.trial.accuracy_after_repair == at_once.trial.accuracy_after_repair
    assert gradual.trial.epochs == at_once.trial.epochs == 3.0
    assert [(epoch.number, epoch.epochs) for epoch in seen] == [(1, 3.0), (2, 3.0), (3, 3.0)]
    shapes = [[value.shape for value in made.model.state_dict().values()] for made in (gradual, at_once)]
    assert shapes[0] == shapes[1]


def test_progress_of_parts_of_an_epoch_is_at_most_the_epochs_of_the_training() -> None:
    seen: list[Epoch] = []
    whole = TRAINING.model_copy(update={"epochs": 1.0})
    result = pruner().finetune(replace(CHILD, cuts=3), PARENT, whole, on_epoch=seen.append)
    assert [(epoch.number, epoch.epochs, epoch.reached) for epoch in seen] == [(1, 1.0, 1), (2, 1.0, 1), (3, 1.0, 1)]
    assert [epoch.epochs for epoch in result.history] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("after", [1, 2, 3])
def test_gradual_finalist_that_was_killed_has_the_same_weights(after: int) -> None:
    def kill(epoch: Epoch) -> None:
        if epoch.number == after:
            raise InterruptedError

    memory, straight = SavedCheckpoints(), tuned(3)
    with pytest.raises(InterruptedError):
        tuned(3, memory, kill)
    resumed = tuned(3, memory)
    assert [epoch.loss for epoch in resumed.history] == [epoch.loss for epoch in straight.history]
    expected = straight.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_gradual_finalist_with_the_checkpoint_of_another_training_begins_with_the_first_cut() -> None:
    memory = SavedCheckpoints()
    tuned(1, memory)
    with pytest.warns(UserWarning, match="its checkpoint belongs to another training"):
        again = tuned(3, memory)
    assert [epoch.loss for epoch in again.history] == [epoch.loss for epoch in tuned(3).history]
