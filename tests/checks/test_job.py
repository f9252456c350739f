"""Tests of `raprune check`: a line for each step that passes, and the error of the step that fails."""

from __future__ import annotations

import importlib
import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from raprune.checks.job import check, check_method, inspect_job
from raprune.checks.memory import too_small
from raprune.cli import app
from raprune.data.residence import DeviceMemory
from raprune.errors import BudgetError, DataError, MethodError, ModelError, RapruneError, UsageError
from raprune.pruning.preparation import job_data
from raprune.spec.toml import load_spec
from raprune.store.record import RunRecord

MODULE = """
import numpy as np
import torch
from torch import nn

def net(num_classes):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)

def wrong_classes():
    return net(7)

class NoGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net(2)

    def forward(self, x):
        with torch.no_grad():
            return self.net(x)

def raises():
    raise RuntimeError("no such luck")

def pictures():
    images = np.arange(40 * 3 * 8 * 8, dtype=np.uint8).reshape(40, 3, 8, 8)
    return {"train": (images, np.arange(40) % 2)}

def brightness():
    # Pixels around 123.5 (class 0) and 131.5 (class 1): 0.5 lies between.
    labels = np.arange(400) % 2
    images = np.random.default_rng(0).integers(120, 128, (400, 3, 8, 8)) + 8 * labels[:, None, None, None]
    return {"train": (images.astype(np.uint8), labels)}

def save_bright(path):
    # Weights of `net` that give the class of `brightness` if pixels are normalised to [-1, 1].
    from safetensors.torch import save_file

    model = net(2)
    state = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    state["0.weight"][0], state["0.weight"][1] = -1 / 27, 1 / 27
    state["4.weight"][0, 0] = state["4.weight"][1, 1] = 1
    save_file(state, path)

def words():
    return "pictures"
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Name of a user's own module that can be imported and was not imported before."""
    name = f"mine_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def said(overrides: dict[str, object]) -> str:
    console = Console(file=io.StringIO(), width=120)
    check(load_spec(None, overrides), console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_check_of_a_valid_job_prints_every_step(mine: str) -> None:
    lines = said({"model.name": f"{mine}:net", "data.name": f"{mine}:pictures"}).splitlines()
    *lines, memory, search, training, images = lines
    assert all(line.startswith("ok  ") for line in lines)
    assert "32 training, 8 validation and no test images of 3x8x8, 2 classes" in lines[0]
    assert lines[-5] == "ok  channels: 1 group can be pruned, 1 layer must stay whole"
    assert lines[1].startswith("ok  normalisation: mean (0.") and lines[1].endswith("(measured on the training split)")
    assert lines[-2].startswith("ok  recipe: short, for a convolutional network and a fine-tuning below 100 epochs")
    assert lines[-1] == "ok  budget: 30 % of the FLOPs can be reached (the default)"
    assert memory.startswith("ok  GPU memory: needs a card of ")
    assert search.startswith("    search ") and training.startswith("    fine-tuning ")
    assert images.startswith("    training images 0 MB: on the card from ")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"budget.flops": 0.3}, "30 % of the FLOPs can be reached"),
        (
            {"budget.flops": 0.4, "budget.params": 0.555},
            "40 % of the FLOPs and 55.5 % of the parameters can be reached",
        ),
        ({"budget.latency": "0.5"}, "latency is measured when the search begins"),
        (
            {"min_accuracy": 0.9},
            "no budget is given; the search looks for the cheapest network that is accurate enough",
        ),
        ({"max_drop": 0.01}, "no budget is given; the search looks for the cheapest network that is accurate enough"),
    ],
)
def test_budget_that_was_not_given_is_not_called_ok(mine: str, asked: dict[str, object], told: str) -> None:
    lines = said({"model.name": f"{mine}:net", "data.name": f"{mine}:pictures"} | asked).splitlines()
    assert [line for line in lines if line.startswith("ok  budget")] == [f"ok  budget: {told}"]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"model.name": "MINE:wrong_classes"}, ModelError, r"2 classes need"),
        ({"model.name": "MINE:NoGradient"}, ModelError, "no parameter has a finite gradient"),
        ({"model.name": "MINE:raises"}, RapruneError, "no such luck"),
        ({"model.name": "MINE:nothing"}, UsageError, "has no function nothing"),
        ({"model.name": "nowhere_to_be_found:net"}, UsageError, "importing nowhere_to_be_found"),
        ({"data.name": "MINE:words"}, DataError, "MINE:words"),
        ({"data.name": "MINE:raises"}, DataError, "no such luck"),
        ({"methods": ["l3"]}, UsageError, "method 'l3': no such method"),
        ({"allocations": ["bogus"]}, UsageError, "allocation 'bogus': no such allocation"),
        ({"settings.l2.power": 2}, UsageError, "settings.l2.power: the method has no such hyper-parameter"),
        ({"warm_start": ["nowhere"]}, UsageError, "warm_start .*nowhere"),
        ({"budget.flops": 0.0001}, BudgetError, "."),
        ({"exclude": ["nothing.*"]}, UsageError, "matches no layer"),
    ],
)
def test_the_first_step_that_fails_is_named(
    mine: str, overrides: dict[str, object], error: type[RapruneError], message: str
) -> None:
    fields: dict[str, object] = {"model.name": f"{mine}:net", "data.name": f"{mine}:pictures"} | overrides
    fields = {key: value.replace("MINE", mine) if isinstance(value, str) else value for key, value in fields.items()}
    with pytest.raises(error, match=message.replace("MINE", mine)):
        said(fields)


