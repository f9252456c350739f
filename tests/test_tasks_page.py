"""The example of `docs/tasks.md`: a task of the user's own, with a network of two inputs, checked and cut."""

from __future__ import annotations

import io
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

import raprune
from raprune.checks.job import check
from raprune.errors import ModelError
from raprune.pruning.export import prune_once
from raprune.spec.job import SearchSpec
from raprune.training.tasks import task_named
from tests.task_networks import Numbers

PAGE = Path(__file__).parent.parent / "docs" / "tasks.md"


@pytest.fixture
def shifts(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The code of the page as the module `shifts`."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "class " in block)
    module = types.ModuleType("shifts")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "shifts", module)
    task_named.cache_clear()
    yield module
    task_named.cache_clear()


def test_images_without_labels_are_judged_by_their_agreement_with_the_dense_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "unlabelled" in block
    )
    torch.manual_seed(0)
    network = Numbers(4).eval()
    save_file(network.state_dict(), tmp_path / "trained.safetensors")
    nets, page = types.ModuleType("mynets"), types.ModuleType("page")
    vars(nets)["trained"] = lambda: network
    monkeypatch.setitem(sys.modules, "mynets", nets)
    monkeypatch.setitem(sys.modules, "page", page)
    exec(code, page.__dict__)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (60, 3, 16, 16), dtype=np.uint8))
    figures = {"mean": [0.5] * 3, "std": [0.5] * 3}
    job = {
        "model": {"name": "tests.task_networks:Numbers", "weights": str(tmp_path / "trained.safetensors")},
        "data": {"name": "page:unlabelled", "arguments": {"folder": str(tmp_path)}, **figures},
        "budget": {"flops": 0.8},
    }
    made = prune_once(SearchSpec.model_validate(job), method="reconstruction", allocation="uniform")
    assert made.dense_accuracy == 1.0
    assert made.trial.metrics is not None and 0.25 < made.trial.metrics.accuracy <= 1.0


def spec(tmp_path: Path, **others: Any) -> SearchSpec:
    fields = {
        "task": "shifts:Shift",
        "model": {"name": "shifts:Pair"},
        "data": {"name": "shifts:data", "arguments": {"images": 120}},
        "dense": {"epochs": 2.0},
        "finalists": {"train": {"epochs": 1.0}},
        "budget": {"flops": 0.5},
        "output": str(tmp_path / "run"),
    }
    return SearchSpec.model_validate(fields | others)


def test_example_of_the_page_passes_the_check(shifts: types.ModuleType, tmp_path: Path) -> None:
    file = io.StringIO()
    check(spec(tmp_path), console=Console(file=file, width=200))
    assert "task: shifts:Shift, judged by shifts within half a pixel; its sums add up" in file.getvalue()


@pytest.mark.parametrize(
    ("name", "wrong", "problem"),
    [
        ("sums", lambda self, outputs, targets: (outputs.squeeze(1) - targets).abs().mean().view(1), "do not add up"),
        ("sums", lambda self, outputs, targets: torch.rand(1), "differ between two calls"),
        ("loss", lambda self, outputs, targets: (outputs.argmax(1) != targets).float().mean(), "cannot be trained"),
        ("value", lambda self, sums, images: 2.0, "1 is perfect"),
    ],
)
def test_task_that_breaks_the_contract_is_refused(
    shifts: types.ModuleType, tmp_path: Path, name: str, wrong: object, problem: str
) -> None:
    setattr(shifts.Shift, name, wrong)
    with pytest.raises(ModelError, match=problem):
        check(spec(tmp_path), console=Console(file=io.StringIO()))


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["taylor", "reconstruction", "l1"])
def test_example_of_the_page_is_trained_pruned_and_fine_tuned(
    shifts: types.ModuleType, tmp_path: Path, method: str
) -> None:
    job, folder = spec(tmp_path), str(tmp_path / "alone")
    made = prune_once(job, method=method, allocation="global_rank", finetune=True, folder=folder)
    assert made.trial.metrics is not None and made.trial.metrics.flops_fraction <= 0.5
    assert made.metric == "shifts within half a pixel"
    left, right = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    alone = raprune.load(shifts.Pair(), folder).eval()
    assert torch.allclose(alone(left, right), made.model(torch.cat([left, right], 1)), atol=1e-5)
