"""A whole search with rungs, repeats of its finalists, and a stop rule, in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raprune.models import build_model
from raprune.orchestration.search import resume
from raprune.pruning.artifact import load
from raprune.pruning.export import export
from raprune.records import Stage, TrialState
from raprune.results.rows import candidates
from raprune.results.test_split import read_test
from raprune.sampling.point import Point
from raprune.spec.job import ModelSpec
from raprune.store.folder import Store
from tests.factories import SMALL_SEARCH as SMALL
from tests.factories import promoted_by_definition
from tests.factories import small_search as spec_of
from tests.orchestration.in_process import in_process
from tests.orchestration.whole_search import facts, run

pytestmark = pytest.mark.usefixtures("executor")

CLIMBING: dict[str, Any] = {
    "search": SMALL["search"] | {"trials": 10, "rungs": [0, 0.25, 1], "keep": 0.5},
    "finalists": {"count": 2, "each_method": False, "seeds": 2, "train": {"epochs": 0.5}},
}


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    spec = spec_of(tmp_path_factory.mktemp("rungs") / "run", **CLIMBING)
    with in_process():
        run(spec)
    return Store(spec.output)


def test_only_the_last_rung_counts(climbed: Store) -> None:
    searched = [t for t in climbed.trials() if t.proposal.stage is Stage.SEARCH]
    by_rung = {rung: [t for t in searched if t.proposal.rung == rung] for rung in range(3)}
    assert len(by_rung[0]) == 10 > len(by_rung[1])
    for below, above in ((0, 1), (1, 2)):
        came = sorted(by_rung[below], key=lambda trial: trial.proposal.number)
        points = [Point.of(trial).objectives() for trial in came]
        onward = {t.proposal.number for i, t in enumerate(came, 1) if promoted_by_definition(points[:i], keep=0.5)}
        assert onward == {trial.proposal.number for trial in by_rung[above]} != set()
    for rung, trials in by_rung.items():
        assert {t.epochs for t in trials} == {(0, 0.25, 1)[rung]}
        assert {t.state for t in trials} == {TrialState.COMPLETE if rung == 2 else TrialState.STOPPED}
    known = {t.trial_id: t for t in searched}
    for trial in by_rung[1] + by_rung[2]:
        before = known[trial.proposal.parent or ""]
        assert before.candidate == trial.candidate and before.accuracy_after_repair == trial.accuracy_after_repair
    assert {row.rung for row in candidates(climbed.trials()) if row.stage == "search"} <= {2}
    rungs = climbed.table(["rung"]).column("rung").to_pylist()
    assert rungs.count(1) == len(by_rung[1])


def test_finalists_are_trained_by_several_seeds_and_told_by_mean_and_interval(climbed: Store) -> None:
    trials = climbed.trials()
    finetuned = [t for t in trials if t.proposal.stage is Stage.FINETUNE]
    assert sorted(t.trial_id for t in finetuned) == [
        f"finetune-0000{n}{repeat}" for n in range(2) for repeat in ("", "-s1")
    ]
    assert len({t.proposal.seed for t in finetuned}) == 4
    # One epoch of rungs, half of one of fine-tuning.
    assert {t.epochs for t in finetuned} == {1.5}
    rows = candidates(climbed.trials(), test=read_test(climbed, climbed.trials()))
    means = [row for row in rows if row.stage == "finetune"]
    assert means and all(row.repeats == (0, 1) and row.val_interval is not None for row in means)
    tested = [row for row in means if row.test_accuracy is not None]
    assert tested and all(row.test_interval is not None for row in tested), "the best of each method at least"


def test_a_network_of_a_rung_and_one_of_a_repeat_load(climbed: Store, tmp_path: Path) -> None:
    (name,) = [t for t in climbed.trials() if t.trial_id == "finetune-00001-s1"]
    assert name.candidate is not None
    row = next(r for r in candidates(climbed.trials()) if r.stage == "finetune")
    assert climbed.exists(f"models/{name.candidate.id}-ft-s1/recipe.json")
    export(climbed.uri, row.candidate, str(tmp_path / "out"))
    dense = build_model(ModelSpec(name="digits-net"), num_classes=10, image_shape=(1, 8, 8))
    small = load(dense, str(tmp_path / "out"))
    assert sum(parameter.numel() for parameter in small.parameters()) == row.params


def test_a_run_cut_off_between_rungs_ends_the_same(climbed: Store, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(climbed.uri, folder)
    shutil.rmtree(folder / "report")
    parts = sorted((folder / "trials").iterdir())
    for part in parts[6:]:
        part.unlink()
    described = json.loads((folder / "run.json").read_text()) | {"state": "searching"}
    (folder / "run.json").write_text(json.dumps(described))
    kept = {t.trial_id: t.started_at for t in Store(folder).trials()}
    resume(str(folder))
    again = Store(folder).trials()
    assert facts(again) == facts(climbed.trials())
    assert kept.items() <= {t.trial_id: t.started_at for t in again}.items(), "none was run twice"


def test_a_search_that_gains_nothing_more_stops_and_says_why(tmp_path: Path) -> None:
    search = SMALL["search"] | {"trials": 200, "patience": 6}
    spec = spec_of(tmp_path / "run", search=search, finalists={"count": 0, "each_method": False})
    text = run(spec)
    described = Store(spec.output).run()
    assert described["stopped"] == "the last 6 results did not enlarge the front"
    assert "did not enlarge the front" in text
    assert 7 <= len(Store(spec.output).trials()) < 200
