"""The contract of all tasks whose outputs are tensors, and each metric against numbers by hand.

Detection has a module of its own, `test_detection.py`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from raprune.errors import UsageError
from raprune.spec.job import FinetuneSpec
from raprune.training.tasks import TASKS, task_named
from raprune.training.tasks.columns import MultiLabel, Regression
from raprune.training.tasks.segmentation import Segmentation
from raprune.training.tasks.task import Task

NAMES = [name for name in TASKS if name != "detection"]


def batch(name: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs and targets of six images."""
    generator = torch.Generator().manual_seed(seed)
    if name == "classification":
        return torch.randn(6, 4, generator=generator), torch.randint(4, (6,), generator=generator)
    if name == "segmentation":
        masks = torch.randint(4, (6, 5, 5), generator=generator).to(torch.uint8)
        masks[:, 0, 0] = 255
        return torch.randn(6, 4, 5, 5, generator=generator), masks
    outputs = torch.randn(6, 4, generator=generator)
    if name == "multi_label":
        return outputs, (torch.rand(6, 4, generator=generator) < 0.4).float()
    return outputs, torch.randn(6, 4, generator=generator)


def value(task: Task, outputs: Tensor, targets: Tensor) -> float:
    return task.value(task.sums(outputs, targets).double(), len(targets))


@pytest.mark.parametrize("name", NAMES)
def test_sums_of_parts_add_up_and_give_the_same_value(name: str) -> None:
    task, (outputs, targets) = task_named(name), batch(name)
    total: Tensor | None = None
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        total = task.added(total, task.sums(outputs[part], targets[part]))
    assert total is not None
    assert task.value(total.double(), 6) == pytest.approx(value(task, outputs, targets), rel=1e-12)
    assert value(task, outputs, targets) <= 1.0


@pytest.mark.parametrize("name", NAMES)
def test_loss_differentiates_and_its_sum_is_that_of_the_images(name: str) -> None:
    task, (outputs, targets) = task_named(name), batch(name)
    outputs.requires_grad_(True)
    loss = task.loss(outputs, targets)
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert loss.ndim == 0 and bool(gradient.isfinite().all()) and bool(gradient.any())
    torch.testing.assert_close(task.summed_loss(outputs, targets), 6 * loss)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_a_perfect_network_have_the_value_1(name: str) -> None:
    task, (outputs, targets) = task_named(name), batch(name)
    if name == "classification":
        perfect = 9.0 * functional.one_hot(targets, 4)
    elif name == "segmentation":
        perfect = 9.0 * functional.one_hot(targets.long() % 4, 4).movedim(-1, 1)
    else:
        perfect = 9.0 * targets - 4 if name == "multi_label" else targets
    assert value(task, perfect, targets) == pytest.approx(1.0)
    assert value(task, outputs, targets) < 0.9


@pytest.mark.parametrize("name", NAMES)
def test_distillation_from_equal_outputs_has_no_loss_and_no_gradient(name: str) -> None:
    task, (outputs, _) = task_named(name), batch(name)
    student = outputs.clone().requires_grad_(True)
    loss = task.distil(student, outputs, FinetuneSpec().decided(epochs=1.0))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.0, abs=1e-5) and float(gradient.abs().max()) < 1e-5


def test_mean_iou_by_hand_leaves_out_pixels_without_a_class_and_absent_classes() -> None:
    """Of class 0 one pixel of two is found and none is wrong: 1/2; of class 1 one of one, with one too many: 1/2."""
    masks = torch.tensor([[[0, 0], [1, 255]]], dtype=torch.uint8)
    found = torch.tensor([[[0, 1], [1, 0]]])
    logits = functional.one_hot(found, 3).movedim(-1, 1).float()
    assert value(Segmentation(), logits, masks) == pytest.approx(0.5)


def test_segmentation_takes_the_dictionaries_of_torchvision_and_weighs_the_auxiliary_head() -> None:
    outputs, masks = batch("segmentation")
    task = Segmentation()
    alone = task.loss(outputs, masks)
    torch.testing.assert_close(task.loss({"out": outputs, "aux": outputs}, masks), 1.5 * alone)
    assert task.fits({"out": outputs}, torch.zeros(6, 3, 5, 5), 4)
    assert not task.fits({"out": outputs}, torch.zeros(6, 3, 10, 10), 4), "masks have the size of the images"


def test_average_precision_by_hand() -> None:
    """Ranked 3, 2, 1 with labels 1, 0, 1: precision 1 at the first and 2/3 at the second, each half of the recall."""
    outputs, targets = torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    assert value(MultiLabel(), outputs, targets) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_r2_of_the_mean_is_0_and_of_worse_negative() -> None:
    targets = torch.tensor([[1.0], [2.0], [6.0]])
    assert value(Regression(), torch.full((3, 1), 3.0), targets) == pytest.approx(0.0)
    assert value(Regression(), torch.zeros(3, 1), targets) == pytest.approx(1 - 41 / 14)


def test_task_of_an_unknown_name_is_refused_with_the_names() -> None:
    with pytest.raises(UsageError, match=r"task \(--task\) 'segmentasion': no such task") as error:
        task_named("segmentasion")
    assert "multi_label" in error.value.hint
    with pytest.raises(UsageError, match="is no class of tasks"):
        task_named("json:dumps")
