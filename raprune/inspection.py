"""What can be pruned in a network, what cannot and why, and how small it can get. Prints; changes nothing."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from raprune.cost import CostModel, prunable_params_fraction, share_by_group
from raprune.errors import ModelError, UsageError
from raprune.models import build_model, load_weights
from raprune.spec import ModelSpec
from raprune.tracing import ChannelGraph, trace
from raprune.tracing.proof import Proof, prove

Shape = tuple[int, int, int]

IMAGE_SIZES = (8, 28, 32, 64, 75, 96, 128, 160, 192, 224, 256, 299, 384, 518)
"""Heights and widths that are tried, in turn, for a network whose image size is not given."""

_OWN_IMAGES = {"digits-net": (1, 8), "lenet5": (1, 28), "cifar-": (3, 32)}
"""Beginning of the name of a network of ours -> channels and size of its images; they have 10 classes."""


@dataclass(frozen=True)
class Inspection:
    """A traced and proved network. `graph` holds only groups that passed the proof."""

    name: str
    proof: Proof
    trace_seconds: float = 0.0

    @property
    def graph(self) -> ChannelGraph:
        return self.proof.graph

    def to_json(self, *, min_channels: int = 1, multiple_of: int = 1) -> dict[str, Any]:
        """Everything as plain data; fractions in [0, 1], FLOPs for one image."""
        cost = CostModel(self.graph)
        narrowest = cost.smallest(min_channels=min_channels, multiple_of=multiple_of)
        shares = share_by_group(self.graph)
        return {
            "model": self.name,
            "input_shape": list(self.graph.input_shape),
            "architecture": self.graph.architecture,
            "flops": cost.dense_flops,
            "macs": cost.dense_flops // 2,
            "params": cost.dense_params,
            "min_flops_fraction": int(cost.flops(narrowest)) / max(1, cost.dense_flops),
            "min_params_fraction": int(cost.params(narrowest)) / max(1, cost.dense_params),
            "prunable_params_fraction": prunable_params_fraction(self.graph),
            "groups": [
                {
                    "name": group.name,
                    "num_channels": group.num_channels,
                    "layers": list(dict.fromkeys(m.parameter.rpartition(".")[0] for m in group.members)),
                    "flops_fraction": shares[group.name][0],
                    "params_fraction": shares[group.name][1],
                }
                for group in self.graph.groups
            ],
            "frozen": [
                {"module": f.module, "num_channels": f.num_channels, "reason": f.reason} for f in self.graph.frozen
            ],
            "proof": {
                "passed": True,
                "permutation_error": self.proof.permutation_error,
                "cut_error": self.proof.cut_error,
                "candidates": self.proof.candidates,
                "seconds": self.proof.seconds,
                "frozen": dict(self.proof.frozen),
            },
            "trace_seconds": self.trace_seconds,
            "notes": list(self.graph.notes),
        }


def inspect(model: nn.Module, example_input: torch.Tensor, *, name: str = "", seed: int = 0) -> Inspection:
    """Trace `model` on one image of shape `(1, channels, height, width)`, and prove what was found.

    Raises:
        ModelError: if the network does not run on it.
    """
    started = time.perf_counter()
    graph = trace(model, example_input)
    seconds = time.perf_counter() - started
    return Inspection(name, prove(model, graph, example_input, seed=seed), seconds)


def inspect_by_name(
    spec: ModelSpec, *, channels: int | None = None, image_size: int | None = None, num_classes: int | None = None
) -> Inspection:
    """Inspect a network without any data: its image size, where not given, is the smallest that it takes.

    Raises:
        UsageError: if the name is unknown.
        ModelError: if it runs on none of the sizes tried.
    """
    known = next((shape for name, shape in _OWN_IMAGES.items() if spec.name.startswith(name)), None)
    channels = channels or (known[0] if known else 3)
    image_size = image_size or (known[1] if known else None)
    model, shape = _build(spec, channels, image_size, num_classes or (10 if known else 1000))
    if spec.weights is not None:
        load_weights(model, spec.weights)
    return inspect(model, torch.zeros(1, *shape), name=spec.name)


def _build(spec: ModelSpec, channels: int, image_size: int | None, num_classes: int) -> tuple[nn.Module, Shape]:
    if image_size is not None:
        shape = (channels, image_size, image_size)
        return build_model(spec, num_classes=num_classes, image_shape=shape), shape
    problem: Exception | None = None
    model: nn.Module | None = None
    for size in IMAGE_SIZES:
        shape = (channels, size, size)
        try:
            if model is None or _fixes_image_size(spec):
                model = build_model(spec, num_classes=num_classes, image_shape=shape)
            with torch.no_grad():
                model.eval()(torch.zeros(1, *shape))
        except UsageError:
            raise
        except Exception as error:  # too small for its layers, or not square enough: the next size may do
            problem = error
        else:
            return model, shape
    raise ModelError(
        f"{spec.name} runs on no square image of {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]} pixels. Last: {problem}",
        hint="Give its image size: --image-size N, and --channels if it does not take 3.",
    ) from problem


def _fixes_image_size(spec: ModelSpec) -> bool:
    """Whether the size is an argument of the builder, so that another size is another network."""
    return spec.name.startswith(("vit_", "maxvit")) or ":" in spec.name


def show(inspection: Inspection, console: Console) -> None:
    """The inspection as tables on the terminal."""
    data = inspection.to_json()
    shape = "x".join(str(size) for size in data["input_shape"])
    console.print(
        f"[bold]{escape(data['model'])}[/] on {shape}: {data['flops']:,} FLOPs ({data['macs']:,} MACs), "
        f"{data['params']:,} parameters"
    )
    table = Table("group", "channels", "layers", "FLOPs", "params", title="What falls together")
    for column in (1, 3, 4):
        table.columns[column].justify = "right"
    for group in data["groups"]:
        layers = group["layers"]
        shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        table.add_row(
            escape(group["name"]),
            str(group["num_channels"]),
            escape(shown),
            f"{group['flops_fraction']:.1%}",
            f"{group['params_fraction']:.1%}",
        )
    if data["groups"]:
        console.print(table)
    _show_frozen(data["frozen"], console)
    for note in data["notes"]:
        console.print(escape(note))
    if not data["groups"]:
        console.print("[bold red]Nothing can be pruned in this network.[/]")
        return
    proof = data["proof"]
    console.print(
        f"proof: a permutation of all channels changes the output by {proof['permutation_error']:.0e}, "
        f"{proof['candidates']} random candidates differ from masking by {proof['cut_error']:.0e} "
        f"(float64, {proof['seconds']:.1f} s)"
    )
    console.print(
        f"[bold]{data['prunable_params_fraction']:.1%}[/] of the parameters lie on channels that can go; "
        f"lowest reachable: [bold]{data['min_flops_fraction']:.2%}[/] of the FLOPs, "
        f"{data['min_params_fraction']:.2%} of the parameters"
    )


def _show_frozen(frozen: list[dict[str, Any]], console: Console) -> None:
    """One line a reason: the modules that it holds for."""
    if not frozen:
        return
    table = Table("channels", "in", "why", title="What stays whole")
    table.columns[0].justify = "right"
    counts: Counter[str] = Counter()
    modules: dict[str, list[str]] = {}
    for entry in frozen:
        counts[entry["reason"]] += entry["num_channels"]
        modules.setdefault(entry["reason"], []).append(entry["module"])
    for reason, count in counts.most_common():
        names = modules[reason]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        table.add_row(str(count), escape(shown), escape(reason))
    console.print(table)
