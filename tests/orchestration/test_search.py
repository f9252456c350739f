"""Whole searches in this process: order, resume, seeds, early stops. `test_search_on_ray.py` runs one on a cluster."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from rich.console import Console

from raprune.data.batches import DeviceSplit
from raprune.errors import BudgetError, ModelError, RapruneError, StoreError, UsageError
from raprune.models import build_model
from raprune.orchestration import lease
from raprune.orchestration.coordinator import Coordinator, find_coordinator
from raprune.orchestration.search import resume, search
from raprune.pruning.artifact import load
from raprune.pruning.export import export
from raprune.pruning.preparation import Prepared, Steps, prepare
from raprune.records import Stage, Trial, TrialState
from raprune.report.terminal import print_front
from raprune.results.ablation import to_be_tested
from raprune.results.front import front
from raprune.results.progress import progress
from raprune.results.rows import candidates
from raprune.results.stages import FINETUNE
from raprune.sampling import warm_start
from raprune.spec.budget import Budget
from raprune.spec.job import ModelSpec, SearchSpec
from raprune.store.folder import Store
from raprune.training.evaluate import evaluate
from tests.factories import SMALL_SEARCH as SMALL
from tests.factories import small_search as spec_of
from tests.orchestration.in_process import Executor, in_process
from tests.orchestration.whole_search import facts, run

pytestmark = pytest.mark.usefixtures("executor")


def test_a_search_ends_with_a_front_within_the_budget(finished: Store) -> None:
    trials = finished.trials()
    assert [t.trial_id for t in sorted(trials, key=lambda t: t.trial_id)] == [
        *(f"finetune-{n:05d}" for n in range(2)),
        *(f"search-{n:05d}" for n in range(12)),
    ]
    assert all(t.state is TrialState.COMPLETE and t.metrics and t.metrics.flops_fraction <= 0.3 for t in trials)
    described = finished.run()
    assert described["state"] == "finished" and described["dense"]["val_accuracy"] > 0.1
    assert described["weights_hash"] and described["versions"]["ray"] == ray.__version__
    assert described["data"]["normalisation"] == "measured on the training split"
    assert len(described["data"]["mean"]) == len(described["data"]["std"]) == 1
    assert described["dense"]["train_images"] == 320 and described["warnings"] == []
    assert described["machine"].startswith(f"{os.cpu_count()} x ")


def test_no_stage_of_a_run_has_done_more_than_its_total(finished: Store) -> None:
    counted = {stage["name"]: (stage["done"], stage["total"]) for stage in finished.run()["stages"] if stage["total"]}
    assert {"search", "fine-tune", "test the front"} <= set(counted)
    assert [name for name, (done, total) in counted.items() if done > total] == []


def test_the_test_split_was_measured_for_the_front_the_methods_and_the_dense_network(finished: Store) -> None:
    test, budget = finished.read_json("report/test.json"), SearchSpec.model_validate(finished.run()["spec"]).budget
    rows = to_be_tested(finished.trials(), finished.record())
    assert rows and {row.candidate for row in rows} == set(test["candidates"])
    assert {row.candidate for row in front(finished.trials(), budget)} <= set(test["candidates"])
    assert {row.method for row in rows} >= {"l1", "random"}, "the baselines"
    assert 0 < test["dense"] <= 1 and test["images"] == finished.run()["data"]["test"]
    assert json.loads(finished.read_bytes("report/front.json"))[0]["test_accuracy"] is not None


def test_a_finalist_is_written_with_its_recipe(finished: Store) -> None:
    for trial in finished.trials():
        if trial.proposal.stage is Stage.FINETUNE:
            assert trial.candidate is not None and trial.metrics is not None
            recipe = finished.read_json(f"models/{trial.candidate.id}-ft/recipe.json")
            assert recipe["data"] == {
                key: finished.run()["data"][key] for key in ("name", "fingerprint", "mean", "std")
            }
            assert recipe["candidate"] == trial.candidate.id and recipe["accuracy"] == trial.metrics.accuracy


def test_every_network_of_the_front_is_stored_and_loads_as_good_as_it_was_recorded(finished: Store) -> None:
    data = prepare(SearchSpec.model_validate(finished.run()["spec"])).data
    console = Console(file=io.StringIO(), width=120)
    print_front(finished.uri, console=console, as_json=True)
    assert isinstance(console.file, io.StringIO)
    rows = json.loads(console.file.getvalue())
    assert {row["stage"] for row in rows} >= {"search"}, "some of the front are only repaired"
    for row in rows:
        small = load(build_model(ModelSpec(name="digits-net"), num_classes=10, image_shape=(1, 8, 8)),
                     f"{finished.uri}/models/{row['candidate']}")  # fmt: skip
        validation = DeviceSplit.place(data.validation, data.mean, data.std, torch.device("cpu"))
        accuracy = evaluate(small, validation, batch_size=256).accuracy
        assert accuracy == pytest.approx(row["val_accuracy"], abs=1.5 / len(data.validation)), row["candidate"]
        recipe = finished.read_json(f"models/{row['candidate']}/recipe.json")
        assert (recipe["trial_id"], recipe["accuracy"]) == (row["trial_id"], row["val_accuracy"])


def test_the_report_of_a_finished_run_says_that_it_is_finished(finished: Store) -> None:
    page = finished.read_bytes("report/front.html").decode()
    (starred,) = [row["candidate"] for row in finished.read_json("report/front.json") if row["starred"]]
    assert "This run is not finished" not in page and f"raprune export {finished.name} {starred} " in page
    now = progress(finished.record(), finished.trials())
    assert (now.finetuned, now.finetunings, now.finished) == (2, 2, True)


def test_a_run_killed_before_its_end_was_noted_stores_and_reports_on_resume(finished: Store, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.uri, folder)
    described = json.loads((folder / "run.json").read_text()) | {"state": "searching"}
    (folder / "run.json").write_text(json.dumps(described))
    repaired = next(r for r in front(finished.trials(), Budget(flops=0.3)) if r.stage == "search")
    # Killed between the weights and the recipe, and while the report was written.
    (folder / "models" / repaired.candidate / "recipe.json").unlink()
    (folder / "report" / "front.html").write_text("half of it")
    resume(str(folder), console=Console(file=io.StringIO()))
    resumed, name = Store(folder), f"models/{repaired.candidate}"
    assert resumed.run()["state"] == "finished" and facts(resumed.trials()) == facts(finished.trials())
    assert resumed.read_json(f"{name}/recipe.json")["trial_id"] == repaired.trial_id
    assert resumed.read_bytes(f"{name}/weights.safetensors") == finished.read_bytes(f"{name}/weights.safetensors")
    assert resumed.read_json("report/test.json") == finished.read_json("report/test.json")
    assert "This run is not finished" not in resumed.read_bytes("report/front.html").decode()


def test_the_front_is_stored_where_there_is_no_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def untested(spec: SearchSpec, steps: Steps) -> Prepared:
        prepared = prepare(spec, steps)
        return replace(prepared, data=replace(prepared.data, test=None))

    monkeypatch.setattr("raprune.orchestration.search.prepare", untested)
    spec = spec_of(tmp_path / "run", search=SMALL["search"] | {"trials": 4}, finalists={"count": 0})
    run(spec)
    store = Store(spec.output)
    rows = front(store.trials(), spec.budget)
    assert rows and all(store.exists(f"models/{row.candidate}/recipe.json") for row in rows)
    assert not store.exists("report/test.json")


def test_search_that_ends_leaves_no_actor(executor: Executor, tmp_path: Path) -> None:
    run(spec_of(tmp_path / "run", search=SMALL["search"] | {"trials": 4}, finalists={"count": 0}))
    assert executor.actors == {} and executor.named == {} and executor.workers_started == 2


@pytest.mark.parametrize("order", [1, 2])
def test_search_whose_tasks_end_in_another_order_finds_the_same(finished: Store, tmp_path: Path, order: int) -> None:
    with in_process(order=order) as executor:
        run(spec_of(tmp_path / "run"))
    searched = [name for name in executor.done if name.startswith("search")]
    assert searched != sorted(searched), "tasks were meant to overtake each other"
    assert facts(Store(tmp_path / "run").trials()) == facts(finished.trials())


def test_search_that_loses_records_on_their_way_finds_the_same(
    finished: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a worker dies after its trial was reported, and before its record has reached the coordinator."""
    lost = {"search-00003", "search-00007"}
    record: Any = Coordinator.record

    def lossy(self: Coordinator, trials: Sequence[Trial], session: str | None = None) -> None:
        if {trial.trial_id for trial in trials} & lost:
            lost.difference_update(trial.trial_id for trial in trials)
            return
        record(self, trials, session)

    monkeypatch.setattr(Coordinator, "record", lossy)
    monkeypatch.setattr("raprune.orchestration.driver.ARRIVAL_S", 0.0)
    with in_process() as executor:
        run(spec_of(tmp_path / "run"))
    assert lost == set() and executor.done.count("search-00003") == executor.done.count("search-00007") == 2
    assert facts(Store(tmp_path / "run").trials()) == facts(finished.trials())


