"""Tests of the operations of a network, and of their arguments at widths that were never run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel, Counts
from raprune.cost.operations import OperationCall, SizedCall, TensorTemplate, calls, follow
from raprune.models.cifar_resnet import CifarResNet
from raprune.records import Candidate
from tests.channels.networks import image
from tests.channels.proved import proved


def narrowed(model: nn.Module, graph: ChannelGraph, cost: CostModel, widths: Counts) -> nn.Module:
    kept = {name: tuple(range(int(n))) for name, n in zip(cost.group_names, widths, strict=True)}
    return cut(model, graph, Candidate("test", kept)).eval()


def subject(name: str) -> tuple[nn.Module, ChannelGraph, Tensor]:
    torch.manual_seed(0)
    if name == "cifar-resnet8":
        model, x = CifarResNet(8), image((2, 3, 32, 32))
    elif name == "shufflenet":
        model, x = models.shufflenet_v2_x0_5(num_classes=10).eval(), image((2, 3, 64, 64))
    else:
        return *proved(name), image()
    return model.eval(), trace(model.eval(), x[:1]), x


def followed(model: nn.Module, graph: ChannelGraph, x: Tensor) -> tuple[CostModel, list[SizedCall]]:
    cost, random = CostModel(graph), np.random.default_rng(0)
    vectors = [cost.num_channels, *(random.integers(2, cost.num_channels + 1) for _ in range(5))]
    found = follow(
        [calls(narrowed(model, graph, cost, widths), x) for widths in vectors], cost.sizes(np.stack(vectors))
    )
    assert found is not None
    return cost, found


def shapes(call: OperationCall) -> list[object]:
    return [
        leaf.shape if isinstance(leaf, TensorTemplate) else leaf
        for leaf in call.leaves
        if isinstance(leaf, TensorTemplate | int)
    ]


@pytest.mark.parametrize(
    "name",
    ["cifar-resnet8", "shufflenet", "Residual", "DenseBlock", "Grouped", "Depthwise", "SqueezeExcite", "GroupNorm",
     "WrittenAttention", "UNet", "FlattenLinear"],
)  # fmt: skip
def test_arguments_at_other_widths_are_those_of_the_network_that_was_cut(name: str) -> None:
    model, graph, x = subject(name)
    cost, operations = followed(model, graph, x)
    widths = np.random.default_rng(9).integers(2, cost.num_channels + 1)
    sizes, dense = cost.sizes(widths), cost.sizes(cost.num_channels)
    real = calls(narrowed(model, graph, cost, widths), x)
    assert len(real) == len(operations)
    for operation, call in zip(operations, real, strict=True):
        assert operation.known and operation.call.operation == call.operation
        alone = Alone(operation, [sizes[f] for f in operation.factors], [dense[f] for f in operation.factors])
        made = next(c for c in calls(alone, x) if c.operation == call.operation)
        assert shapes(made) == shapes(call)


class Alone(nn.Module):
    """A network of one operation."""

    def __init__(self, operation: SizedCall, sizes: list[float], dense: list[float]) -> None:
        super().__init__()
        self.run = operation.made(sizes, dense)

    def forward(self, x: Tensor) -> object:
        return self.run()


def test_operations_know_their_module_and_views_are_left_out() -> None:
    model, _, x = subject("cifar-resnet8")
    found = calls(model, x)
    assert [c.module for c in found if "convolution" in str(c.operation)][:2] == ["conv1", "layer1.0.conv1"]
    assert {"aten.relu.default", "aten.add.Tensor", "aten.addmm.default"} <= {str(c.operation) for c in found}
    assert not {"aten.t.default", "aten.view.default", "aten.detach.default"} & {str(c.operation) for c in found}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_layers_of_equal_shape_are_one_to_the_table() -> None:
    model = CifarResNet(14).eval()
    _, operations = followed(model, trace(model, image((1, 3, 32, 32))), image((1, 3, 32, 32)))
    convolutions = [op for op in operations if "convolution" in str(op.call.operation)]
    # One at the entrance, 16 -> 16, 16 -> 32 and 32 -> 64 with a stride, 32 -> 32, 64 -> 64.
    assert len(convolutions) == 13
    assert len({op.signature for op in convolutions}) == 6


def test_a_network_that_does_something_else_at_other_widths_is_not_followed() -> None:
    one, two = (calls(nn.Sequential(nn.Conv2d(3, 4, 1), *more), image((1, 3, 4, 4))) for more in ([], [nn.ReLU()]))
    assert follow([one, two], np.array([[4.0], [3.0]])) is None


def test_a_number_that_follows_no_axis_stays_as_it_is() -> None:
    squared = [calls(nn.Conv2d(3, n * n, 1), image((1, 3, 4, 4))) for n in (4, 3, 2)]
    found = follow(squared, np.array([[4.0], [3.0], [2.0]]))
    assert found is not None and not found[0].known and found[0].factors == ()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_tensor_is_made_in_the_layout_of_its_model(layout: torch.memory_format) -> None:
    like = TensorTemplate.of(torch.zeros(2, 6, 5, 4).to(memory_format=layout))
    made = like.make((2, 3, 5, 4))
    assert made.shape == (2, 3, 5, 4) and made.is_contiguous(memory_format=layout) and bool((made == 1).all())


def test_an_expanded_tensor_is_made_expanded_and_an_index_keeps_its_values() -> None:
    assert TensorTemplate.of(torch.zeros(4, 1).expand(4, 7)).make((2, 7)).stride(1) == 0
    index = torch.tensor([2, 0, 1])
    assert TensorTemplate.of(index).make((3,)).tolist() == [2, 0, 1]
