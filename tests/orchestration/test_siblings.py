"""`raprune report --compare` on a finished run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raprune.cli import app
from raprune.pruning.preparation import DENSE
from raprune.report import figures
from raprune.results.run_results import read_run_results
from raprune.store.folder import Store


@pytest.fixture
def run(finished: Store, tmp_path: Path) -> Store:
    shutil.copytree(finished.uri, tmp_path / "run")
    return Store(tmp_path / "run")


def test_network_that_is_compared_has_the_figures_that_the_run_measured_for_it(
    run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dense network itself stands for a sibling: the run knows what it costs and how good it is."""
    # `tests/report` draws them.
    monkeypatch.setattr(figures, "files", lambda results: iter(()))
    arguments = ["report", run.uri, "--compare", f"digits-net={run.uri}/{DENSE}", "--output", str(tmp_path / "report")]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert done.exit_code == 0, done.output
    results = read_run_results(run)
    [sibling], dense = results.siblings, results.dense
    assert dense is not None and (sibling.flops, sibling.params) == (dense.flops, dense.params)
    assert sibling.val_accuracy == dense.val_accuracy and sibling.test_accuracy == results.test.dense
    assert "digits-net (" in done.output and (tmp_path / "report" / "front.html").exists()
    assert "Smaller dense networks beside the front" in (tmp_path / "report" / "front.html").read_text()
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["front", run.uri])
    assert "digits-net (" in shown.output


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("digits-net", "--compare 'digits-net': must be MODEL=FILE."),
        ("digits-net=nowhere.safetensors", "--compare digits-net=nowhere.safetensors: model.weights"),
        ("resnet18=nowhere.safetensors", "--compare resnet18=nowhere.safetensors: "),
    ],
)
def test_wrong_network_to_compare_with_is_refused_and_nothing_is_written(
    value: str, told: str, run: Store, tmp_path: Path
) -> None:
    arguments = ["report", run.uri, "--compare", value, "--output", str(tmp_path / "report")]
    done = CliRunner(env={"COLUMNS": "100"}).invoke(app, arguments)
    assert done.exit_code in (1, 2) and told in " ".join(done.stderr.split())
    assert not (tmp_path / "report").exists() and read_run_results(run).siblings == ()