def test_one_worker_finds_what_two_found(finished: Store, tmp_path: Path) -> None:
    spec = spec_of(tmp_path / "alone", resources={"workers": 1}, store_front=False)
    run(spec)
    alone = Store(spec.output)
    assert facts(alone.trials()) == facts(finished.trials())
    tuned = {t.network for t in alone.trials() if t.proposal.stage is Stage.FINETUNE}
    assert set(alone.names("models")) == {"dense", *tuned}, "the front was not to be stored"


@pytest.mark.parametrize("lost", [range(3, 14), (2, 5, 9, 12, 13)])
def test_a_run_that_was_cut_off_is_resumed_to_the_same_end(finished: Store, tmp_path: Path, lost: Any) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.uri, folder)
    shutil.rmtree(folder / "report")
    parts = sorted((folder / "trials").iterdir())
    for number in lost:
        parts[number].unlink()
    described = json.loads((folder / "run.json").read_text())
    described |= {"state": "searching"}
    (folder / "run.json").write_text(json.dumps(described))
    kept = {t.trial_id: t for t in Store(folder).trials()}
    resume(str(folder), console=Console(file=io.StringIO()))
    again = {t.trial_id: t for t in Store(folder).trials()}
    assert facts(list(again.values())) == facts(finished.trials())
    assert {t: again[t].started_at for t in kept} == {t: kept[t].started_at for t in kept}, "none was run twice"
    assert Store(folder).read_json("report/test.json") == finished.read_json("report/test.json")


