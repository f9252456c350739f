"""Tests of torchvision's detectors: traced and proved in their dense form, cut, and run as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from raprune.channels.cut import cut
from raprune.channels.detectors import dense_form
from raprune.channels.graph import ChannelGraph
from raprune.channels.inputs import call, tensors_in
from raprune.channels.proof import prove
from raprune.channels.trace import structure_hash, trace
from raprune.cost.flops import CostModel, measured, prunable_params_fraction
from raprune.records import Candidate
from tests.detectors import small_detector


def proved(model: nn.Module, size: int) -> ChannelGraph:
    example: list[Any] = [torch.rand(3, size, size)]
    return prove(model, trace(model, example), example).graph


def halved(graph: ChannelGraph) -> Candidate:
    return Candidate("half", {g.name: tuple(range(0, g.num_channels, 2)) for g in graph.groups})


@pytest.mark.parametrize("stages", [1, 2])
def test_detector_of_each_kind_is_proved_and_its_cut_network_finds_boxes(stages: int) -> None:
    torch.manual_seed(0)
    model = small_detector(stages=stages).eval()
    graph = proved(model, 32)
    assert {f.reason for f in graph.frozen} == {"the network's output"}
    assert prunable_params_fraction(graph) > 0.9
    smaller = cut(model, graph, halved(graph)).eval()
    cost = CostModel(graph)
    widths = cost.vector({name: len(kept) for name, kept in halved(graph).kept.items()})
    example: list[Any] = [torch.rand(3, 32, 32)]
    assert measured(smaller, example)[0] == cost.flops(widths)
    (found,) = smaller(example)
    assert found["boxes"].shape == (len(found["scores"]), 4)
    losses = smaller.train()(example, [{"boxes": torch.tensor([[2.0, 2, 20, 20]]), "labels": torch.tensor([1])}])
    assert all(bool(loss.isfinite()) for loss in losses.values())


def test_maps_of_two_levels_lose_the_same_channels_where_regions_are_gathered_from_both() -> None:
    model = small_detector(stages=2).eval()
    graph = proved(model, 32)
    (group,) = (
        g for g in graph.groups if any((m.parameter, m.axis) == ("backbone.inner.0.weight", 0) for m in g.members)
    )
    assert {"backbone.inner.1.weight", "rpn.head.conv.0.0.weight", "roi_heads.box_head.fc6.weight"} <= {
        m.parameter for m in group.members
    }


def test_dense_form_has_as_many_outputs_for_other_values_and_leaves_the_detector_as_it_is() -> None:
    model = small_detector(stages=2).eval()
    before = set(vars(model))
    shapes = [[out.shape for out in tensors_in(call(model, torch.rand(2, 3, 32, 32) * by))] for by in (0.0, 1.0)]
    assert shapes[0] == shapes[1] and all(shape[0] == 2 for shape in shapes[0])
    assert set(vars(model)) == before and type(model).__name__ == "FasterRCNN"


def test_dense_form_of_a_detector_with_a_forward_of_its_own_is_that_detector() -> None:
    model = small_detector()

    class Other(type(model)):  # type: ignore[misc]
        def forward(self, images: Any, targets: Any = None) -> Any:
            return super().forward(images, targets)

    model.__class__ = Other
    assert dense_form(model) is model


def test_structure_of_a_detector_is_the_same_before_and_after_its_first_pass() -> None:
    model = small_detector(stages=2).eval()
    before = structure_hash(model, (3, 32, 32))
    with torch.no_grad():
        model([torch.rand(3, 32, 32)])
    assert structure_hash(model, (3, 32, 32)) == before


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn"])
def test_detector_of_torchvision_is_proved_and_all_its_layers_but_outputs_can_be_cut(name: str) -> None:
    from torchvision.models import detection

    size = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 128}
    regions = {"rpn_post_nms_top_n_test": 20} if "rcnn" in name else {}
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=5, **size, **regions).eval()
    graph = proved(model, 128)
    assert {f.reason for f in graph.frozen} == {"the network's output"}
    assert prunable_params_fraction(graph) > 0.99
    cut(model, graph, halved(graph)).eval()([torch.rand(3, 128, 128)])
