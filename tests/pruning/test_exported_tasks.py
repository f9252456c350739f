"""Programs of networks of other tasks than classification: proved by all outputs and by the task's metric."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raprune.errors import ModelError
from raprune.pruning.export import prune_once
from raprune.training.tasks.columns import Regression
from tests.task_networks import job
from tests.tools import require_module

pytestmark = pytest.mark.nightly

OUTPUTS = {
    "multi_label": {"logits": ["batch", 4]},
    "regression": {"outputs": ["batch", 4]},
    "segmentation": {"out": ["batch", 4, 16, 16], "aux": ["batch", 4, 16, 16]},
}
"""Task -> the outputs of its ONNX file."""


class TwoInputs(Regression):
    """A regression from the first channel of an image and the two others."""

    def inputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, :1], images[:, 1:]


class Pair(nn.Module):
    """A network with two inputs."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(1, 8, 3), nn.Conv2d(2, 8, 3)
        self.head = nn.Linear(16, num_classes)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        x: Tensor = self.head(torch.cat([self.one(one), self.other(other)], 1).relu().mean((2, 3)))
        return x


@pytest.mark.parametrize("task", OUTPUTS)
def test_programs_of_a_task_give_all_outputs_and_the_metric_of_pytorch(task: str, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require_module(name)
    folder = tmp_path / "out"
    made = prune_once(
        job(task),
        method="reconstruction",
        allocation="uniform",
        folder=str(folder),
        formats=["torch", "onnx", "huggingface"],
    )
    proof = json.loads((folder / "export.json").read_text())
    assert [file["format"] for file in proof["files"]] == ["torch", "onnx"]
    assert proof["metric"] == made.metric
    for file in proof["files"]:
        assert file["relative_difference"] < 1e-4 and file["equal_top1"] is None
        assert file["accuracy"] == pytest.approx(proof["accuracy"], abs=1e-4)
    session = require_module("onnxruntime").InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert {gone.name: gone.shape for gone in session.get_outputs()} == OUTPUTS[task]
    assert session.get_modelmeta().custom_metadata_map["task"] == task
    images = torch.rand(3, 3, 16, 16)
    program = torch.export.load(folder / "model.pt2").module()
    found = dict(zip(OUTPUTS[task], session.run(None, {"images": images.numpy()}), strict=True))
    with torch.no_grad():
        wanted, came = made.model(images), program(images)
    for name, output in found.items():
        of_pytorch, of_program = (one[name] if isinstance(one, dict) else one for one in (wanted, came))
        assert torch.allclose(torch.from_numpy(output), of_pytorch, atol=1e-4)
        assert torch.allclose(of_program, of_pytorch, atol=1e-4)
    card, config = (folder / "README.md").read_text(), json.loads((folder / "config.json").read_text())
    assert f"validation {made.metric}" in card and "accuracy" not in card
    assert len(config["id2label"]) == (0 if task == "regression" else 4)


def test_program_of_a_network_with_two_inputs_takes_the_images_of_the_data_set(tmp_path: Path) -> None:
    spec = job("regression").model_copy(update={"task": f"{__name__}:TwoInputs"})
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"name": f"{__name__}:Pair"})})
    made = prune_once(spec, method="l2", allocation="uniform", folder=str(tmp_path / "out"), formats=["torch"])
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    images = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(program(images), made.model(images), atol=1e-4)


def test_program_of_a_detector_is_refused_on_one_screen_and_leaves_nothing(tmp_path: Path) -> None:
    require_module("pycocotools")
    with pytest.raises(ModelError, match=r"torchvision::nms") as caught:
        prune_once(job("detection"), method="l2", allocation="uniform", folder=str(tmp_path / "out"), formats=["torch"])
    assert "recipe" in caught.value.hint and not (tmp_path / "out" / "model.pt2").exists()
