"""A whole search for segmentation: dense training, search, front, report, export and load, on a made set of shapes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import raprune
from raprune.orchestration.search import search
from raprune.pruning.export import export
from raprune.report.terminal import print_front
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store


class Small(nn.Module):
    """A network for masks of the size of its images, which answers as torchvision's do."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 24, 3, padding=2, dilation=2)
        self.head = nn.Conv2d(24, num_classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.wide(self.norm(self.down(x)).relu()).relu()
        return {"out": nn.functional.interpolate(self.head(y), size=x.shape[2:], mode="bilinear")}


@pytest.mark.nightly
@pytest.mark.usefixtures("executor")
def test_search_for_segmentation_ends_with_networks_that_load_and_a_report_by_its_metric(tmp_path: Path) -> None:
    fields = {
        "task": "segmentation",
        "model": {"name": "tests.orchestration.test_segmentation:Small"},
        "data": {"name": "jobs.shapes:segmentation", "arguments": {"train": 160, "test": 40, "size": 24}},
        "methods": ["taylor", "reconstruction"],
        "dense": {"epochs": 6.0, "batch_size": 16, "lr": 0.05},
        "search": {"trials": 4},
        "finalists": {"count": 1, "each_method": False, "train": {"epochs": 1.0, "batch_size": 16}},
        "budget": {"flops": 0.6},
        "resources": {"workers": 1},
        "output": str(tmp_path / "run"),
    }
    run = search(SearchSpec.model_validate(fields), console=Console(quiet=True))
    store = Store(run)
    described, trials = store.record(), store.trials()
    assert described.metric == "mean IoU" and described.data.num_classes == 4
    assert described.dense is not None and described.dense.val_accuracy is not None
    assert 0.15 < described.dense.val_accuracy < 1.0, "background alone has less than a quarter"
    assert not [trial.error for trial in trials if trial.error], "no trial fails"
    console = Console(record=True, width=200, file=io.StringIO())
    print_front(run, console=console)
    printed = console.export_text()
    assert "mean IoU" in printed and "accura" not in printed
    page = (tmp_path / "run" / "report" / "front.html").read_text()
    assert "Validation mean IoU over" in page and "Validation accuracy" not in page
    best = next(trial for trial in trials if trial.proposal.stage.value == "finetune")
    made = export(run, best.network, str(tmp_path / "alone"))
    assert made.metric == "mean IoU"
    small = raprune.load(Small(), str(tmp_path / "alone")).eval()
    assert small(torch.zeros(1, 3, 24, 24))["out"].shape == (1, 4, 24, 24)
    recipe = json.loads((tmp_path / "alone" / "recipe.json").read_text())
    assert recipe["input_shape"] == [3, 24, 24]
