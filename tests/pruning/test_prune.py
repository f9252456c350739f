"""One candidate of the bundled digits, from proposal to trial."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raprune.channels.cut import rebuild
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.data import load_data
from raprune.errors import BudgetError, UsageError
from raprune.methods import METHODS
from raprune.pruning.allocate import ALLOCATIONS
from raprune.pruning.prune import Pruner, keep_zeros
from raprune.pruning.workload import Workload, build_workload, train_dense
from raprune.records import Proposal, Stage, TrialState
from raprune.spec.budget import Budget
from raprune.spec.job import DataSpec, DenseTrainSpec, ModelSpec, SamplerSpec, SearchSpec, TeacherSpec, TrainSpec
from raprune.store.scores import Statistics
from raprune.training.epoch import Epoch
from raprune.training.evaluate import evaluate
from raprune.training.loop import train
from tests.channels.proved import counted_flops

torch.set_num_threads(1)

SPEC = SearchSpec(
    model=ModelSpec(name="digits-net"),
    data=DataSpec(name="digits", max_images=600),
    dense=DenseTrainSpec(epochs=6.0),
    search=SamplerSpec(calibration_images=256),
    seed=3,
)


@cache
def workload() -> Workload:
    """The digits' network, trained for a few epochs."""
    dense = build_workload(SPEC, data=load_data(SPEC.data, seed=SPEC.seed), device="cpu")
    train_dense(dense, SPEC)
    return dense


@cache
def pruner(search: SamplerSpec = SPEC.search) -> Pruner:
    x = workload().example_input()
    graph = prove(workload().model, trace(workload().model, x), x).graph
    return Pruner(workload(), graph, SPEC.model_copy(update={"search": search}))


def proposal(method: str = "l2", allocation: str = "uniform", flops: float = 0.4) -> Proposal:
    return Proposal(number=0, method=method, allocation=allocation, target=Budget(flops=flops), seed=1)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_a_trial_is_within_its_target_and_true(method: str, allocation: str) -> None:
    asked = proposal(method, allocation)
    trial, model, _ = pruner().prune(asked)
    assert trial.state is TrialState.COMPLETE
    assert (trial.trial_id, trial.proposal, trial.error) == ("search-00000", asked, None)
    assert trial.candidate is not None
    assert trial.candidate.method == method
    metrics = trial.metrics
    assert metrics is not None
    x = workload().example_input()
    assert metrics.flops == counted_flops(model, x)
    assert metrics.params == sum(p.numel() for p in model.parameters())
    assert metrics.flops_fraction == metrics.flops / counted_flops(workload().model, x)
    assert metrics.params_fraction == metrics.params / sum(p.numel() for p in workload().model.parameters())
    # A path may end below its target: it takes as much as its method finds.
    assert (0.0 if METHODS[method].has_path() else 0.4 * 0.9) <= metrics.flops_fraction <= 0.4
    judged = evaluate(model, workload().validation)
    assert metrics.accuracy == judged.accuracy
    assert metrics.loss == pytest.approx(judged.loss)
    assert trial.accuracy_after_repair == metrics.accuracy
    assert trial.accuracy_after_cut is None
    trains = METHODS[method].has_path() or METHODS[method]().regularize() is not None
    assert trains or trial.epochs == 0.0
    assert trial.seconds > 0
    assert trial.gpu_seconds == 0.0
    assert trial.worker
    assert not model.training


def test_a_target_of_parameters_is_met_too() -> None:
    trial, *_ = pruner().prune(replace(proposal(), target=Budget(flops=0.3, params=0.2)))
    assert trial.metrics is not None
    assert trial.metrics.params_fraction <= 0.2
    assert trial.metrics.flops_fraction <= 0.4


def test_keep_ratios_are_followed() -> None:
    asked = replace(proposal(allocation="ratios", flops=0.3), keep_ratios={"conv3": 0.25})
    trial, *_ = pruner().prune(asked)
    assert trial.candidate is not None
    share = {group: width / pruner().graph.widths[group] for group, width in trial.candidate.widths.items()}
    others = [value for group, value in share.items() if group != "conv3"]
    # One factor scales all of them onto the target.
    assert all(abs(share["conv3"] / value - 0.25) < 0.05 for value in others)


def test_limits_of_the_widths_are_followed() -> None:
    trial, *_ = pruner(SamplerSpec(calibration_images=64, min_channels=8, multiple_of=8)).prune(proposal(flops=0.3))
    assert trial.candidate is not None
    assert all(width >= 8 and width % 8 == 0 for width in trial.candidate.widths.values())


def test_the_same_proposal_gives_the_same_network() -> None:
    (one, left, _), (other, right, _) = (pruner().prune(proposal("random")) for _ in range(2))
    assert one.candidate == other.candidate
    assert one.metrics == other.metrics
    assert all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))
    fresh = Pruner(workload(), pruner().graph, SPEC)
    again, model, _ = fresh.prune(proposal("random"))
    assert again.metrics == one.metrics
    assert all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), model.state_dict().values(), strict=True))


def test_the_seed_decides_what_random_keeps() -> None:
    one, other = (pruner().prune(replace(proposal("random"), seed=seed))[0].channels for seed in (1, 2))
    assert one.widths == other.widths
    assert one.kept != other.kept


