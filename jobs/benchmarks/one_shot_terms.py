"""What both sides of the one-shot benchmark share: the networks, an attempt, the count of FLOPs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from versus_torch_pruning import ProjectedBlock, projected_resnet56

from raprune.channels.graph import ChannelGraph
from raprune.channels.members import Group
from raprune.data.batches import DeviceSplit
from raprune.pruning.preparation import Prepared
from raprune.pruning.workload import Workload

SEED = 0
PRUNED, WHOLE = "stream pruned", "stream whole"
HEADS, WIDTHS, NEITHER = "heads", "widths of heads", "attention whole"
OUTPUT = "the network's output"
"""Reason in a graph of channels that stay whole."""
JOBS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Contest:
    """A network, its data and the budgets."""

    name: str
    title: str
    """Heading of its table."""
    job: Path
    overrides: dict[str, Any]
    """Fields of the job that the benchmark sets."""
    budgets: dict[float, float]
    """FLOPs budget -> the test accuracy that `reconstruction` has to reach; 0: none was promised."""
    ahead: dict[float, float] = field(default_factory=dict)
    """FLOPs budget -> the test accuracy by which `reconstruction` has to be ahead of its channels without repair and of
    the other libraries."""
    allocations: tuple[str, ...] = ("uniform", "global_rank", "least_damage")
    """Allocations of raprune that are tried."""
    peers_model: Callable[[nn.Module], nn.Module] = lambda model: model
    """The same function as a network that the other libraries can take."""
    parts: tuple[str, ...] = ()
    """Parts of attention of which torch-pruning prunes one at a time; none without attention."""
    match_steps: int = 200
    """Steps in which each block of `reconstruction, blocks matched` learns the dense block's output."""
    peers_limit_s: int = 900
    """CPU seconds, of all cores together, after which an attempt of another library is given up."""


def projected(model: nn.Module) -> nn.Module:
    """Return the same function with 1x1 convolutions in the two shortcuts that pad with zero channels."""
    theirs = projected_resnet56()
    theirs.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for shortcut in projections(theirs).values():
            wide, narrow = shortcut.weight.shape[:2]
            first = (wide - narrow) // 2
            shortcut.weight.zero_()
            shortcut.weight[first : first + narrow, :, 0, 0] = torch.eye(narrow)
    return theirs


def written_out(model: nn.Module) -> nn.Module:
    """Return the same function without fused attention, whose scale would follow the width of a pruned head."""
    theirs = copy.deepcopy(model)
    for module in attentions(theirs):
        module.fused_attn = False  # type: ignore[assignment]  # an attribute of timm's
    return theirs


def attentions(model: nn.Module) -> list[nn.Module]:
    """Return the modules of `model` that are timm's attention."""
    return [module for module in model.modules() if hasattr(module, "fused_attn") and hasattr(module, "qkv")]


CONTESTS = {
    "resnet56": Contest(
        name="resnet56",
        title="ResNet-56 on CIFAR-10 (JPEG)",
        job=JOBS / "resnet56_cifar10.toml",
        overrides={"search.calibration_images": 2048},
        budgets={0.5: 0.87, 0.4: 0.85, 0.3: 0.81},
        peers_model=projected,
        peers_limit_s=300,
    ),
    "efficientnet_lite0": Contest(
        name="efficientnet_lite0",
        title="EfficientNet-Lite0 on ImageNet photographs, 224 pixels",
        job=JOBS / "efficientnet_lite0_sample.toml",
        overrides={},
        # Within 3 points of the dense network at 80 %; nothing was promised for 65 %.
        budgets={0.8: 0.86, 0.65: 0.0},
        # A repair takes the better part of a minute on one core.
        allocations=("global_rank", "least_damage"),
        # 200 take ten minutes of a core for a network.
        match_steps=100,
    ),
    "vit": Contest(
        name="vit",
        title="ViT of 32 pixels on CIFAR-10 (JPEG)",
        job=JOBS / "vit_cifar10.toml",
        overrides={},
        budgets={0.7: 0.0, 0.5: 0.0, 0.3: 0.0},
        ahead={0.5: 0.1},
        allocations=("uniform", "global_rank", "isomorphic", "least_damage"),
        peers_model=written_out,
        parts=(HEADS, WIDTHS, NEITHER),
        peers_limit_s=300,
    ),
}


@dataclass(frozen=True)
class Attempt:
    """A cut and repaired network in one setting of a method or criterion."""

    setting: str
    model: nn.Module
    flops_fraction: float
    seconds: float


class Side(Protocol):
    """A library with its methods or criteria."""

    names: list[str]
    settings: Sequence[tuple[str, ...]]

    def attempt(self, name: str, budget: float, *setting: str) -> Attempt:
        """Cut and repair the dense network to at most `budget` of its FLOPs.

        Raises:
            NotPossible: if the library cannot do it.
        """
        ...


class NotPossible(Exception):  # noqa: N818
    """The library cannot prune this network in this setting; the text says why."""


@dataclass(frozen=True)
class Ground:
    """The same for all sides: the dense network, its data and its channels."""

    contest: Contest
    prepared: Prepared
    workload: Workload
    calibration: DeviceSplit

    @property
    def graphs(self) -> dict[str, ChannelGraph]:
        """Setting of the residual stream -> the graph whose groups are pruned."""
        graph = self.prepared.graph
        model = self.workload.model
        streams = {group.name: "residual stream" for group in graph.groups if is_stream(group, model)}
        return {PRUNED: graph, WHOLE: graph.without(streams)}

    @property
    def output_layers(self) -> set[str]:
        """Names of the layers that write the network's output."""
        return {frozen.module for frozen in self.prepared.graph.frozen if frozen.reason.startswith(OUTPUT)}

    @property
    def stream_layers(self) -> set[str]:
        """Names of the layers that write the residual stream."""
        model = self.workload.model
        streams = [group for group in self.prepared.graph.groups if is_stream(group, model)]
        return {name for group in streams for name in writers(group, model)}


def is_stream(group: Group, model: nn.Module) -> bool:
    """Return whether several layers write the group's channels, depthwise convolutions aside."""
    return len(writers(group, model)) > 1


def writers(group: Group, model: nn.Module) -> set[str]:
    """Return the names of the layers that make the group's channels from others."""
    modules = dict(model.named_modules())
    names = {member.parameter.rpartition(".")[0] for member in group.members if member.writes}
    return {
        name
        for name in names
        if isinstance(modules[name], (nn.Conv2d, nn.Linear)) and getattr(modules[name], "groups", 1) == 1
    }


def projections(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions that stand in for the zero-padding shortcuts, by name."""
    blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, ProjectedBlock)]
    return {f"{name}.shortcut": b.shortcut for name, b in blocks if isinstance(b.shortcut, nn.Conv2d)}


def flops(model: nn.Module, image: Tensor) -> int:
    """Return the FLOPs of one forward pass, without the stand-ins for zero-padding shortcuts."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    by_module = counter.get_flop_counts()
    aside = sum(sum(by_module[f"{type(model).__name__}.{name}"].values()) for name in projections(model))
    return int(counter.get_total_flops()) - aside