def test_a_finished_run_is_only_shown_again(finished: Store) -> None:
    before = finished.read_json("report/test.json"), finished.names("trials")
    console = Console(file=io.StringIO(), width=120)
    resume(finished.uri, console=console)
    assert (finished.read_json("report/test.json"), finished.names("trials")) == before
    with pytest.raises(StoreError, match="holds a run already"):
        search(SearchSpec.model_validate(finished.run()["spec"]))


def test_a_second_driver_is_refused_by_the_folders_lock_and_by_the_coordinator(
    finished: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder has a lock; at a URI, which has none, the coordinator knows the driver that it hears of."""
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    folder = tmp_path / "run"
    shutil.copytree(finished.uri, folder)
    described = json.loads((folder / "run.json").read_text()) | {"state": "searching"}
    (folder / "run.json").write_text(json.dumps(described))
    with Store(folder).locked(), pytest.raises(StoreError, match="another process works on this run"):
        resume(str(folder))
    store = Store(f"file://{folder}")
    said = Console(file=io.StringIO(), width=120)
    with (
        lease.held(find_coordinator(store), "first", store.name, console=said),
        pytest.raises(UsageError, match="another driver works on this run"),
    ):
        resume(store.uri, console=said)
    assert facts(store.trials()) == facts(finished.trials())
    assert store.run()["state"] == "searching", "it changed nothing"


def test_other_data_are_not_taken_for_those_of_the_run(finished: Store, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.uri, folder)
    described = json.loads((folder / "run.json").read_text())
    described |= {"state": "searching"}
    described["spec"]["data"]["max_images"] = 390
    (folder / "run.json").write_text(json.dumps(described))
    with pytest.raises(StoreError, match="the data changed since the run began"):
        resume(str(folder))


def test_a_candidate_that_raises_is_a_row_with_its_error(tmp_path: Path) -> None:
    model = {"name": "tests.orchestration.fragile:build", "arguments": {"raises": True}}
    spec = spec_of(tmp_path / "run", model=model)
    run(spec)
    trials = Store(spec.output).trials()
    failed = [t for t in trials if t.state is TrialState.FAILED]
    assert failed and len(trials) > len(failed) and len([t for t in trials if t.proposal.stage is Stage.SEARCH]) == 12
    assert {t.error for t in failed} == {"ValueError: an odd number of channels ... that ends here"}


def test_task_whose_worker_is_lost_is_tried_again_with_the_same_result(finished: Store, tmp_path: Path) -> None:
    with in_process(losses={"search-00002": 1, "finetune-00001": 2, "test-00000": 1}) as executor:
        run(spec_of(tmp_path / "run"))
    assert set(executor.losses.values()) == {0} and executor.workers_started > 2
    assert facts(Store(tmp_path / "run").trials()) == facts(finished.trials())


def test_task_whose_worker_is_lost_every_time_is_a_failed_trial(tmp_path: Path) -> None:
    with in_process(losses={"search-00002": 99}) as executor:
        run(spec_of(tmp_path / "run", finalists={"count": 0}))
    trials = {t.trial_id: t for t in Store(tmp_path / "run").trials()}
    assert len(trials) == 12 and executor.losses["search-00002"] > 90, "it was given up"
    assert [name for name, t in trials.items() if t.state is TrialState.FAILED] == ["search-00002"]
    assert trials["search-00002"].error


def test_a_search_whose_candidates_all_fail_ends_with_the_cause(tmp_path: Path) -> None:
    model = {"name": "tests.orchestration.fragile:build", "arguments": {"raises": True, "always": True}}
    spec = spec_of(tmp_path / "run", model=model)
    with pytest.raises(RapruneError, match=r"All \d+ candidates so far failed, the last with: ValueError: an odd"):
        run(spec)
    assert {t.state for t in Store(spec.output).trials()} == {TrialState.FAILED}


def test_a_time_limit_ends_the_proposals_and_the_run_still_ends_well(tmp_path: Path) -> None:
    search_part = {"trials": 5000, "time_limit_s": 3, "calibration_images": 64}
    spec = spec_of(tmp_path / "run", search=search_part)
    run(spec)
    trials = Store(spec.output).trials()
    stages = [t.proposal.stage for t in trials]
    assert 1 <= stages.count(Stage.SEARCH) < 5000 and stages.count(Stage.FINETUNE) >= 1
    assert Store(spec.output).run()["state"] == "finished"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"methods": ["l3"]}, UsageError, "l3"),
        ({"model": {"name": "resnet-57"}}, UsageError, "resnet-57"),
        ({"data": {"name": "digit"}}, UsageError, "Did you mean digits"),
        ({"budget": {"flops": 0.0001}}, BudgetError, "out of reach"),
        ({"exclude": ["layer9.*"]}, UsageError, "matches no layer"),
        ({"exclude": ["*"]}, ModelError, "no channel of this network can go"),
        ({"model": {"name": "digits-net", "weights": "/nowhere.safetensors"}}, UsageError, "nowhere"),
    ],
)
def test_impossible_job_is_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], error: type[RapruneError], message: str
) -> None:
    with pytest.raises(error, match=message):
        search(spec_of(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_more_workers_than_fit_are_refused_with_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--workers\) 99"):
        search(spec_of(tmp_path / "run", resources={"workers": 99}))
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file"):
        search(spec_of(tmp_path / "file" / "run"))


@pytest.mark.nightly
def test_a_second_search_on_the_same_network_computes_no_statistics_again(finished: Store, tmp_path: Path) -> None:
    """Scores and the sparsity-trained network are read; another calibration set has its own."""
    weights = str(tmp_path / "dense.safetensors")
    Path(weights).write_bytes(finished.read_bytes("models/dense/weights.safetensors"))
    changes: dict[str, Any] = {
        "model": {"name": "digits-net", "weights": weights},
        "methods": ["taylor", "slimming"],
        "settings": {"slimming": {"sparse_epochs": 1.0}},
        "search": {**SMALL["search"], "trials": 8},
        "finalists": {"count": 0},
    }
    texts = [run(spec_of(tmp_path / name, **changes)) for name in ("first", "second")]
    folder = tmp_path / "statistics"
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    kinds = sorted("".join(name.split("-")[:2])[:9] for name in files if name.startswith("scores"))
    assert kinds == ["scoresl1", "scoressli", "scorestay"], files
    assert sum(name.startswith("network-") for name in files) == 1
    first, second = (Store(tmp_path / name).run()["statistics"] for name in ("first", "second"))
    assert len(first["computed"]) == len(files) and first["read"] == 0
    assert second["computed"] == [] and second["read"] == len(files)
    assert "0 computed" in texts[1]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == files
    assert facts(Store(tmp_path / "first").trials()) == facts(Store(tmp_path / "second").trials())
    changes["search"]["calibration_images"] = 32
    run(spec_of(tmp_path / "third", **changes))
    assert Store(tmp_path / "third").run()["statistics"]["read"] == len(files) - 1, "all but what looks at images"


def test_a_search_begins_with_an_earlier_one_and_is_resumed_without_it(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"search": SMALL["search"] | {"trials": 8}, "finalists": {"count": 0}}
    run(spec_of(tmp_path / "first", **changes))
    weights = str(tmp_path / "dense.safetensors")
    shutil.copy(tmp_path / "first" / "models" / "dense" / "weights.safetensors", weights)
    changes |= {"model": {"name": "digits-net", "weights": weights}}
    text = run(spec_of(tmp_path / "second", **changes, warm_start=[str(tmp_path / "first")]))
    store, first = Store(tmp_path / "second"), Store(tmp_path / "first")
    taken = warm_start.from_json(store.read_json(warm_start.FILE))
    assert 1 <= len(taken.first) <= 2 and len(taken.observed) == 8
    assert f"{len(taken.first)} widths proposed first, 8 results told" in " ".join(text.split())
    before = {t.trial_id: t.candidate for t in first.trials()}
    after = {t.trial_id: t for t in store.trials()}
    again = [t for t in after.values() if t.candidate in {before[point.trial_id] for point in taken.first}]
    assert len(again) >= len(taken.first), "the very same candidates"
    shutil.rmtree(tmp_path / "first")
    for part in sorted((tmp_path / "second" / "trials").iterdir())[3:]:
        part.unlink()
    store.write_json("run.json", store.run() | {"state": "searching"})
    resume(store.uri)
    assert facts(Store(store.uri).trials()) == facts(list(after.values()))
    others: tuple[tuple[dict[str, Any], str], ...] = (
        ({"data": {"name": "digits", "max_images": 390}}, "data"),
        ({"model": {"name": "digits-net", "arguments": {"width": 8}}}, "network"),
    )
    for other, what in others:
        with pytest.raises(UsageError, match=rf"warm_start \(--warm-start\) .*: not on the same {what}"):
            search(spec_of(tmp_path / "third", **changes | other, warm_start=[store.uri]))
        assert not (tmp_path / "third").exists()


def test_baselines_are_tried_beside_any_method_and_compared_after_equal_training(tmp_path: Path) -> None:
    finalists = {"count": 1, "train": {"epochs": 0.5}}
    run(spec_of(tmp_path / "run", methods=["l2"], finalists=finalists))
    trials = Store(tmp_path / "run").trials()
    searched = [t for t in trials if t.proposal.stage is Stage.SEARCH]
    assert {t.proposal.method for t in searched} == {"l2", "l1", "random"}
    assert sum(t.proposal.method != "l2" for t in searched) == 3, "a quarter of the trials"
    finetuned = [t for t in trials if t.proposal.stage is Stage.FINETUNE]
    assert sorted(t.proposal.method for t in finetuned) == ["l1", "l2", "random"]
    assert {t.epochs for t in finetuned} == {0.5}


def test_finalists_in_one_cut_and_in_two_are_networks_of_their_own_and_the_better_one_is_on_the_front(
    tmp_path: Path,
) -> None:
    spec = spec_of(
        tmp_path / "run",
        finalists={"count": 2, "each_method": False, "seeds": 2, "steps": [1, 2], "train": {"epochs": 1.0}},
        search=SMALL["search"] | {"trials": 6},
    )
    shown, store = run(spec), Store(spec.output)
    trials = {t.trial_id: t for t in store.trials() if t.proposal.stage is Stage.FINETUNE}
    assert set(trials) == {
        f"finetune-0000{number}{cuts}{repeat}" for number in (0, 1) for cuts in ("", "-c2") for repeat in ("", "-s1")
    }
    for number in (0, 1):
        once, twice = trials[f"finetune-0000{number}"], trials[f"finetune-0000{number}-c2"]
        assert (once.proposal.parent, once.proposal.seed) == (twice.proposal.parent, twice.proposal.seed)
        assert once.candidate == twice.candidate and once.epochs == twice.epochs == 1.0
        assert once.metrics and twice.metrics and once.metrics.loss != twice.metrics.loss
    assert all(store.read_json(f"models/{t.network}/recipe.json")["trial_id"] == t.trial_id for t in trials.values())
    rows = {row.candidate: row for row in candidates(store.trials()) if row.stage is Stage.FINETUNE}
    assert {row.cuts for row in rows.values()} == {1, 2} and all(row.repeats == (0, 1) for row in rows.values())
    for row in rows.values():
        (rival,) = [other for other in rows.values() if other.parent == row.parent and other.cuts != row.cuts]
        assert not (row.on_front and rival.val_accuracy > row.val_accuracy)
    assert "Best on the validation split, of 2 finalists:" in shown
    (tuning,) = [stage for stage in store.run()["stages"] if stage["name"] == FINETUNE]
    assert tuning["done"] <= tuning["total"] == 8
    before = facts(store.trials())
    resume(store.uri, console=Console(file=io.StringIO()))
    assert facts(store.trials()) == before, "nothing is trained again"


def test_finalist_that_was_trained_before_is_made_in_one_way(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path / "run",
        finalists={"count": 2, "each_method": False, "steps": [1, 3], "train": {"epochs": 0.5}},
        search=SMALL["search"] | {"trials": 6, "rungs": [0, 0.25], "keep": 0.5},
    )
    run(spec)
    finetuned = [t for t in Store(spec.output).trials() if t.proposal.stage is Stage.FINETUNE]
    assert finetuned and {t.proposal.cuts for t in finetuned} == {1}


def test_a_method_that_trains_as_it_cuts_gives_its_whole_path(tmp_path: Path) -> None:
    """Each network on the way is a trial and is stored; finalists go on from the stored network."""
    spec = spec_of(
        tmp_path / "run",
        methods=["binary_search"],
        allocations=["uniform"],
        settings={"binary_search": {"tolerance": 0.2, "finetune_epochs": 0.2}},
        search={**SMALL["search"], "trials": 3, "smallest": 1.0},
        finalists={"count": 3, "each_method": False, "train": {"epochs": 0.5}},
    )
    run(spec)
    store = Store(spec.output)
    trials = {t.trial_id: t for t in store.trials()}
    way = sorted(name for name in trials if name.startswith("search-00002."))
    own = trials["search-00002"]
    assert len(way) >= 2, "three groups: two networks before the last, or three where all had to be narrowed after"
    assert own.state is TrialState.COMPLETE and own.proposal.step is None and own.epochs > 0
    assert [trials[name].proposal.step for name in way] == list(range(len(way)))
    first = trials[way[0]].metrics
    assert first and own.metrics and first.flops > own.metrics.flops
    assert own.metrics.flops_fraction <= 0.3
    for name in (*way, "search-00002"):
        candidate = trials[name].candidate
        assert candidate and store.read_json(f"models/{name}/recipe.json")["candidate"] == candidate.id
    continued = [t for t in trials.values() if t.proposal.parent == "search-00002"]
    assert continued and continued[0].epochs == pytest.approx(own.epochs + 0.5)
    assert continued[0].accuracy_after_repair == own.metrics.accuracy
    assert store.run()["state"] == "finished"
    for name in (way[0], "search-00002"):
        export(store.uri, name, str(tmp_path / name))
        dense = build_model(spec.model, num_classes=10, image_shape=(1, 8, 8))
        loaded, metrics = load(dense, str(tmp_path / name)), trials[name].metrics
        assert metrics and sum(p.numel() for p in loaded.parameters()) == metrics.params
