"""Groups of Ray Train workers: two processes by gloo, on a network that trains in moments."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
import torch
from safetensors.numpy import load, save

from raprune.errors import RapruneError, StoreError
from raprune.methods.slimming import Slimming
from raprune.orchestration.cluster.failures import RETRIES_AFTER_LOSS
from raprune.orchestration.cluster.placement import TrainPlacement
from raprune.orchestration.coordinator import find_coordinator
from raprune.orchestration.tasks import CandidateTask, Shared
from raprune.orchestration.workers import groups
from raprune.orchestration.workers.bulletin import Bulletin, News
from raprune.orchestration.workers.groups import FOLDER, GroupStages, train_together
from raprune.orchestration.workers.trainings import DenseTraining, FinalistTraining, PhaseTraining, Rank
from raprune.pruning.preparation import DENSE, Prepared, prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import build_workload, train_dense
from raprune.records import Proposal, Stage, Trial, TrialState
from raprune.results.stages import FINETUNE, PHASES, TRAIN_DENSE, Stages
from raprune.spec.budget import Budget
from raprune.spec.job import SearchSpec
from raprune.store.files import UnreachableStoreError
from raprune.store.folder import Store
from raprune.store.learning_curves import read_curve
from raprune.store.record import RunRecord
from raprune.store.scores import Statistics
from raprune.training.checkpoint import unpack
from raprune.training.epoch import Epoch
from tests.factories import EMPTY_RUN
from tests.orchestration.chaos import AGENTS, start, wait_until_gone
from tests.orchestration.in_process import in_process

TWO = TrainPlacement(2, 1.0, 0.0, "2 x 1 CPU together")

STEPS = 3
"""Batches an epoch: 320 images, 128 at a time."""


def spec_of(folder: Path, **changes: Any) -> SearchSpec:
    part = {
        "model": {"name": "digits-net"},
        "data": {"name": "digits", "max_images": 400},
        "methods": ["l2", "l1", "random"],
        "dense": {"epochs": 2, "lr": 0.1},
        "search": {"trials": 3, "calibration_images": 64},
        "settings": {"slimming": {"sparse_epochs": 1.0}},
        "finalists": {"count": 2, "train": {"epochs": 2, "lr": 0.02}},
        "resources": {"checkpoint_every_s": 0},
        "output": str(folder / "run"),
    }
    return SearchSpec.model_validate({**part, **changes})


@dataclass(frozen=True)
class Job:
    spec: SearchSpec
    store: Store
    prepared: Prepared
    shared: Shared

    def pruner(self, weights: dict[str, Any]) -> Pruner:
        """Of this process, with the run's statistics and a dense network of these weights."""
        data = replace(self.prepared.data, test=None)
        workload = build_workload(self.spec, data=data, device="cpu", weights=weights)
        return Pruner(
            workload, self.prepared.graph, self.spec, statistics=Statistics(Store(self.spec.statistics_folder))
        )

    def group(self, trainings: list[Any], placement: TrainPlacement = TWO) -> list[News]:
        heard: list[News] = []
        told = train_together(self.shared, trainings, placement, again=lambda before: before, tell=heard.append)
        assert heard == told
        return told


def begun(spec: SearchSpec) -> Iterator[Job]:
    store = Store(spec.output)
    store.create(RunRecord.model_validate(EMPTY_RUN))
    Store(spec.statistics_folder).make()
    prepared = prepare(spec)
    coordinator = find_coordinator(store)
    shared = Shared(
        spec=spec,
        graph=prepared.graph,
        placement=TWO,
        data=ray.put(replace(prepared.data, test=None)),
        weights=ray.put(prepared.weights),
        statistics=ray.put({}),
        coordinator=coordinator,
        store=store,
        session="here",
        provenance={},
    )
    yield Job(spec, store, prepared, shared)
    ray.kill(coordinator)


def proposal(number: int, method: str, target: float, settings: dict[str, Any] | None = None) -> Proposal:
    return Proposal(
        number=number,
        method=method,
        allocation="uniform",
        target=Budget(flops=target),
        settings=settings or {},
        seed=number,
    )


