"""Time to a cut network, against torch-pruning 1.6.1.

    uv run --group dev python jobs/benchmarks/versus_torch_pruning.py

Both keep half of the channels of every group by filter magnitude, head untouched; one process, one thread, by turns.

* torch-pruning: `BasePruner(...)` (its dependency graph) and one `step()`, on a fresh deep copy that is not timed. It
  cuts in place, so each further candidate pays for both again.
* raprune: the first candidate is `trace` + `cut`; each further one is `cut`, as the graph serves them all. Lines that
  begin with "with L2 scores" time scoring and selection too, which torch-pruning's step holds; scores also serve all.

Networks: torchvision's ResNet-50 and DenseNet-121 at 64 pixels; CIFAR ResNet-56 at 32. torch-pruning cannot take the
zero-padding shortcuts of the latter, so it gets the same network with 1x1 convolutions in the two shortcuts.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch_pruning
from bar import medians, show, times_by_turns
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel
from raprune.methods import method_named
from raprune.models.cifar_resnet import BasicBlock, CifarResNet
from raprune.pruning.allocate import select
from raprune.records import Candidate


@dataclass(frozen=True)
class Contest:
    """One network, and how many times faster each further candidate has to be."""

    name: str
    bar: float
    pixels: int
    build: Callable[[], nn.Module]
    build_theirs: Callable[[], nn.Module]


class ProjectedBlock(BasicBlock):
    """A block of the CIFAR ResNet whose shortcut is a 1x1 convolution where the picture is halved ("option B")."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)
        halved = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        self.shortcut = halved if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


def projected_resnet56() -> nn.Module:
    """ResNet-56 for CIFAR with 1x1 convolutions in the shortcuts between its stages."""
    model = CifarResNet(56)
    model.layer2[0] = ProjectedBlock(16, 32, 2)
    model.layer3[0] = ProjectedBlock(32, 64, 2)
    return model


CONTESTS = {
    "resnet50": Contest("ResNet-50", 5.0, 64, models.resnet50, models.resnet50),
    "densenet121": Contest("DenseNet-121", 15.0, 64, models.densenet121, models.densenet121),
    "resnet56": Contest("ResNet-56", 4.0, 32, lambda: CifarResNet(56), projected_resnet56),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(CONTESTS), help=f"of {', '.join(CONTESTS)}; default all")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each side (default 9)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # torch-pruning warns about its own deprecations.
    warnings.filterwarnings("ignore", module="torch_pruning")
    for name in arguments.networks:
        compete(CONTESTS[name], arguments.repeats)


def compete(contest: Contest, repeats: int) -> None:
    """Time both sides on one network, and print its lines."""
    torch.manual_seed(0)
    model, theirs = contest.build().eval(), contest.build_theirs().eval()
    image = torch.randn(1, 3, contest.pixels, contest.pixels)
    graph = trace(model, image)
    candidate = half_of(model, graph)
    cost = CostModel(graph)
    ours_left = cut(model, graph, candidate)
    ours_left(image)
    copies = iter([copy.deepcopy(theirs) for _ in range(repeats + 2)])
    left = prune_theirs(next(copies), image)
    print(
        f"{contest.name} at {contest.pixels} px, FLOPs left: raprune {flops(ours_left, image) / cost.dense_flops:.1%}, "
        f"torch-pruning {flops(left, image) / flops(theirs, image):.1%}"
    )

    def scored() -> object:
        traced = trace(model, image)
        return cut(model, traced, half_of(model, traced))

    scores = method_named("l2")().score(model, graph, tuple, seed=0)
    half = np.maximum(cost.num_channels // 2, 1)
    seconds = times_by_turns(
        [
            lambda: prune_theirs(next(copies), image),
            lambda: cut(model, trace(model, image), candidate),
            lambda: cut(model, graph, candidate),
            scored,
            lambda: cut(model, graph, select(scores, cost, half, method="l2", settings={})),
        ],
        repeats=repeats,
    )
    peer, first, further, first_scored, further_selected = medians(seconds)
    print(f"{contest.name}: torch-pruning {peer:.3f} s, trace + cut {first:.3f} s, cut {further:.4f} s")
    show(f"{contest.name}, first candidate", figure=peer / first, bar=1.0, unit="x faster", more_is_better=True)
    show(f"{contest.name}, each further", figure=peer / further, bar=contest.bar, unit="x faster", more_is_better=True)
    print(
        f"{contest.name}, with L2 scores: first {first_scored:.3f} s ({peer / first_scored:.3g}x faster), "
        f"each further with selection {further_selected:.4f} s ({peer / further_selected:.3g}x faster)",
        flush=True,
    )


def half_of(model: nn.Module, graph: ChannelGraph) -> Candidate:
    """The half of each group's channels with the largest filters."""
    cost = CostModel(graph)
    scores = method_named("l2")().score(model, graph, tuple, seed=0)
    return select(scores, cost, np.maximum(cost.num_channels // 2, 1), method="l2", settings={})


def prune_theirs(model: nn.Module, image: Tensor) -> nn.Module:
    """`model`, cut in place to half of its channels by torch-pruning."""
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.BasePruner(model, image, importance, pruning_ratio=0.5, ignored_layers=[head])
    pruner.step()
    return model


def flops(model: nn.Module, image: Tensor) -> int:
    """FLOPs of one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
