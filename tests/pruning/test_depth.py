"""Blocks go together with widths: their damage, the allocation that chooses them, and the candidate's trial."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raprune.channels.cut import cut
from raprune.errors import UsageError
from raprune.methods import METHODS, Cut
from raprune.pruning.depth import BlockDamage, allocate_with_blocks, read_blocks
from raprune.pruning.export import prune_once
from raprune.pruning.preparation import Prepared, prepare, without_excluded_gates
from raprune.pruning.prune import Pruner
from raprune.pruning.target import Target
from raprune.pruning.workload import Workload, build_workload
from raprune.records import Candidate, Proposal, Stage
from raprune.spec.budget import Budget
from raprune.spec.job import SearchSpec, TrainSpec
from raprune.store.rows import from_row, to_row
from tests.channels.proved import counted_flops

GATE = "block1"


def spec_of(*, depth: bool = True, **changes: Any) -> SearchSpec:
    """A job on the bundled trained network, which has one residual block that can go."""
    search = {"depth": depth, "calibration_images": 64}
    return SearchSpec.model_validate({"data": {"max_images": 200}, "search": search, **changes})


@cache
def ready() -> tuple[Prepared, Workload]:
    prepared = prepare(spec_of())
    return prepared, build_workload(prepared.spec, data=prepared.data, device="cpu", weights=prepared.weights)


@cache
def pruner() -> Pruner:
    prepared, workload = ready()
    return Pruner(workload, prepared.graph, prepared.spec)


def proposal(allocation: str = "least_damage", flops: float = 0.3, **keep_ratios: float) -> Proposal:
    target = Budget(flops=flops)
    return Proposal(number=0, method="l2", allocation=allocation, target=target, keep_ratios=keep_ratios, seed=1)


def test_gates_are_looked_for_only_where_the_job_lets_blocks_go() -> None:
    prepared, _ = ready()
    assert prepared.graph.gates == prepared.cost.gates == (GATE,)
    assert replace(prepared.graph, gates=()).digest() == prepared.graph.digest()
    assert prepare(spec_of(depth=False)).graph.gates == ()


@pytest.mark.parametrize(("pattern", "left"), [("block1", 0), ("block1.conv2", 0), ("block*", 0), ("block2*", 1)])
def test_excluded_modules_keep_the_block_around_them(pattern: str, left: int) -> None:
    prepared, workload = ready()
    assert len(without_excluded_gates(prepared.graph, workload.model, (pattern,)).gates) == left


def test_a_proposal_leaves_a_block_out_and_its_trial_is_true() -> None:
    trial, model, _ = pruner().prune(proposal("ratios", **{GATE: 0.0}))
    x = ready()[1].example_input()
    assert trial.metrics is not None
    assert trial.channels.identity == (GATE,)
    assert isinstance(model.get_submodule(GATE), nn.Identity)
    assert not any(group.startswith(f"{GATE}.") for group in trial.channels.widths)
    assert trial.metrics.flops == counted_flops(model, x)
    assert trial.metrics.params == sum(p.numel() for p in model.parameters())
    assert 0.27 < trial.metrics.flops_fraction <= 0.3
    again = pruner().repaired_again(trial)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    read = from_row(to_row(trial))
    assert (read.channels, read.channels.id) == (trial.channels, trial.channels.id)


def test_a_candidate_with_all_blocks_has_the_id_of_before() -> None:
    """Stored under this id by versions that knew no blocks."""
    assert Candidate("l2", {"a": (0, 2)}).id == "f86ef362285e"
    assert Candidate("l2", {"a": (0, 2)}, identity=("b",)).id != Candidate("l2", {"a": (0, 2)}).id


@pytest.mark.parametrize(("lost", "gone"), [(0.0, (GATE,)), (1e9, ())], ids=["cheap", "expensive"])
def test_a_block_goes_where_that_does_less_damage_than_narrower_layers(lost: float, gone: tuple[str, ...]) -> None:
    scoring, cost, method = pruner().scoring, pruner().cost, METHODS["l2"]()
    blocks = BlockDamage((GATE,), np.array([0.0, lost]), np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    target = Target(budget=Budget(flops=0.3))
    found, widths = allocate_with_blocks(cost, target, method, scoring.scores(method, 0), blocks)
    assert found == gone
    left = cost.closed(found)
    assert len(widths) == len(left.group_names)
    assert int(left.flops(widths)) <= 0.3 * cost.dense_flops


def test_measured_damage_of_blocks_ascends_and_widths_have_its_unit() -> None:
    method = METHODS["l2"]()
    blocks = pruner().scoring.blocks(method)
    assert blocks.order == (GATE,)
    assert blocks.damage[0] == 0 and (np.diff(blocks.damage) >= 0).all()
    assert blocks.of_widths(float(blocks.predicted[1])) == pytest.approx(float(blocks.measured[1]))
    assert blocks.of_widths(0.0) == 0.0
    kept = {"order": np.array([0]), "counts": np.array([0]), "damage": np.array([0.0])}
    lone = read_blocks(pruner().graph, kept, {"predicted": np.zeros(1), "measured": np.zeros(1)})
    assert lone.of_widths(2.5) == 2.5


def test_least_squares_brings_what_follows_a_missing_block_nearer_to_the_dense_network() -> None:
    prepared, workload = ready()
    batches = pruner().scoring.batches
    images = next(iter(batches()))[0]
    shallow = cut(workload.model, prepared.graph, Candidate("test", {}, identity=(GATE,)))
    refitted = cut(workload.model, prepared.graph, Candidate("test", {}, identity=(GATE,)))
    description = Cut(workload.model, prepared.graph.closed((GATE,)), {}, identity=(GATE,))
    METHODS["reconstruction"]().repair(refitted, batches, description)
    with torch.no_grad():
        wanted = workload.model.eval()(images)
        before, after = ((model.eval()(images) - wanted).square().mean() for model in (shallow, refitted))
    assert after < before / 2


def test_depth_without_the_allocation_that_chooses_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="only least_damage decides on blocks"):
        prune_once(spec_of(), method="l2", allocation="uniform")


@pytest.mark.nightly
@pytest.mark.parametrize("steps", [1, 2])
def test_a_network_without_a_block_is_fine_tuned(steps: int) -> None:
    prepared, workload = ready()
    finalists = prepared.spec.finalists.model_copy(update={"steps": steps})
    tuner = Pruner(workload, prepared.graph, prepared.spec.model_copy(update={"finalists": finalists}))
    parent = proposal("ratios", **{GATE: 0.0})
    asked = replace(parent, stage=Stage.FINETUNE, parent=parent.trial_id)
    train = TrainSpec(epochs=2.0, lr=0.02, features=0.1)
    trial, model, _ = tuner.finetune(asked, parent, train)
    assert trial.channels.identity == (GATE,)
    assert isinstance(model.get_submodule(GATE), nn.Identity)
    assert trial.metrics is not None and trial.accuracy_after_repair is not None
    assert trial.metrics.accuracy >= trial.accuracy_after_repair
