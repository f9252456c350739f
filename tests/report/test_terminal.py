"""Tables of a run of forty made-up trials."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from raprune.errors import RapruneError, UsageError
from raprune.report.terminal import print_ablation, print_front, print_pick, print_status
from raprune.results.front import front
from raprune.results.rows import CandidateRow
from raprune.results.stages import FILE, SCORES, SEARCH, Stages
from raprune.spec.budget import Budget
from raprune.store.folder import Store
from raprune.store.record import RunRecord
from tests.factories import DENSE, TIMED, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_run(tmp_path_factory.mktemp("run"))


def printed(width: int = 140) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_front_json_is_the_contract(run: Store) -> None:
    console = printed(40)
    print_front(run.uri, console=console, as_json=True)
    rows = json.loads(text(console))
    keys = {
        "candidate",
        "method",
        "flops",
        "flops_fraction",
        "params_fraction",
        "val_accuracy",
        "test_accuracy",
        "dense_test_accuracy",
    }
    assert len(rows) >= 4
    assert all(keys <= row.keys() for row in rows)
    assert rows[-1]["test_accuracy"] == pytest.approx(rows[-1]["val_accuracy"] - 0.004)
    assert all(row["dense_test_accuracy"] == 0.9778 for row in rows)


@pytest.mark.parametrize("show", [print_status, print_front])
def test_warnings_of_the_run_are_printed_with_its_results(show: Callable[..., None], tmp_path: Path) -> None:
    make_run(tmp_path).note({"warnings": ["The dense network scores 9.7% on [bold] images."]})
    console = printed()
    show(str(tmp_path), console=console)
    assert "Warning: The dense network scores 9.7% on [bold] images." in text(console)


@pytest.mark.parametrize("width", [80, 140])
def test_front_fits_the_terminal_and_marks_the_best(run: Store, width: int) -> None:
    console = printed(width)
    print_front(run.uri, console=console)
    table, _, last = text(console).partition("Run: ")
    assert f"raprune pick {run.name}" in last
    lines = table.splitlines()
    assert max(map(len, lines)) <= width
    (best,) = [line for line in lines if re.match(r" *★ +[0-9a-f]{12}(?:-ft)? ", line)]
    assert " 20 " in best and "30.0%" in best and "98.00" in best and "97.60" in best
    assert re.search(r"-0\.18 ± 0\.81", best)
    assert ("1.02 M" in best) == (width == 140)
    assert any("dense" in line and "100.0%" in line for line in lines)


def timed_run(folder: Path, share_of_time: float) -> tuple[Store, list[CandidateRow]]:
    """A run whose front was measured: each network takes that share of the dense one's time, of one image 0.8."""
    store = make_run(folder)
    rows = front(store.trials(), Budget(flops=0.3))
    single, batch = (
        TIMED | {"batch_size": size, "dense_ms": ms, "candidates": {row.candidate: ms * share for row in rows}}
        for size, ms, share in ((1, 4.0, 0.8), (64, 90.0, share_of_time))
    )
    store.write_json("report/latency.json", {"conditions": [single, batch], "budget": None})
    return store, rows


@pytest.mark.parametrize("width", [80, 140])
def test_measured_times_are_a_column_that_fits_the_terminal(tmp_path: Path, width: int) -> None:
    store, _ = timed_run(tmp_path, 0.434)
    console = printed(width)
    print_front(store.uri, console=console)
    shown = text(console).partition("Run: ")[0]
    assert max(map(len, shown.splitlines())) <= width
    (best,) = [line for line in shown.splitlines() if re.match(r" *★ +[0-9a-f]{12}(?:-ft)? ", line)]
    assert "2.3x" in best and ("1.25x" in best) == (width == 140)
    words = " ".join(shown.split())
    assert words.startswith("The chosen network, ") and "is 2.3x faster at batch 64 on 2 CPU threads" in words
    assert "64 (90 ms for the dense network), float32 on AMD EPYC, 2 threads" in words
    assert ("a batch of 1 (4 ms for the dense network) and one of 64" in words) == (width == 140)
    assert "than the dense network at batch" not in words