@pytest.fixture
def bright(mine: str, tmp_path: Path) -> dict[str, object]:
    """A job with a network that classifies its images only if the images are normalised to [-1, 1]."""
    weights = str(tmp_path / "bright.safetensors")
    importlib.import_module(mine).save_bright(weights)
    return {"model.name": f"{mine}:net", "model.weights": weights, "data.name": f"{mine}:brightness"}


def test_check_of_weights_with_another_normalisation_says_which_is_better(bright: dict[str, object]) -> None:
    lines = said(bright | {"data.mean": [0.0, 0.0, 0.0], "data.std": [1.0, 1.0, 1.0]}).splitlines()
    assert "ok  normalisation: mean (0, 0, 0), std (1, 1, 1) (given)" in lines
    doubts = [line for line in lines if line.startswith("!")]
    assert len(doubts) == 2
    assert "50.0% on 80 validation images, where a constant guess scores 50.0%" in doubts[0]
    assert "normalised in another way" in doubts[0] and "labels" in doubts[0] and "another task" in doubts[0]
    assert "(pixels in [-1, 1]): 100.0% instead of 50.0%" in doubts[1]
    assert doubts[1].endswith('--set "data.mean=[0.5, 0.5, 0.5]" --set "data.std=[0.5, 0.5, 0.5]"')


def test_check_of_weights_with_their_own_normalisation_has_no_doubt(bright: dict[str, object]) -> None:
    text = said(bright | {"data.mean": [0.5, 0.5, 0.5], "data.std": [0.5, 0.5, 0.5]})
    assert "!" not in text
    assert "100.00% on the validation split (a constant guess has 50.00%), 100.00% on 320 training images" in text


def test_images_are_normalised_as_their_run_was_else_as_the_weights_need_it(mine: str) -> None:
    fields = {"model.name": "resnet18", "model.weights": "w.safetensors", "data.name": f"{mine}:pictures"}
    spec = load_spec(None, fields)
    assert job_data(spec).origin == "ImageNet's, the default for resnet18"
    recorded = {"mean": [0.1] * 3, "std": [0.2] * 3, "normalisation": "measured on the training split"}
    assert job_data(spec, RunRecord.model_validate({"data": recorded})).mean == (0.1, 0.1, 0.1)
    assert (
        job_data(spec, RunRecord.model_validate({"data": {"fingerprint": "72231f54"}})).origin
        == "measured on the training split"
    )
    assert job_data(load_spec(None, fields | {"data.mean": [0.5] * 3, "data.std": [0.5] * 3})).origin == "given"
    assert job_data(load_spec(None, fields | {"model.weights": None})).origin == "measured on the training split"


def test_a_job_is_inspected_on_images_of_its_data(mine: str) -> None:
    found = inspect_job(load_spec(None, {"model.name": f"{mine}:net", "data.name": f"{mine}:pictures"}))
    assert found.to_json()["input_shape"] == [3, 8, 8]
    assert [group.num_channels for group in found.graph.groups] == [8]


def test_a_method_is_held_to_the_contract() -> None:
    console = Console(file=io.StringIO(), width=120)
    check_method("l1", console=console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) > 8 and all(line.startswith("ok  ") for line in lines)


def test_a_broken_method_is_told_check_by_check() -> None:
    console = Console(file=io.StringIO(), width=120)
    with pytest.raises(MethodError, match="LooksAtData: 1 of 15 checks failed"):
        check_method("tests.checks.test_contract:LooksAtData", console=console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    failed = lines.index("no  sets data_free if, and only if, its scores need no batches")
    assert lines[failed + 1] == "    `data_free` is True, but batches were used"
    assert len([line for line in lines if line.startswith("ok  ")]) == 14, "the others are still run"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--method", "random"], 0, ""),
        (["--method", "tests.checks.test_contract:NoTitle"], 1, "1 of 15 checks failed"),
        (["--method", "l3"], 2, "method 'l3': no such method"),
        (["--method", "tests.checks.test_contract:BROKEN"], 2, "has no function BROKEN"),
        (["--method", "l2", "missing.toml"], 2, "missing.toml: no such file"),
    ],
)
def test_check_of_a_method_on_the_command_line(arguments: list[str], code: int, told: str) -> None:
    done = CliRunner(env={"COLUMNS": "140", "TERM": "dumb"}).invoke(app, ["check", *arguments])
    assert done.exit_code == code
    assert told in done.stderr and len((done.stdout + done.stderr).splitlines()) <= 20


def test_check_of_a_job_without_gpus_estimates_no_memory_of_them(mine: str) -> None:
    text = said({"model.name": f"{mine}:net", "data.name": f"{mine}:pictures", "resources.gpus_per_trial": 0})
    assert "GPU memory" not in text


def test_check_without_the_files_of_known_data_estimates_memory_and_names_the_folder(tmp_path: Path) -> None:
    changes = {"model.name": "cifar-resnet20", "data.name": "cifar10", "data.train": str(tmp_path), "methods": ["l2"]}
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(UsageError, match="holds no cifar10"):
        check(load_spec(None, changes | {"output": str(tmp_path / "run")}), console=console)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "The estimate assumes 40,000 training, 10,000 validation and no test images of 3x32x32" in said
    assert "GPU memory: needs a card of" in said
    assert "training images 123 MB: on the card from" in said


def test_too_small_card_is_said_with_what_to_change() -> None:
    assert too_small(10, None) is None
    assert too_small(10, DeviceMemory(free=0, total=10)) is None
    assert "24.0 GB of memory, 3.0 GB less than the job needs" in str(
        too_small(27 * 10**9, DeviceMemory(free=0, total=24 * 10**9))
    )
