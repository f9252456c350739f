"""Comparison with torch-pruning, on networks that it supports: the same groups, and the same networks after a cut."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from raprune.channels.cut import cut
from raprune.channels.trace import trace
from raprune.records import Candidate
from tests.channels.networks import image
from tests.channels.proved import counted_flops, outputs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it compiles regular expressions with invalid escapes
    import torch_pruning as tp

LAYERS = (nn.Conv2d, nn.Linear)

NETWORKS = {
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "vgg11_bn": 32,
    "mobilenet_v2": 64,
    "mnasnet0_5": 64,
    "densenet121": 64,
    "googlenet": 64,
    "squeezenet1_1": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
}


def nightly_if_slow(names: Iterable[str]) -> list[Any]:
    """The names, those of networks that take seconds for the nightly tests."""
    slow = ("densenet121", "vgg11_bn")
    return [pytest.param(name, marks=pytest.mark.nightly) if name in slow else name for name in names]


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    extra: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return models.get_model(name, weights=None, num_classes=10, **extra).eval()


def other_groups(model: nn.Module, x: torch.Tensor) -> Any:
    """Return torch-pruning's groups of all layers except the last."""
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    last = [module for module in model.modules() if isinstance(module, LAYERS)][-1]
    return graph, list(graph.get_all_groups(ignored_layers=[last], root_module_types=LAYERS))


@pytest.mark.parametrize("name", nightly_if_slow(NETWORKS))
def test_torch_pruning_couples_the_same_layers(name: str) -> None:
    """Each group of torch-pruning is one of our groups, by the layers that write its channels."""
    model, x = built(name), image((1, 3, NETWORKS[name], NETWORKS[name]))
    ours = {
        frozenset(m.parameter.removesuffix(".weight") for m in g.members if m.writes and m.parameter.endswith("weight"))
        for g in trace(model, x).groups
    }
    names = {module: name for name, module in model.named_modules()}
    _, groups = other_groups(model, x)
    theirs = set()
    for group in groups:
        writes = (tp.prune_conv_out_channels, tp.prune_linear_out_channels, tp.prune_depthwise_conv_out_channels)
        theirs.add(frozenset(names[dep.target.module] for dep, _ in group if dep.handler in writes))
    assert ours == theirs


@pytest.mark.parametrize(
    "name", nightly_if_slow(["resnet18", "vgg11_bn", "mobilenet_v2", "densenet121", "squeezenet1_1"])
)
def test_the_same_network_after_the_same_cut(name: str) -> None:
    """Both tools remove every other channel of each group: the outputs, FLOPs and parameters are equal."""
    model, x = built(name), image((1, 3, NETWORKS[name], NETWORKS[name]))
    graph = trace(model, x)
    kept = {g.name: tuple(range(0, g.num_channels, 2)) for g in graph.groups}
    ours = cut(model, graph, Candidate("test", kept))
    theirs = copy.deepcopy(model)
    other, groups = other_groups(theirs, x)
    for group in groups:
        root, handler = group[0].dep.target.module, group[0].dep.handler
        width = root.out_channels if isinstance(root, nn.Conv2d) else root.out_features
        other.get_pruning_group(root, handler, idxs=list(range(1, width, 2))).prune()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert counted_flops(ours, x) == counted_flops(theirs, x)
    torch.testing.assert_close(outputs(ours, x), outputs(theirs, x), rtol=1e-5, atol=1e-6)