def test_front_as_json_has_the_speedups(tmp_path: Path) -> None:
    store, rows = timed_run(tmp_path, 0.5)
    console = printed()
    print_front(store.uri, console=console, as_json=True)
    found = json.loads(text(console))
    assert len(found) == len(rows)
    assert {(r["speedup"], r["speedup_batch1"], r["measured_ms"], r["measured_batch_size"]) for r in found} == {
        (2.0, 1.25, 45.0, 64)
    }


def test_report_of_hardly_faster_networks_says_so(tmp_path: Path) -> None:
    """At most 30 % of the FLOPs at 90 % of the time: a tenth is saved of what would be a third of 70 %."""
    store, rows = timed_run(tmp_path, 0.9)
    console = printed()
    print_front(store.uri, console=console)
    words = " ".join(text(console).split())
    least = min(rows, key=lambda row: row.flops_fraction)
    assert f"{len(rows)} of {len(rows)} networks are hardly faster than the dense network at batch 64" in words
    assert f"{least.candidate} has {least.flops_fraction:.1%} of the FLOPs and takes 90.0% of the time" in words


def test_times_of_an_earlier_version_are_shown(tmp_path: Path) -> None:
    store = make_run(tmp_path)
    old = {"device": "AMD EPYC, 1 thread", "batch_size": 1, "precision": "float32", "dense_ms": 4.0}
    times = {row.candidate: 2.0 for row in front(store.trials(), Budget(flops=0.3))}
    store.write_json("report/latency.json", old | {"candidates": times})
    console = printed()
    print_front(store.uri, console=console)
    words = " ".join(text(console).split())
    assert " faster val % " in words and " 2.0x " in words
    assert "a batch of 1 (4 ms for the dense network), float32 on AMD EPYC, 1 thread." in words


def test_predicted_times_are_marked(tmp_path: Path) -> None:
    store = make_run(tmp_path)
    trial = next(t for t in store.trials() if t.trial_id == "finetune-00043")
    assert trial.metrics is not None
    predicted = replace(trial.metrics, accuracy=0.999, latency_ms=1.0, latency_fraction=0.25)
    proposal = replace(trial.proposal, number=99)
    store.append([replace(trial, trial_id=proposal.trial_id, proposal=proposal, metrics=predicted)])
    console = printed()
    print_front(store.uri, console=console)
    assert "~25.0%" in text(console) and "~ as layer times predict it" in " ".join(text(console).split())


def test_pick_by_latency_without_latencies_is_refused(run: Store) -> None:
    with pytest.raises(UsageError, match=r"--budget-latency: this run knows no latencies"):
        print_pick(run.uri, Budget(latency_ms=3.0), console=printed())


def test_front_with_all_lists_dominated_candidates(run: Store) -> None:
    console = printed()
    print_front(run.uri, console=console, as_json=True, everything=True)
    rows = json.loads(text(console))
    assert len(rows) == 44
    assert 0 < sum(row["on_front"] for row in rows) < 44


def test_front_of_an_untested_run_says_that_the_test_split_was_not_touched(tmp_path: Path) -> None:
    store = make_run(tmp_path, tested=False)
    console = printed()
    print_front(store.uri, console=console)
    assert "test split was not touched" in text(console)
    assert "-0.10 ± 0.82" in text(console)


def test_front_of_a_run_without_trials_is_a_sentence(tmp_path: Path) -> None:
    Store(tmp_path).create(RunRecord())
    console = printed()
    print_front(str(tmp_path), console=console)
    print_status(str(tmp_path), console=console)
    assert "No candidate" in text(console) and "0 of 0 searched" in text(console)


