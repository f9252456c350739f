"""Answers of the page from the known state of a run."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raprune.cli import app
from raprune.errors import RapruneError, UsageError
from raprune.page import answers
from raprune.page.feed import Feed, KnownRun
from raprune.records import CandidateOutline, Stage
from raprune.results.front import front_of
from raprune.results.rows import COSTS
from raprune.results.stages import RunStage, RunStages
from raprune.store.address import without_secrets
from raprune.store.folder import Store
from raprune.store.networks import find_network
from raprune.store.record import RunRecord
from tests.factories import LIVE_RUN as RUN
from tests.factories import finetuned
from tests.factories import live_trial as trial
from tests.factories import make_live_run as make_run

SECRET = "hush-hush"


def look(store: Store) -> KnownRun:
    feed = Feed(store, every_s=0.0)
    feed.look()
    assert feed.known is not None, feed.away
    return feed.known


STAGES = RunStages(
    stages=(RunStage(name="search", started_at=1.8e9, detail="s3://key:hush-hush@bucket", rate=float("nan")),),
    written_at=1.8e9,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_run(tmp_path_factory.mktemp("answers") / "run")


@pytest.fixture(scope="module")
def known(store: Store) -> KnownRun:
    return look(store)


def everything(known: KnownRun, store: Store) -> list[Any]:
    details = [answers.detail_trial(t, known, curves={}, folder=None, size=None) for t in known.trials]
    return [
        answers.describe_run(known, None, STAGES, name="run"),
        answers.list_trials(known, 0),
        answers.list_rows(known),
        answers.list_history(known),
        answers.list_ablation(known),
        answers.describe_progress(known),
        *details,
    ]  # fmt: skip


def test_rows_of_the_page_are_those_of_the_command_line(store: Store, known: KnownRun) -> None:
    printed = json.loads(CliRunner().invoke(app, ["front", store.uri, "--json", "--all"]).output)
    rows = answers.list_rows(known)
    ids = [trial.trial_id for trial in known.trials]
    assert [ids[position] for position in rows["trial"]] == [row["trial_id"] for row in printed]
    assert [[ids[position] for position in some] for some in rows["repeats"]] == [row["trials"] for row in printed]
    for name in ("val_accuracy", "val_interval", "test_accuracy", "starred"):
        assert rows[name] == [row[name] for row in printed], name
    assert any(rows["val_interval"]) and sum(rows["starred"]) == 1
    front = json.loads(CliRunner().invoke(app, ["front", store.uri, "--json"]).output)
    on_front = {ids[place] for place, costs in zip(rows["trial"], rows["on_front"], strict=True) if "flops" in costs}
    assert on_front == {row["trial_id"] for row in front if row["on_front"]} and len(on_front) > 1


def test_rows_of_the_page_name_the_fronts_of_each_cost(known: KnownRun) -> None:
    rows = answers.list_rows(known)
    assert set(itertools.chain(*rows["on_front"])) == set(COSTS)
    for cost in COSTS:
        named = [
            known.trials[place].trial_id
            for place, on in zip(rows["trial"], rows["on_front"], strict=True)
            if cost in on
        ]
        wanted = [row.trial_id for row in front_of(known.rows, known.budget, cost=cost)]
        assert sorted(named) == sorted(wanted)


@pytest.mark.parametrize("asked", [{"flops": "0.2"}, {"params": "0.15"}, {"min_accuracy": "0.85"}, {}])
def test_pick_of_the_page_is_that_of_the_command_line(store: Store, known: KnownRun, asked: dict[str, str]) -> None:
    flags = [f"--{name if name == 'min_accuracy' else f'budget-{name}'}".replace("_", "-") for name in asked]
    words = [word for pair in zip(flags, asked.values(), strict=True) for word in pair]
    printed = json.loads(CliRunner().invoke(app, ["pick", store.uri, "--json", *words]).output)
    assert answers.pick_row(known, asked) == printed


def test_warnings_of_the_run_are_told_without_secrets(known: KnownRun) -> None:
    warned = replace(known, run=known.run.model_copy(update={"warnings": (f"Not on s3://key:{SECRET}@bucket.",)}))
    assert answers.describe_run(warned, None, STAGES, name="run")["warnings"] == ["Not on s3://bucket."]
    assert answers.describe_run(known, None, STAGES, name="run")["warnings"] == []


@pytest.mark.parametrize("text", ["x", "0", "1.1", "-0.3", "nan", "inf", "1e400", "0,3"])
@pytest.mark.parametrize("name", ["flops", "params", "min_accuracy"])
def test_pick_by_an_invalid_limit_is_refused(known: KnownRun, name: str, text: str) -> None:
    with pytest.raises(UsageError, match=name):
        answers.pick_row(known, {name: text})


def test_pick_without_a_fitting_network_names_the_nearest(known: KnownRun) -> None:
    with pytest.raises(RapruneError, match="the smallest"):
        answers.pick_row(known, {"flops": "0.001"})
    with pytest.raises(RapruneError, match="knows no latencies"):
        answers.pick_row(known, {"latency": "3ms"})


def test_columns_after_a_position_continue_the_earlier_ones(known: KnownRun) -> None:
    whole = answers.list_trials(known, 0)
    columns = whole["columns"]
    assert list(columns) == list(answers.COLUMNS) == list(answers.describe_trial(known.trials[0], known))
    assert {len(column) for column in columns.values()} == {whole["total"]} == {8}
    rest = answers.list_trials(known, 5)["columns"]
    assert list(rest) == list(columns)
    assert all(columns[name][5:] == rest[name] for name in columns)
    beyond = answers.list_trials(known, 99)["columns"]
    assert list(beyond) == list(columns) and not any(beyond.values())


def test_row_of_a_trial_says_if_it_may_count(known: KnownRun) -> None:
    columns = answers.list_trials(known, 0)["columns"]
    rows = {name: dict(zip(columns, values, strict=True)) for name, *values in zip(
        columns["trial_id"], *columns.values(), strict=True)}  # fmt: skip
    assert not rows["search-00005"]["eligible"] and "RuntimeError" in rows["search-00005"]["error"]
    assert rows["search-00000"]["eligible"] and rows["finetune-00000-s1"]["repeat"] == 1
    names = [rows[name]["network"] for name in ("search-00004", "finetune-00000", "finetune-00000-s1")]
    assert names == [names[0], f"{names[0]}-ft", f"{names[0]}-ft-s1"]
    assert rows["finetune-00000-s1"]["candidate"] == rows["finetune-00000"]["candidate"] == names[1]
    counting = {known.trials[position].trial_id for position in answers.list_rows(known)["trial"]}
    assert {"finetune-00000", "search-00004", "search-00000"} <= counting


def test_answers_hold_no_credential(known: KnownRun, store: Store) -> None:
    told = json.dumps(everything(known, store))
    assert SECRET not in told and "secret_key" not in told
    assert "s3://bucket/train" in told and "s3://bucket is <b>away</b>" in told


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/run?region=x&secret_key=abc", "s3://bucket/run"),
        ("s3://bucket/run?secret_key=a;b,c)d'e", "s3://bucket/run"),
        ("open gs://t0ken@b/x, then", "open gs://b/x, then"),
        ("https://host/path?token=abc failed", "https://host/path failed"),
        ("no address at all: a@b?c", "no address at all: a@b?c"),
    ],
)
def test_credentials_in_addresses_are_removed(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets({"a": [text]}) == {"a": [shown]}


def test_nan_and_infinity_become_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.create(RunRecord.model_validate(RUN))
    lost = trial(0, accuracy=float("nan"))
    assert lost.metrics is not None
    store.append([replace(lost, metrics=replace(lost.metrics, loss=float("inf")))])
    known = look(store)
    json.dumps(everything(known, store), allow_nan=False)
    columns = answers.list_trials(known, 0)["columns"]
    assert columns["val_accuracy"] == columns["val_loss"] == [None]


def test_history_of_a_trial_lists_its_relatives_in_order() -> None:
    first = trial(0)
    rung = replace(first, proposal=replace(first.proposal, rung=1, parent=first.trial_id), trial_id="search-00000-r1")
    step = replace(first, proposal=replace(first.proposal, step=0), trial_id="search-00000.0")
    tuned = [replace(finetuned(rung, 3, accuracy=0.9, repeat=r)) for r in range(2)]
    tuned = [replace(t, proposal=replace(t.proposal, rung=0)) for t in tuned]
    tuned = [replace(t, trial_id=t.proposal.trial_id) for t in tuned]
    other = trial(1)
    trials = [step, first, other, rung, *tuned]

    def told(chosen: Any) -> list[tuple[str, str]]:
        return [(t.trial_id, relation) for t, relation in answers.relatives(chosen, trials)]

    assert told(rung) == [
        ("search-00000", "ancestor"),
        ("search-00000-r1", "self"),
        ("finetune-00003", "descendant"),
        ("finetune-00003-s1", "descendant"),
    ]
    assert told(first)[:2] == [("search-00000.0", "sibling"), ("search-00000", "self")]
    assert told(tuned[1]) == [
        ("search-00000", "ancestor"),
        ("search-00000-r1", "ancestor"),
        ("finetune-00003", "sibling"),
        ("finetune-00003-s1", "self"),
    ]
    assert told(other) == [("search-00001", "self")]


def test_history_tells_finalists_in_several_cuts_apart(known: KnownRun) -> None:
    tuned = known.trials[-1]
    cut = replace(tuned, proposal=replace(tuned.proposal, cuts=3), trial_id="finetune-00000-c3-s1")
    beside = replace(known, trials=(*known.trials, cut))
    history = answers.detail_trial(cut, beside, curves={}, folder=None, size=None)["history"]
    told = {step["trial_id"]: (step["cuts"], step["relation"]) for step in history}
    assert told["finetune-00000-c3-s1"] == (3, "self") and told["finetune-00000-s1"] == (1, "sibling")


def test_history_with_a_circle_ends() -> None:
    a, b = (replace(trial(n), proposal=replace(trial(n).proposal, parent=f"search-{1 - n:05d}")) for n in range(2))
    assert {t.trial_id for t, _ in answers.relatives(a, [a, b])} == {"search-00000", "search-00001"}


def test_trial_is_found_by_its_id_or_the_name_of_its_network(known: KnownRun) -> None:
    best = known.trials[-1].candidate
    assert best is not None
    named = {best.id: "search-00004", f"{best.id}-ft": "finetune-00000", f"{best.id}-ft-s1": "finetune-00000-s1"}
    for name, trial_id in named.items():
        for asked in (name, trial_id):
            found = answers.find_trial(known, asked)
            assert found is not None and (found.trial_id, found.network) == (trial_id, name)
    for name in ("nobody", "", ".", "..", best.id[:6], f"{best.id}-s1", f"../{best.id}"):
        assert answers.find_trial(known, name) is None, name


@pytest.mark.parametrize("hostile", ["../../etc/passwd", "..", ".hidden", "a/b", "a\\b", "a b", "", "x" * 300, "a\n"])
def test_hostile_name_in_the_store_becomes_no_path(known: KnownRun, hostile: str) -> None:
    class Watched(Store):
        def exists(self, rel: str) -> bool:
            assert re.fullmatch(r"models/[\w-]+/recipe.json", rel)
            return False

    planted = replace(known.trials[0], trial_id=hostile)
    assert answers.find_trial(replace(known, trials=(planted,)), hostile) is planted
    assert find_network(Watched("nowhere"), planted) is None
    candidate = CandidateOutline(id=hostile, method="l2", settings={}, widths={})
    assert find_network(Watched("nowhere"), replace(planted, candidate=candidate)) is None


def test_detail_of_a_trial_holds_recipe_history_curve_and_links(store: Store, known: KnownRun) -> None:
    tuned = known.trials[-1]
    assert tuned.proposal.stage is Stage.FINETUNE and tuned.candidate is not None
    folder = f"models/{tuned.network}"
    detail = answers.detail_trial(tuned, known, curves={tuned.trial_id: [{"epoch": 1}]}, folder=folder, size=7)
    assert detail["trial"]["widths"] == tuned.candidate.widths and detail["row"]["repeats"] == [0, 1]
    assert detail["trial"]["settings"] == {} and detail["curve"] == [{"epoch": 1}]
    assert detail["download"]["weights"] == "download/finetune-00000-s1/weights.safetensors"
    assert detail["download"]["bytes"] == 7
    assert detail["export"] == f"raprune export {store.name} {tuned.candidate.id}-ft-s1 FOLDER"
    searched = answers.detail_trial(known.trials[0], known, curves={}, folder=None, size=None)
    assert searched["download"] is None and searched["curve"] == []
