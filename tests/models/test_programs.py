"""Networks as programs: what the exporters refuse, and how a file is compared with PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raprune.data.arrays import Split
from raprune.data.batches import DeviceSplit
from raprune.errors import ModelError
from raprune.models.programs import capture, refused
from raprune.pruning.proving import Agreement, check_equal, compare
from raprune.training.tasks.segmentation import Segmentation


class Branching(nn.Module):
    """A network whose way depends on the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits if logits.sum() > 0 else -logits


def test_a_network_that_branches_on_values_is_refused_on_one_screen_with_its_line() -> None:
    with pytest.raises(
        ModelError, match=r"cannot be exported to torch.*test_programs\.py, line \d+, in forward"
    ) as caught:
        capture(Branching().eval(), (1, 2, 2))
    assert max(map(len, str(caught.value).splitlines())) < 1000 and len(str(caught.value).splitlines()) < 8


def test_an_error_of_the_exporter_is_told_by_the_operation_of_its_deepest_cause() -> None:
    try:
        try:
            raise ValueError("No ONNX function found for <OpOverload(op='aten.grid_sampler_3d', overload='default')>")
        except ValueError as cause:
            raise RuntimeError("Failed to convert the exported program.\n" * 60) from cause
    except RuntimeError as error:
        told = refused("onnx", error)
    assert "the exporter stops at aten.grid_sampler_3d" in told.message
    assert "recipe takes every network" in told.hint


IMAGES = np.random.default_rng(0).integers(0, 256, (70, 1, 2, 2), dtype=np.uint8)
LABELS = np.arange(70) % 3


def compared(change: Callable[[Tensor], Tensor]) -> tuple[float, int | None]:
    """Difference, relative to the largest output, and equal predictions of a network and of the same with a change."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    images = DeviceSplit.place(Split(IMAGES, LABELS), (0.5,), (0.5,), "cpu")
    found = compare(lambda x: [change(model(x))], model, images)
    check_equal(found, "onnx")
    return found.relative_difference, found.equal_top1


def test_equal_outputs_are_counted_once_for_each_image() -> None:
    assert compared(lambda logits: logits) == (0.0, 70)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda logits: logits * 1.01, id="scaled"),
        pytest.param(lambda logits: logits / 0 * 0, id="nan"),
        pytest.param(lambda logits: torch.cat([logits[:-1], -logits[-1:]]), id="last-of-batch"),
    ],
)
def test_other_outputs_are_refused(change: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ModelError, match="does not compute what PyTorch computes"):
        compared(change)


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ModelError, match="for a batch of 32 images"):
        compared(lambda logits: logits[:1])


class TwoOutputs(nn.Module):
    """Logits of masks, and of an auxiliary head that the metric does not look at."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": torch.cat([images, -images, images * 0], 1), "aux": images}


def test_all_output_tensors_are_compared() -> None:
    masks = np.random.default_rng(1).integers(0, 3, (70, 2, 2))
    images = DeviceSplit.place(Split(IMAGES, masks), (0.5,), (0.5,), "cpu")
    model = TwoOutputs()
    found = compare(lambda x: list(model(x).values()), model, images, Segmentation())
    assert (found.max_difference, found.equal_top1) == (0.0, None) and found.accuracy == found.reference_accuracy
    check_equal(found, "onnx")
    with pytest.raises(ModelError, match="does not compute what PyTorch computes"):
        check_equal(compare(lambda x: [model(x)["out"], x * 1.01], model, images, Segmentation()), "onnx")


def test_another_metric_is_refused() -> None:
    found = Agreement(
        max_difference=0.0, relative_difference=0.0, equal_top1=None, accuracy=0.5, reference_accuracy=0.6
    )
    with pytest.raises(ModelError, match=r"reaches 50.00% by the task's metric, in PyTorch 60.00%"):
        check_equal(found, "torch")
