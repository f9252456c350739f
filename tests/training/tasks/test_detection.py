"""The task detection: its contract, its metric by hand, its losses in evaluation mode, and training."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import raprune.training.tasks
from raprune.channels.inputs import call
from raprune.channels.trace import trace
from raprune.data.arrays import Split
from raprune.data.batches import DeviceSplit
from raprune.data.targets import FORMS
from raprune.errors import UsageError
from raprune.methods.taylor import Taylor
from raprune.pruning.preparation import prepare
from raprune.spec.job import DenseTrainSpec, SearchSpec
from raprune.training.evaluate import evaluate
from raprune.training.loop import train
from raprune.training.tasks import task_named
from raprune.training.tasks.detection import Detection
from raprune.training.tasks.inputs import parting_inputs
from raprune.training.tasks.task import Calibration
from tests.detectors import small_detector

TASK = Detection()
shapes: Any = import_module("jobs.shapes")


def detector(stages: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return parting_inputs(small_detector(stages=stages), TASK).eval()


def split(images: int = 8) -> DeviceSplit:
    pixels, targets = shapes.detection(train=images, test=1, size=32)["train"]
    boxes = FORMS["boxes"].array(targets, images, "train")
    return DeviceSplit.place(Split(pixels, boxes), (0.0,) * 3, (1.0,) * 3, "cpu")


def found(targets: Tensor, shift: float = 0.0) -> dict[str, Any]:
    """Outputs that find every box, the later ones of an image with smaller scores and moved by `shift` each."""
    boxes = []
    for rows in targets:
        rows = rows[rows[:, 4] > 0]
        moved = rows[:, :4] + shift * torch.arange(len(rows))[:, None]
        boxes.append({"boxes": moved, "labels": rows[:, 4].long(), "scores": 1 / (1.0 + torch.arange(len(rows)))})
    return {"boxes": boxes}


def value(outputs: dict[str, Any], targets: Tensor) -> float:
    return TASK.value(TASK.sums(outputs, targets), len(targets))


def test_records_of_parts_are_joined_and_give_the_value_of_the_whole() -> None:
    targets = split().labels
    outputs = found(targets, 2.0)
    total: Tensor | None = None
    for part in (slice(0, 1), slice(1, 5), slice(5, 8)):
        total = TASK.added(total, TASK.sums({"boxes": outputs["boxes"][part]}, targets[part]))
    assert total is not None and torch.equal(total, TASK.sums(outputs, targets))
    assert 0.0 < TASK.value(total, 8) == value(outputs, targets) < 1.0
    assert value(found(targets), targets) == pytest.approx(1.0)


def test_value_by_hand_of_a_box_found_at_half_of_the_thresholds_and_of_no_box_at_all() -> None:
    """A box of 10 x 10 found as 10 x 7.6 has an intersection over union of 0.76: right at 0.5 to 0.75, six of ten."""
    target = torch.tensor([[[0.0, 0, 10, 10, 1, 0], [0, 0, 0, 0, 0, 0]]])
    box = {"boxes": torch.tensor([[0.0, 0, 10, 7.6]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    assert value({"boxes": [box]}, target) == pytest.approx(0.6)
    wrong = box | {"labels": torch.tensor([2])}
    assert value({"boxes": [wrong]}, target) == 0.0 == value({"boxes": [box]}, torch.zeros_like(target))


@pytest.mark.parametrize("stages", [1, 2])
def test_evaluation_gives_boxes_and_losses_from_one_pass_of_the_backbone_and_changes_nothing(stages: int) -> None:
    model, data = detector(stages), split()
    model.get_submodule("backbone").register_forward_pre_hook(lambda *_: passes.append(1))
    passes: list[int] = []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (evaluate(model, data, task=TASK, batch_size=8) for _ in range(2))
    assert first == second and first.loss > 0
    assert not any(module.training for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    x, y = next(data.batches(8))
    alone = TASK.loss(TASK.run_for_loss(model, x, y), y)
    assert alone.item() == pytest.approx(first.loss, rel=1e-4) and alone.requires_grad
    assert len(passes) == 5, "twice in each evaluation, of which the second call keeps the outputs, and once here"


def test_boxes_and_losses_are_those_of_float32_in_a_precision_of_16_bits() -> None:
    model, data = detector(), split(2)
    assert evaluate(model, data, task=TASK) == evaluate(model, data, task=TASK, precision="bfloat16")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"teacher": {"name": "some.module:function"}}, "--teacher"),
        ({"finalists": {"train": {"features": 1.0}}}, "features 1.0"),
    ],
)
def test_teacher_of_a_detector_is_refused(changes: dict[str, Any], field: str) -> None:
    spec = SearchSpec.model_validate({"task": "detection", "model": {"name": "ssd300_vgg16"}, **changes})
    with pytest.raises(UsageError, match=rf"{field}.*its finalists learn from the targets alone"):
        prepare(spec)


def test_loss_leaves_out_crowds_and_takes_images_without_boxes() -> None:
    model = detector()
    x, y = next(split(2).batches(2))
    y[0, :, 4:] = 0.0
    none = TASK.loss(TASK.run_for_loss(model, x, y), y)
    y[0, 0] = torch.tensor([1.0, 1, 9, 9, 1, 1])
    assert torch.isfinite(none) and torch.equal(none, TASK.loss(TASK.run_for_loss(model, x, y), y))


def test_training_lowers_the_loss_and_knows_no_metric_of_training_images() -> None:
    model = detector()
    spec = DenseTrainSpec(epochs=3.0, batch_size=4, optimizer="adamw", lr=0.01, precision="float32").decided()
    epochs = train(model, split(16), spec, augment="none", seed=0, task=TASK)
    assert [epoch.accuracy for epoch in epochs] == [None] * 3 and epochs[-1].loss < epochs[0].loss
    assert "loss" in epochs[0].described("COCO mAP")


def test_taylor_adds_up_all_calls_of_a_head_that_all_maps_share() -> None:
    model, data = detector(), split(4)
    graph = trace(model, torch.rand(1, 3, 32, 32))
    head = "head.classification_head.conv.0.0"
    (group,) = (g for g in graph.groups if any((m.parameter, m.axis) == (f"{head}.weight", 0) for m in g.members))
    batches = Calibration(TASK, lambda: data.batches(4))
    scores = Taylor().score(model, graph.only([group.name]), batches, seed=0)[group.name]
    seen: list[Tensor] = []
    model.get_submodule("head.classification_head.conv.1.0").register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    x, y = next(data.batches(4))
    gradients = torch.autograd.grad(TASK.summed_loss(TASK.run_for_loss(model, x, y), y), seen)
    parts = [(a * g).flatten(2).mean(2).abs().double().sum(0) for a, g in zip(seen, gradients, strict=True)]
    wanted = parts[0] + parts[1]
    torch.testing.assert_close(torch.from_numpy(scores), (wanted / wanted.norm()).detach(), rtol=1e-4, atol=1e-6)


def test_dense_form_takes_a_batch_through_the_hook_of_the_task() -> None:
    outputs = call(detector(), torch.rand(2, 3, 32, 32))
    assert {name: len(out) for name, out in outputs.items()} == {"cls_logits": 2, "bbox_regression": 2}


def test_missing_library_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raprune.training.tasks, "find_spec", lambda name: None if name == "pycocotools" else name)
    task_named.cache_clear()
    with pytest.raises(UsageError, match=r"'detection': not installed: pycocotools") as error:
        task_named("detection")
    assert error.value.hint == "pip install 'raprune[detection]'"
    task_named.cache_clear()


def test_shapes_of_a_seed_are_the_same_and_their_boxes_hold_their_pixels() -> None:
    first, second = (shapes.detection(train=3, test=1, size=48, seed=1)["train"] for _ in range(2))
    assert (first[0] == second[0]).all()
    for one, other in zip(first[1], second[1], strict=True):
        boxes = one["boxes"]
        assert (boxes == other["boxes"]).all() and (boxes[:, 2:] > boxes[:, :2]).all() and boxes.max() <= 48