def test_pruning_leaves_the_dense_network() -> None:
    before = workload().weights_hash
    pruner().prune(proposal())
    assert workload().weights_hash == before


def test_batch_norm_is_repaired() -> None:
    pruned = pruner().cut_and_repair(proposal(flops=0.5), judge_cut=True)
    repaired = evaluate(pruned.model, workload().validation).accuracy
    assert pruned.after_cut is not None
    assert repaired > pruned.after_cut + 0.1


def test_calibration_in_single_images_is_no_calibration_in_silence() -> None:
    """Evaluation image by image must not leave batch norms with the statistics of nothing."""
    one = pruner(SamplerSpec(calibration_images=64, eval_batch_size=1)).cut_and_repair(proposal())
    statistics = one.model.get_buffer("bn2.running_mean")
    assert not torch.equal(statistics, torch.zeros_like(statistics))


def test_fine_tuning_improves_and_is_its_own_trial() -> None:
    parent = proposal(flops=0.15)
    before, *_ = pruner().prune(parent)
    asked = replace(parent, number=4, stage=Stage.FINETUNE, parent=parent.trial_id, seed=9)
    seen: list[Epoch] = []
    trial, model, _ = pruner().finetune(asked, parent, TrainSpec(epochs=4.0, lr=0.05), on_epoch=seen.append)
    assert trial.trial_id == "finetune-00004"
    assert trial.proposal == asked
    assert trial.candidate == before.candidate
    assert trial.epochs == 4.0
    assert [epoch.number for epoch in seen] == [1, 2, 3, 4]
    assert before.metrics is not None
    assert trial.metrics is not None
    assert trial.accuracy_after_cut is not None
    assert trial.accuracy_after_repair == before.metrics.accuracy
    assert trial.metrics.accuracy > trial.accuracy_after_repair
    assert trial.metrics.flops == before.metrics.flops
    assert trial.metrics.accuracy == evaluate(model, workload().validation).accuracy
    again, same, _ = pruner().finetune(asked, parent, TrainSpec(epochs=4.0, lr=0.05))
    assert again.metrics == trial.metrics
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))


def test_trials_cross_process_borders() -> None:
    trial, *_ = pruner().prune(proposal())
    assert pickle.loads(pickle.dumps(trial)) == trial


def test_impossible_proposal_ends_in_an_error_that_says_why() -> None:
    with pytest.raises(UsageError, match="no such method"):
        pruner().prune(proposal(method="l3"))
    with pytest.raises(BudgetError, match="out of reach"):
        pruner().prune(proposal(flops=1e-5))


def test_zeros_stay_zero_while_the_rest_is_trained() -> None:
    model = rebuild(workload().model, lambda name, tensor: tensor.clone())
    weight = model.get_parameter("conv2.weight")
    with torch.no_grad():
        weight[:, ::2] = 0.0
    before = weight.detach().clone()
    train(model, workload().training, TrainSpec(epochs=1.0), augment="none", seed=0, regularize=keep_zeros(model))
    assert torch.equal(weight == 0, before == 0)
    assert not torch.equal(weight, before)
    assert keep_zeros(workload().model) is None


def test_scores_are_computed_once_for_what_they_depend_on() -> None:
    statistics = Statistics()
    own = Pruner(workload(), pruner().graph, SPEC, statistics=statistics)
    for flops in (0.2, 0.3):
        own.prune(proposal("taylor", flops=flops))
        own.prune(proposal("random", flops=flops))
    assert statistics.computed == [own.scoring.key(METHODS["taylor"]())], "another seed gives other random scores"


def test_parts_of_the_groups_have_the_scores_of_the_whole() -> None:
    for name in ("l1", "taylor", "apoz"):
        method = METHODS[name]()
        whole = pruner().scoring.scores(method, 0)
        for group in whole:
            part = pruner().scoring.part(method, pruner().graph.only([group]), 0)
            assert list(part) == [group]
            assert part[group] == pytest.approx(whole[group])


def test_finalist_is_taught_by_the_teacher_of_the_job(tmp_path: Path) -> None:
    save_file(workload().model.state_dict(), tmp_path / "teacher.safetensors")
    teacher = TeacherSpec(name="digits-net", weights=str(tmp_path / "teacher.safetensors"))
    spec = SPEC.model_copy(update={"teacher": teacher})
    taught = build_workload(spec, data=workload().data, device="cpu", weights=workload().weights())
    seen: list[int] = []
    taught.teacher.register_forward_hook(lambda _, inputs, output: seen.append(len(inputs[0])))
    parent = proposal()
    asked = replace(parent, number=4, stage=Stage.FINETUNE, parent=parent.trial_id, seed=9)
    train_once = TrainSpec(epochs=0.5, lr=0.01, teacher_loss="dist")
    Pruner(taught, pruner().graph, spec).finetune(asked, parent, train_once)
    assert seen == [128, 128]
    assert workload().teacher is workload().model and workload().teacher_weights() is None
    weights = taught.teacher_weights()
    assert weights is not None and weights.keys() == workload().weights().keys()
