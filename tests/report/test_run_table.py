"""The list of runs in the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from raprune.cli import app
from raprune.report.formats import ago
from raprune.report.run_table import budget_in_words
from raprune.spec.budget import Budget
from raprune.store.folder import RUN_FILE
from tests.factories import make_short_run

LONG = "mnist-resnet-mnist-sample-20261127-220312"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    for name, began in (("old", 1_500_000_000.0), (LONG, 1_600_000_000.0)):
        make_short_run(runs / name, started_at=began, state="finished")
    (runs / "broken").mkdir()
    (runs / "broken" / RUN_FILE).write_text("{")
    return runs


def listed(*words: str, width: int = 80) -> Result:
    return CliRunner().invoke(app, ["runs", *words], env={"COLUMNS": str(width)})


@pytest.mark.parametrize("width", [80, 140])
def test_list_fits_the_terminal_and_cuts_no_name(folder: Path, width: int) -> None:
    result = listed(str(folder), width=width)
    assert result.exit_code == 0
    table = result.stdout.partition("best: ")[0].splitlines()
    assert max(map(len, table)) <= width
    names = [line.split()[0] for line in table if line.split()[0] in (LONG, "old", "broken")]
    assert names == [LONG, "old", "broken"]
    (row,) = [line for line in table if "95.50 at 25.0%" in line and (LONG in line or width == 80)][:1]
    assert "finished" in row and "6/10" in row and "30% FLOPs" in row and "digits-net" in row
    assert (LONG in row) == (width == 140)


def test_broken_run_is_listed_with_its_reason(folder: Path) -> None:
    said = listed(str(folder)).stdout
    assert "unreadable" in said and f"broken: not readable: {folder}/broken/run.json: damaged" in said
    assert f"raprune serve {folder}" in said


def test_json_of_the_list_is_the_contract(folder: Path) -> None:
    runs = json.loads(listed(str(folder), "--json").stdout)
    assert [run["name"] for run in runs] == [LONG, "old", "broken"]
    assert runs[0]["run"] == f"{folder}/{LONG}" and runs[0]["state"] == "finished" and runs[0]["error"] is None
    assert runs[0]["best"]["val_accuracy"] == 0.955 and runs[0]["budget"]["flops"] == 0.3
    assert runs[2]["state"] == "unreadable" and "damaged" in runs[2]["error"] and runs[2]["best"] is None
    assert all(run.keys() == runs[0].keys() for run in runs)
    assert {"network", "dataset", "searched", "trials", "finetuned", "started_at", "finished_at"} <= runs[0].keys()


@pytest.mark.parametrize(("name", "said"), [("nowhere", "no such folder"), ("empty", "holds no run")])
def test_folder_without_runs_is_told_in_one_screen(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    result = listed(str(tmp_path / name))
    assert result.exit_code == 1 and said in result.output and "Traceback" not in result.output
    assert len(result.output.splitlines()) < 6


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(flops=0.3), "30% FLOPs"),
        (Budget(flops=0.125, params=0.2), "12.5% FLOPs, 20% params"),
        (Budget(latency_ms=3.0), "3 ms"),
        (Budget(), "none"),
    ],
)
def test_budget_is_told_in_few_words(budget: Budget, words: str) -> None:
    assert budget_in_words(budget) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "just now"),
        (59, "just now"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (47 * 3600, "47 h ago"),
        (49 * 3600, "2 days ago"),
        (59 * 86400, "59 days ago"),
        (62 * 86400, "2 months ago"),
        (800 * 86400, "2 years ago"),
    ],
)
def test_time_since_a_run_began_is_told_in_its_largest_unit(seconds: float, words: str) -> None:
    assert ago(seconds) == words


def test_list_names_the_metric_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_short_run(tmp_path / "runs" / "masks", metric="mean IoU")
    assert "best: validation mean IoU at the fraction" in listed(str(tmp_path / "runs")).stdout
    make_short_run(tmp_path / "runs" / "classes", metric="accuracy")
    said = " ".join(listed(str(tmp_path / "runs"), width=300).stdout.split())
    assert "mean IoU: masks" in said and "accuracy: classes" in said
    assert {run["metric"] for run in json.loads(listed(str(tmp_path / "runs"), "--json").stdout)} == {
        "accuracy",
        "mean IoU",
    }
