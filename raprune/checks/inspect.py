"""Inspection of a network: the channels and blocks that can go, the channels that cannot and why, the lowest cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from raprune.channels.gates import with_gates
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import Proof, prove
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel, fractions_by_gate, fractions_by_group, prunable_params_fraction
from raprune.data.arrays import ImageShape
from raprune.errors import ModelError, UsageError
from raprune.models import OWN, build_model, image_shape_of, load_weights
from raprune.spec.job import ModelSpec

PROOF_SIZES = (8, 28, 32, 64, 75, 96, 128, 160, 192)
"""Heights and widths of images for the proof, which uses the smallest size that the network runs on. The coupling of
channels does not depend on the size, and the proof of efficientnet_b4 takes 30 times as long on its 380 pixels."""

IMAGE_SIZES = (224, 32, 64, 28, 8, 75, 96, 128, 160, 192, 256, 299, 384, 518)
"""Heights and widths that are tried in turn for a user's function whose image size is not given."""


@dataclass(frozen=True)
class Inspection:
    """A traced and proved network. `graph` holds only groups and gates that passed the proof."""

    name: str
    proof: Proof
    trace_seconds: float = 0.0

    @property
    def graph(self) -> ChannelGraph:
        return self.proof.graph

    def to_json(self, *, min_channels: int = 1, multiple_of: int = 1) -> dict[str, Any]:
        """Return the inspection as plain data; fractions in [0, 1], FLOPs for one image."""
        cost = CostModel(self.graph)
        narrowest = cost.smallest(min_channels=min_channels, multiple_of=multiple_of)
        fractions = fractions_by_group(self.graph)
        return {
            "model": self.name,
            "input_shape": list(self.graph.input_shape),
            "architecture": self.graph.architecture,
            "flops": cost.dense_flops,
            "macs": cost.dense_flops // 2,
            "params": cost.dense_params,
            "min_flops_fraction": int(cost.flops(narrowest)) / max(1, cost.dense_flops),
            "memory_bytes": cost.dense_memory,
            "min_memory_fraction": int(cost.memory_bytes(narrowest)) / max(1, cost.dense_memory),
            "min_params_fraction": int(cost.params(narrowest)) / max(1, cost.dense_params),
            "prunable_params_fraction": prunable_params_fraction(self.graph),
            "groups": [
                {
                    "name": group.name,
                    "num_channels": group.num_channels,
                    "layers": list(dict.fromkeys(m.parameter.rpartition(".")[0] for m in group.members)),
                    "flops_fraction": fractions[group.name][0],
                    "params_fraction": fractions[group.name][1],
                }
                for group in self.graph.groups
            ],
            "gates": [
                {"name": gate, "flops_fraction": flops, "params_fraction": params}
                for gate, (flops, params) in fractions_by_gate(self.graph).items()
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


def inspect(
    model: nn.Module,
    example_input: torch.Tensor,
    *,
    name: str = "",
    seed: int = 0,
    proved_on: torch.Tensor | None = None,
) -> Inspection:
    """Trace `model` on one image of shape `(1, channels, height, width)`, prove the trace, and find its gates.

    `proved_on` is an image of another size for the proof, because the time of the proof grows with the size.

    Raises:
        ModelError: if the network does not run on the image.
    """
    started = time.perf_counter()
    graph = trace(model, example_input)
    seconds = time.perf_counter() - started
    small = example_input if proved_on is None else proved_on
    proof = prove(model, graph, small, seed=seed)
    return Inspection(name, replace(proof, graph=with_gates(model, proof.graph, small, seed=seed)), seconds)


def inspect_by_name(
    spec: ModelSpec, *, channels: int | None = None, image_size: int | None = None, num_classes: int | None = None
) -> Inspection:
    """Inspect a network without any data, on images of the given shape, else of the shape that it is made for.

    The image size of a user's function is not known: the sizes of `IMAGE_SIZES` are tried in turn.

    Raises:
        UsageError: if the name is unknown.
        ModelError: if the network runs on none of the sizes.
    """
    own = image_shape_of(spec.name)
    channels = channels or (own[0] if own else 3)
    if image_size is None and own:
        heights: Sequence[tuple[int, int]] = [own[1:]]
    else:
        heights = [(size, size) for size in ((image_size,) if image_size else IMAGE_SIZES)]
    model, shape = _build(spec, channels, heights, num_classes or (10 if spec.name in OWN else 1000))
    if spec.weights is not None:
        load_weights(model, spec.weights)
    return inspect(model, torch.zeros(1, *shape), name=spec.name, proved_on=smallest_image(model, shape))


def smallest_image(model: nn.Module, shape: ImageShape) -> torch.Tensor:
    """Return the smallest image, with as many channels as `shape`, that the network runs on."""
    channels, height, width = shape
    model.eval()
    for size in (size for size in PROOF_SIZES if size < min(height, width)):
        image = torch.zeros(1, channels, size, size)
        try:
            with torch.no_grad():
                model(image)
        except Exception:  # too small for the layers, or another size than the head expects
            continue
        return image
    return torch.zeros(1, *shape)


def _build(
    spec: ModelSpec, channels: int, sizes: Sequence[tuple[int, int]], num_classes: int
) -> tuple[nn.Module, ImageShape]:
    """Build the network; return it with the shape of the first of `sizes` that it runs on."""
    if len(sizes) == 1:
        shape = (channels, *sizes[0])
        return build_model(spec, num_classes=num_classes, image_shape=shape), shape
    problem: Exception | None = None
    for size in sizes:
        shape = (channels, *size)
        try:
            # The size may be an argument of the function, so the network is built again for each size.
            model = build_model(spec, num_classes=num_classes, image_shape=shape)
            with torch.no_grad():
                model.eval()(torch.zeros(1, *shape))
        except UsageError:
            raise
        except Exception as error:  # too small for the layers, or too large for the head: try the next size
            problem = error
        else:
            return model, shape
    raise ModelError(
        f"{spec.name} runs on no square image of {', '.join(str(height) for height, _ in sizes)} pixels. "
        f"The last error: {problem}",
        hint="Give the image size: --image-size N, and --channels N if the network does not take 3 channels.",
    ) from problem


def show(inspection: Inspection, console: Console) -> None:
    """Print the inspection as tables."""
    data = inspection.to_json()
    channels, height, width = data["input_shape"][-3:]
    console.print(
        f"[bold]{escape(data['model'])}[/] on images of {height}x{width} pixels with {channels} "
        f"channel{'' if channels == 1 else 's'}: {data['flops']:,} FLOPs ({data['macs']:,} MACs), "
        f"{data['params']:,} parameters"
    )
    table = Table("group", "channels", "layers", "FLOPs", "params", title="Groups of coupled channels")
    for number, column in enumerate(table.columns):
        is_figure = number in (1, 3, 4)
        column.justify, column.no_wrap, column.overflow = "right" if is_figure else "left", is_figure, "fold"
    for group in data["groups"]:
        table.add_row(
            escape(group["name"]),
            str(group["num_channels"]),
            escape(_first(group["layers"])),
            f"{group['flops_fraction']:.1%}",
            f"{group['params_fraction']:.1%}",
        )
    if data["groups"]:
        console.print(table)
    _show_gates(data["gates"], console)
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
        f"[bold]{data['prunable_params_fraction']:.1%}[/] of the parameters belong to channels that can be removed; "
        f"lowest reachable: [bold]{data['min_flops_fraction']:.2%}[/] of the FLOPs, "
        f"{data['min_params_fraction']:.2%} of the parameters, {data['min_memory_fraction']:.2%} of the peak "
        f"activation memory ({data['memory_bytes'] / 2**20:.3g} MiB for an image)"
    )


def _show_gates(gates: list[dict[str, Any]], console: Console) -> None:
    """Print a table of the residual blocks that the network can do without."""
    if not gates:
        return
    table = Table("block", "FLOPs", "params", title="Blocks that can go as a whole (search.depth)")
    for number, column in enumerate(table.columns):
        column.justify, column.no_wrap, column.overflow = "right" if number else "left", number > 0, "fold"
    for gate in gates:
        table.add_row(escape(gate["name"]), f"{gate['flops_fraction']:.1%}", f"{gate['params_fraction']:.1%}")
    console.print(table)


def _show_frozen(frozen: list[dict[str, Any]], console: Console) -> None:
    """Print a table with one row per reason: the number of channels, and the modules."""
    if not frozen:
        return
    table = Table("channels", "module", "reason", title="Channels that stay whole")
    for number, column in enumerate(table.columns):
        column.justify, column.no_wrap, column.overflow = "left" if number else "right", number == 0, "fold"
    counts: Counter[str] = Counter()
    modules: dict[str, list[str]] = {}
    for entry in frozen:
        counts[entry["reason"]] += entry["num_channels"]
        modules.setdefault(entry["reason"], []).append(entry["module"])
    for reason, count in counts.most_common():
        table.add_row(str(count), escape(_first(modules[reason])), escape(reason))
    console.print(table)


def _first(modules: list[str]) -> str:
    """Names of three modules at most; the network itself, which holds some parameters, has none."""
    names = [name or "the network" for name in modules]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