def test_ablation_compares_the_methods_in_tables(run: Store) -> None:
    console = printed(80)
    print_ablation(run.uri, console=console)
    shown = text(console)
    assert max(map(len, shown.splitlines())) <= 80
    repaired, finetuned = shown.split("Fine-tuned for 20 epochs")
    for part in (repaired, finetuned):
        assert "up to 30.0% FLOPs" in part and "up to 20.0% FLOPs" in part and "up to 15.0% FLOPs" in part
    assert all(re.search(rf"^ *{method} ", repaired, flags=re.M) for method in ("l1", "l2", "random"))
    # Worked by hand from `make_run`: trials 40 to 43 have 30, 25, 20 and 15 % of the FLOPs.
    assert re.search(r"^ *l1 +20 +98.00 at 30.0% +97.25 at 15.0% +97.25 at 15.0%", finetuned, flags=re.M)
    assert re.search(r"^ *l2 +20 +97.50 at 20.0% +97.50 at 20.0% +- *$", finetuned, flags=re.M)
    assert "Dense: 98.10." in " ".join(shown.split())


def test_pruned_weights_are_told_apart_from_removed_channels(run: Store, tmp_path: Path) -> None:
    (trial, *_) = run.trials()
    assert trial.metrics is not None
    shown = {}
    for zeros in (7, 3_050):
        store = Store(tmp_path / str(zeros))
        store.create(RunRecord.model_validate(run.record()))
        store.append([replace(trial, metrics=replace(trial.metrics, params=6_100, params_fraction=0.1, zeros=zeros))])
        console = printed()
        print_front(store.uri, console=console)
        shown[zeros] = text(console)
    assert "nonzero" in shown[3_050] and re.search(r"10\.0% +6\.1 k +5\.0% ", shown[3_050])
    assert "nonzero" not in shown[7], "biases that were never trained are no pruned weights"


@pytest.mark.parametrize("zeros", [0, 3_050])
def test_long_names_fit_a_narrow_terminal(run: Store, tmp_path: Path, zeros: int) -> None:
    trial = run.trials()[-1]
    assert trial.metrics is not None and trial.candidate is not None
    proposal = replace(trial.proposal, method="reconstruction")
    candidate = replace(trial.candidate, method="reconstruction")
    metrics = replace(trial.metrics, params=6_100, params_fraction=0.1, zeros=zeros)
    store = Store(tmp_path)
    store.create(RunRecord.model_validate(run.record()))
    store.append([replace(trial, proposal=proposal, candidate=candidate, metrics=metrics)])
    store.write_json("report/test.json", {"dense": 0.9778, "candidates": {candidate.id: 0.8778}, "images": 360})
    console = printed(80)
    print_front(store.uri, console=console)
    shown = text(console).partition("Run: ")[0]
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80
    assert "reconstruction" in shown and "-10.00 ± 1.73" in shown and "15.0%" in shown


def test_pick_prints_the_row_and_how_to_export_it(run: Store) -> None:
    console = printed()
    print_pick(run.uri, Budget(flops=0.21), console=console)
    assert "20.0%" in text(console) and f"raprune export {run.name}" in text(console)
    console = printed()
    print_pick(run.uri, Budget(flops=0.21), console=console, as_json=True)
    assert json.loads(text(console))["flops_fraction"] == pytest.approx(0.2)
    with pytest.raises(RapruneError, match="No candidate is within"):
        print_pick(run.uri, Budget(flops=0.01), console=printed())


def test_status_prints_one_block(run: Store) -> None:
    console = printed(100)
    print_status(run.uri, console=console)
    shown = text(console)
    assert "40 of 40 searched (44 complete)" in shown and "4 of 4" in shown
    assert "98.00% validation at 30.0% of the FLOPs (l1, 20 epochs), dense 98.10%" in re.sub(r"\s+", " ", shown)
    console = printed()
    print_status(run.uri, console=console, as_json=True)
    assert json.loads(text(console))["states"] == {"COMPLETE": 44}