def searched(job: Job, proposals: list[Proposal]) -> list[Trial]:
    """Trials of the search, recorded; of a dense network that was trained in this process."""
    pruner = job.pruner(job.prepared.weights)
    train_dense(pruner.workload, job.spec)
    elsewhere = Pruner(pruner.workload, job.prepared.graph, job.spec)
    trials = [elsewhere.prune(proposal).trial for proposal in proposals]
    ray.get(job.shared.coordinator.record.remote(trials))
    return trials


def finalist(number: int, parent: Proposal, *, cuts: int = 1) -> FinalistTraining:
    own = replace(parent, number=number, stage=Stage.FINETUNE, parent=parent.trial_id, seed=100 + number, cuts=cuts)
    return FinalistTraining(CandidateTask(own, parent))


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_group_whose_worker_is_killed_resumes_at_the_last_epoch(ray_cluster: None, tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    # In the second epoch of the first finalist, after two of the dense network and one of the phase.
    model = {
        "name": "tests.orchestration.mortal:build",
        "arguments": {"deaths": str(deaths), "at": (2 + 1 + 1) * STEPS + 2},
    }
    for job in begun(spec_of(tmp_path, model=model)):
        slimming = Slimming(sparse_epochs=1.0)
        parents = [proposal(0, "l2", 0.4), proposal(1, "slimming", 0.3, {"sparse_epochs": 1.0})]
        searched(job, parents)
        beyond = proposal(2, "l2", 1e-6)
        hopeless = Trial(trial_id=beyond.trial_id, proposal=beyond, state=TrialState.FAILED)
        ray.get(job.shared.coordinator.record.remote([hopeless]))
        finalists = [finalist(0, parents[0]), finalist(1, parents[1]), finalist(2, beyond)]
        trainings = [DenseTraining(), PhaseTraining(slimming), *finalists]
        # What is done already is not done again.
        trainings += trainings
        told = job.group(trainings)
        assert len(list(deaths.iterdir())) == 1
        names = ["dense", "dense", told[2].name, *["finetune-00000"] * 2, *["finetune-00001"] * 2]
        assert [news.name for news in told] == names
        assert [news.epoch.number for news in told] == [1, 2, 1, 1, 2, 1, 2], "an epoch was done twice"
        assert [news.attempt for news in told] == [1, 1, 1, 1, 2, 1, 1]
        assert all(math.isfinite(news.epoch.loss) for news in told)

        dense = load(job.store.read_bytes(DENSE))
        pruner = job.pruner(dense)
        assert pruner.statistics.get(pruner.phases.key(slimming)) is not None
        assert told[2].name == pruner.phases.key(slimming)
        trials = {trial.trial_id: trial for trial in job.store.trials()}
        for number, parent in enumerate(parents):
            trial = trials[f"finetune-{number:05d}"]
            made = pruner.made_again(parent)
            assert trial.state is TrialState.COMPLETE and trial.candidate == made.candidate and trial.metrics
            assert trial.epochs == made.epochs + 2 and math.isfinite(trial.metrics.loss)
            assert trial.accuracy_after_cut == made.after_cut
            weights = load(job.store.read_bytes(f"models/{trial.network}/weights.safetensors"))
            assert all(torch.as_tensor(array).isfinite().all() for array in weights.values())
        failed = trials["finetune-00002"]
        assert failed.state is TrialState.FAILED and (failed.error or "").startswith("BudgetError: ")
        assert len(trials) == 6 and job.store.names("checkpoints") == [] and not job.store.names(FOLDER)


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_run_whose_driver_is_killed_while_its_group_trains_resumes_at_the_last_epoch(tmp_path: Path) -> None:
    epochs = 12
    train = {"epochs": epochs, "lr": 0.02}
    prepared = prepare(spec_of(tmp_path))
    workload = build_workload(spec_of(tmp_path), data=prepared.data, device="cpu", weights=prepared.weights)
    train_dense(workload, spec_of(tmp_path))
    (tmp_path / "dense.safetensors").write_bytes(save(workload.weights()))
    job = tmp_path / "job.toml"
    job.write_text(
        f'output = "{tmp_path}/run"\nmethods = ["l2"]\n'
        f'[model]\nname = "digits-net"\nweights = "{tmp_path}/dense.safetensors"\n'
        '[data]\nname = "digits"\nmax_images = 400\n[search]\ntrials = 3\ncalibration_images = 64\n'
        f"[finalists]\ncount = 1\neach_method = false\ntrain = {{ epochs = {epochs}, lr = {train['lr']} }}\n"
        "[resources]\nworkers = 1\ntrain_workers = 2\ncheckpoint_every_s = 0\n"
    )
    store, mark = Store(tmp_path / "run"), str(tmp_path)
    driver = start(mark, "search", str(job))
    until = time.monotonic() + 400
    while not store.names("checkpoints"):
        assert driver.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=90)
    assert wait_until_gone(mark, but=AGENTS, seconds=90) == set()
    _, progress = unpack(store.read_bytes("checkpoints/finetune-00000.safetensors"))
    done = len(progress["history"])
    before = {trial.trial_id: trial.started_at for trial in store.trials()}
    assert 1 <= done < epochs and len(before) == 3

    again = start(mark, "resume", store.uri)
    said, _ = again.communicate(timeout=500)
    assert again.returncode == 0, said
    curve = read_curve(store, "finetune-00000")
    assert [epoch["epoch"] for epoch in curve] == list(range(1, epochs + 1))
    before_the_kill = [(epoch["seconds"], epoch["loss"]) for epoch in progress["history"]]
    assert [(epoch["seconds"], epoch["train_loss"]) for epoch in curve[:done]] == before_the_kill
    assert "fine-tune" in said
    trials = {trial.trial_id: trial for trial in store.trials()}
    assert set(trials) == {*before, "finetune-00000"}
    assert all(trials[trial_id].started_at == started for trial_id, started in before.items())
    assert trials["finetune-00000"].state is TrialState.COMPLETE and trials["finetune-00000"].epochs == epochs
    assert store.run()["state"] == "finished" and store.exists("report/front.html")
    assert not store.names("checkpoints") and not store.names(FOLDER)


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_two_groups_side_by_side_train_finalists_of_one_cut_and_of_two_once(ray_cluster: None, tmp_path: Path) -> None:
    another_node = ("0" * 56,)
    words = "2 groups of 2 x 0.5 CPUs together"
    two_groups = TrainPlacement(2, 0.5, 0.0, words, groups=2, left_out=another_node)
    for job in begun(spec_of(tmp_path)):
        parents = [proposal(number, "l2", 0.3 + number / 10) for number in range(4)]
        searched(job, parents)
        trainings = [finalist(n, parent, cuts=1 + n // 3) for n, parent in enumerate(parents)]
        told = job.group(trainings, two_groups)
        names = ["finetune-00000", "finetune-00001", "finetune-00002", "finetune-00003-c2"]
        heard = sorted((news.name, news.epoch.number, news.epoch.epochs) for news in told)
        assert heard == [(name, epoch, 2.0) for name in names for epoch in (1, 2)]
        tuned = [trial for trial in job.store.trials() if trial.proposal.stage is Stage.FINETUNE]
        assert [trial.state for trial in tuned] == [TrialState.COMPLETE] * 4
        assert {trial.proposal.cuts: trial.epochs for trial in tuned} == {1: 2.0, 2: 2.0}
        assert all(job.store.exists(f"models/{trial.network}/recipe.json") for trial in tuned)
        assert job.store.names("checkpoints") == [] and not job.store.names(FOLDER)


def test_training_is_taken_by_one_group_until_that_group_is_lost() -> None:
    bulletin = Bulletin()
    assert bulletin.take(0, "a") and bulletin.take(1, "b")
    assert bulletin.take(0, "a"), "after a restart of its workers a group keeps its trainings"
    assert not bulletin.take(0, "b") and not bulletin.take(1, "a")
    bulletin.end(0)
    assert bulletin.take(2, "a")
    bulletin.leave("a")
    assert not bulletin.take(0, "b"), "its result is stored"
    assert bulletin.take(2, "b") and bulletin.ended() == 1


@pytest.mark.parametrize(("error", "stops"), [(UnreachableStoreError, False), (StoreError, True)])
def test_group_whose_node_alone_does_not_reach_the_store_is_lost_and_the_run_goes_on(
    error: type[StoreError], stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry_out(*_: object) -> bool:
        raise error("run: does not answer")

    with in_process():
        remote: Any = ray.remote
        bulletin = remote(Bulletin).remote()
        shared = SimpleNamespace(coordinator=remote(Reaching).remote())
        work = groups.GroupWork(cast(Shared, shared), (DenseTraining(),), bulletin, "group 0")
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        monkeypatch.setattr(ray.train, "get_context", lambda: context)
        monkeypatch.setattr(groups, "_word_of_first", lambda ranks, ask_it: ask_it())
        monkeypatch.setattr(Rank, "of", lambda shared, ranks: None)
        monkeypatch.setattr(groups, "_carry_out", carry_out)
        with pytest.raises(error):
            groups._train_each({"work": work})
        assert (ray.get(bulletin.failure.remote()) is not None) == stops
        assert (ray.get(bulletin.last_fault.remote("group 0")) is not None) == (not stops)


class Reaching:
    """A coordinator whose store answers."""

    def reaches_store(self) -> bool:
        return True


def test_attempts_are_counted_from_the_last_epoch_on() -> None:
    bulletin = Bulletin()
    assert [bulletin.begin("a") for _ in range(RETRIES_AFTER_LOSS + 1)] == [1, 2, 3]
    assert bulletin.begin("b") == 1 and bulletin.steps() == 0
    bulletin.epoch("a", FINETUNE, Epoch(1, 2.0, 0.5, 0.9, 0.1, 1.0))
    assert bulletin.begin("a") == 2, "the loss after an epoch is the first"
    assert [news.attempt for news in bulletin.news()] == [3] and bulletin.news() == []
    assert bulletin.steps() == 1
    bulletin.stop(RapruneError("first"))
    bulletin.stop(RapruneError("second"))
    assert str(bulletin.failure()) == "first"


def test_course_of_a_group_goes_through_the_stages_of_its_trainings(tmp_path: Path) -> None:
    stages, spec = Stages(), spec_of(tmp_path)
    slimming = Slimming(sparse_epochs=2.0)
    course = GroupStages(stages, spec, [DenseTraining(), PhaseTraining(slimming)])
    course.tell(News("dense", TRAIN_DENSE, Epoch(1, spec.dense.epochs, 0.5, 0.9, 0.1, 1.0), 1))
    course.tell(News("network-abc", PHASES, Epoch(1, 2.0, 0.5, 0.9, 0.1, 1.0), 1))
    dense, phase = stages.now().stages
    assert (dense.name, dense.state, dense.done, dense.total) == (TRAIN_DENSE, "ended", 1, spec.dense.epochs)
    assert (phase.name, phase.state, phase.done, phase.total) == (PHASES, "running", 1, 2)
    assert phase.detail.startswith("training the dense network for a method: epoch 1 of 2, training accuracy 90.00%")


def test_course_of_several_finalists_counts_their_epochs_together(tmp_path: Path) -> None:
    stages, spec = Stages(), spec_of(tmp_path)
    proposal = Proposal(number=0, method="l2", allocation="uniform", target=Budget(flops=0.3), seed=0)
    tasks = [FinalistTraining(CandidateTask(replace(proposal, number=n), proposal)) for n in range(2)]
    course = GroupStages(stages, spec, tasks)
    epochs = spec.finalists.train.decided().epochs
    for name in ("finetune-00000", "finetune-00001"):
        course.tell(News(name, FINETUNE, Epoch(1, epochs, 0.5, 0.9, 0.1, 1.0), 1))
    (stage,) = stages.now().stages
    assert (stage.name, stage.done, stage.total) == (FINETUNE, 2, 2 * math.ceil(epochs))
