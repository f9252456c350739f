"""A whole search for detection: dense training, search, front, report, export and load, on a made set of shapes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

import raprune
from raprune.checks.job import check
from raprune.orchestration.search import search
from raprune.pruning.export import export
from raprune.report.terminal import print_front
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from tests.detectors import small_detector


@pytest.mark.nightly
@pytest.mark.usefixtures("executor")
def test_search_for_detection_ends_with_networks_that_load_and_a_report_by_its_metric(tmp_path: Path) -> None:
    fields = {
        "task": "detection",
        "model": {"name": "tests.detectors:small_detector", "arguments": {"stages": 2}},
        "data": {"name": "jobs.shapes:detection", "arguments": {"train": 48, "test": 12, "size": 32}},
        "methods": ["taylor", "reconstruction"],
        "dense": {"epochs": 3.0, "batch_size": 8, "optimizer": "adamw", "lr": 0.02},
        "search": {"trials": 3, "calibration_images": 24},
        "finalists": {"count": 1, "each_method": False, "train": {"epochs": 1.0, "batch_size": 8}},
        "budget": {"flops": 0.6},
        "resources": {"workers": 1},
        "output": str(tmp_path / "run"),
    }
    spec = SearchSpec.model_validate(fields)
    file = io.StringIO()
    check(spec, console=Console(file=file, width=200))
    assert "task: detection, judged by COCO mAP; its sums add up" in file.getvalue()
    run = search(spec, console=Console(quiet=True))
    store = Store(run)
    described, trials = store.record(), store.trials()
    assert described.metric == "COCO mAP" and described.data.num_classes == 4
    assert not [trial.error for trial in trials if trial.error], "no trial fails"
    console = Console(record=True, width=200, file=io.StringIO())
    print_front(run, console=console)
    assert "COCO mAP" in console.export_text()
    assert "Validation COCO mAP over" in (tmp_path / "run" / "report" / "front.html").read_text()
    best = next(trial for trial in trials if trial.proposal.stage.value == "finetune")
    assert export(run, best.network, str(tmp_path / "alone")).metric == "COCO mAP"
    small = raprune.load(small_detector(stages=2), str(tmp_path / "alone")).eval()
    (found,) = small([torch.rand(3, 32, 32)])
    assert set(found) == {"boxes", "labels", "scores"}