def test_status_shows_the_current_stage_and_the_time_left(run: Store, tmp_path: Path) -> None:
    store, stages = Store(tmp_path), Stages()
    store.create(RunRecord.model_validate(run.run() | {"state": "searching"}))
    stages.expect({SCORES: 100.0, SEARCH: 200.0})
    stages.begin(SCORES, total=55, unit="groups")
    stages.update(done=12, detail="reconstruction, scores: group 12 of 55")
    store.write_json(FILE, stages.now().to_json())
    console = printed()
    print_status(store.uri, console=console)
    assert "score channels: 12 of 55 groups" in text(console)
    assert "whole run: about 5 min left" in text(console) and " ago)" in text(console)
    console = printed()
    print_status(store.uri, console=console, as_json=True)
    assert json.loads(text(console))["stages"]["stages"][0]["done"] == 12


def test_status_counts_networks_on_the_way_and_fine_tunings_to_come(run: Store, tmp_path: Path) -> None:
    store = Store(tmp_path)
    described = run.run()
    store.create(RunRecord.model_validate(described | {"finetunings": 5}))
    on_the_way = replace(run.trials()[0].proposal, step=0)
    store.append([*run.trials(), replace(run.trials()[0], trial_id=on_the_way.trial_id, proposal=on_the_way)])
    console = printed(100)
    print_status(store.uri, console=console)
    assert "40 of 40 searched (44 complete), 1 more on the way to them" in text(console)
    assert re.search(r"fine-tuned +4 of 5 *\n", text(console))


@pytest.mark.parametrize(
    ("asked", "place", "said"),
    [
        ({"min_accuracy": 0.5}, 0, "cheapest with the required validation accuracy, 50.00%"),
        ({"max_drop": 0.01, "min_accuracy": 0.5}, -4, "cheapest with the required validation accuracy"),
        ({"min_accuracy": 0.9999}, -1, "No network has the required validation accuracy, 99.99%"),
    ],
)
def test_star_follows_the_required_accuracy(tmp_path: Path, asked: dict[str, float], place: int, said: str) -> None:
    store = make_run(tmp_path)
    described = store.run()
    described["spec"] |= asked
    store.write_json("run.json", described)
    console = printed(140)
    print_front(store.uri, console=console)
    (starred,) = re.findall(r"★ +([0-9a-f]{12}(?:-ft)?) ", text(console))
    rows = front(store.trials(), Budget(flops=0.3))
    assert rows[place].candidate == starred and said in " ".join(text(console).split())


@pytest.mark.parametrize(
    ("methods", "place", "said"),
    [
        (["l2", "l1", "random"], -1, "★ most accurate on the validation split within the budget. Drop"),
        (["l2"], -3, "Ahead by less than the standard error, and only a baseline: l1, random. Drop"),
        (["fpgm"], -1, "l1 is a baseline: every method is behind it by more than its standard error. Drop"),
    ],
)
def test_star_of_a_baseline_is_explained(tmp_path: Path, methods: list[str], place: int, said: str) -> None:
    """Of `make_run`: l1, random, l2 and l1 are fine-tuned, at 30, 25, 20 and 15 % of the FLOPs."""
    store = make_run(tmp_path)
    described = store.run()
    described["spec"] |= {"methods": methods}
    if methods == ["fpgm"]:
        described["dense"] |= {"val_images": 10**9}
    store.write_json("run.json", described)
    console = printed(140)
    print_front(store.uri, console=console)
    (starred,) = re.findall(r"★ +([0-9a-f]{12}(?:-ft)?) ", text(console))
    assert front(store.trials(), Budget(flops=0.3))[place].candidate == starred
    assert said in " ".join(text(console).split())


def test_front_during_the_training_of_the_dense_network_is_printed(tmp_path: Path) -> None:
    Store(tmp_path).create(
        RunRecord.model_validate({"state": "searching", "dense": DENSE | {"val_accuracy": None}, "spec": {}})
    )
    console = printed()
    print_front(str(tmp_path), console=console)
    print_status(str(tmp_path), console=console)
    assert "No candidate" in text(console) and f"raprune resume {tmp_path}" in text(console)
