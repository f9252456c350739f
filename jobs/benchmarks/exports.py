"""Exports of torchvision's classification networks: `uv run python jobs/benchmarks/exports.py [MODEL ...]`.

Each network has random weights, loses half of the channels of each group at random, gets statistics of random images
into its batch norms, and is exported to `torch` and `onnx`. Both files are run, the second one in ONNX Runtime, and
compared with the PyTorch network on random images: one alone, then five together. Images have the smallest size that
the network takes. A network passes if its outputs differ by at most 1e-4 of the largest output, in float32.

Networks that are in `exports.jsonl` beside this file are left out, except those that are named. `--seconds` ends a run
early; the next run goes on. Every run writes the table `exports.md` from all rows.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bar import show
from kept_rows import KeptRows, Origin, origin_now
from torch import nn
from torchvision import models

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.checks.inspect import PROOF_SIZES
from raprune.data.arrays import Split
from raprune.data.batches import DeviceSplit
from raprune.errors import RapruneError
from raprune.methods import reestimate_batch_norm
from raprune.models import build_model, image_shape_of
from raprune.models.programs import (
    FILES,
    ONNX,
    OPENERS,
    TORCH,
    Description,
    capture,
    write_onnx,
    write_torch,
)
from raprune.pruning.proving import compare
from raprune.records import Candidate
from raprune.spec.job import ModelSpec

ROWS = Path(__file__).with_name("exports.jsonl")
TABLE = ROWS.with_suffix(".md")
BAR = 1e-4
IMAGES = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GAIN = 0.2
"""Weight of every batch norm. With 1, a random network of 40 residual blocks doubles rounding errors in each: PyTorch's
outputs of EfficientNet-B5 in float32 and float64 then differ by half of the largest one."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network."""

    model: str
    pixels: int
    params: int
    """Number of parameters of the dense network."""
    kept: float
    """Fraction of the parameters that remains."""
    torch_difference: float | None
    """Largest difference of an output, relative to the largest output; None if there is no file."""
    onnx_difference: float | None
    opset: int | None
    torch_bytes: int
    onnx_bytes: int
    seconds: float
    reason: str = ""
    """Message of the exporter that refused the network."""

    @property
    def passed(self) -> bool:
        """True if both files were made and compute what PyTorch computes."""
        found = (self.torch_difference, self.onnx_difference)
        return all(difference is not None and difference <= BAR for difference in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names; default all that have no row")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other network after this time")
    arguments = parser.parse_args()
    kept = KeptRows(ROWS, Row, lambda row: row.model)
    origin = origin_now()
    started = time.perf_counter()
    for name in arguments.models or [name for name in by_size() if name not in kept]:
        if time.perf_counter() - started > arguments.seconds:
            break
        row = exported(name)
        print(summary(row), flush=True)
        kept.add(row, origin)
        TABLE.write_text(table(kept))
    rows = list(kept.rows.values())
    total = len(models.list_models(module=models))
    show(
        f"networks of {len(rows)} tried whose files compute what PyTorch computes",
        figure=sum(row.passed for row in rows),
        bar=total,
        unit="networks",
        more_is_better=True,
    )


def by_size() -> list[str]:
    """The names of all networks, the smallest first."""

    def params(name: str) -> int:
        return min(weights.meta["num_params"] for weights in models.get_model_weights(name))

    return sorted(models.list_models(module=models), key=params)


def exported(name: str) -> Row:
    """Cut a network, export it to both formats, and compare."""
    started = time.perf_counter()
    torch.manual_seed(0)
    network, graph = smallest(name)
    params = count(network)
    model = cut(network, graph, at_random(graph, seed=0)).eval()
    del network
    shape = graph.input_shape[-3:]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, GAIN)
    # With the statistics of a new batch norm, activations vanish on their way, and outputs are those of the last bias.
    drawn = torch.randn(16, *shape)
    reestimate_batch_norm(model, lambda: iter([(drawn, torch.zeros(len(drawn), dtype=torch.int64))]))
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), dtype=np.uint8)
    images = DeviceSplit.place(Split(pixels, np.zeros(IMAGES, np.int64)), MEAN, STD, "cpu")
    description = Description(network=name, trial_id="", image_shape=shape, classes=(), mean=MEAN, std=STD)
    differences: dict[str, float] = {}
    sizes = {TORCH: 0, ONNX: 0}
    opset, reason = None, ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = capture(model, shape)
            for kind, file in FILES.items():
                path = Path(folder) / file
                if kind == ONNX:
                    opset = write_onnx(program, path, description)
                else:
                    write_torch(program, path, description)
                sizes[kind] = sum(part.stat().st_size for part in Path(folder).glob(f"{file}*"))
                found = compare(OPENERS[kind](path, torch.get_num_threads()), model, images)
                differences[kind] = found.relative_difference
        except RapruneError as error:
            reason = error.message
    return Row(
        model=name,
        pixels=shape[-1],
        params=params,
        kept=count(model) / params,
        torch_difference=differences.get(TORCH),
        onnx_difference=differences.get(ONNX),
        opset=opset,
        torch_bytes=sizes[TORCH],
        onnx_bytes=sizes[ONNX],
        seconds=time.perf_counter() - started,
        reason=reason,
    )


def smallest(name: str) -> tuple[nn.Module, ChannelGraph]:
    """Build a network for the smallest images that it takes; return it with its channel graph."""
    whole = image_shape_of(name)
    assert whole is not None, "every network of torchvision has a size"
    sizes = [size for size in PROOF_SIZES if 32 <= size < whole[1]]
    for size in (*sizes, whole[1]):
        shape = (3, size, size)
        try:
            network = build_model(ModelSpec(name=name), num_classes=1000, image_shape=shape).eval()
            with torch.no_grad():
                network(torch.zeros(2, *shape))
        except Exception:  # too small for the layers, or another size than the window expects
            if size == whole[1]:
                raise
            continue
        return network, trace(network, torch.zeros(1, *shape))
    raise AssertionError(name)


def at_random(graph: ChannelGraph, *, seed: int) -> Candidate:
    """A candidate that keeps a random half of each group, at least one channel."""
    drawn = random.Random(seed)
    kept = {
        group.name: tuple(sorted(drawn.sample(range(group.num_channels), max(1, group.num_channels // 2))))
        for group in graph.groups
    }
    return Candidate("random", kept)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def summary(row: Row) -> str:
    """One line for the terminal."""
    state = "passed" if row.passed else "FAILED"
    return (
        f"{row.model} at {row.pixels} px: {state}, torch {shown(row.torch_difference)}, onnx "
        f"{shown(row.onnx_difference)}, {row.seconds:.0f} s {row.reason}"
    )


def shown(difference: float | None) -> str:
    return "-" if difference is None else f"{difference:.0e}"


def table(kept: KeptRows[Row]) -> str:
    """The Markdown file."""
    rows = sorted(kept.rows.values(), key=lambda row: row.model)
    passed = sum(row.passed for row in rows)
    total = len(models.list_models(module=models))
    lines = [
        "# Exports of torchvision's classification networks",
        "",
        f"Made by `jobs/benchmarks/exports.py`: {passed} of the {len(rows)} networks here pass, and torchvision has "
        f"{total}. Each network has random weights, keeps a random half of the channels of each group, and has its "
        "batch norms estimated on random images. It is "
        "exported by raprune to `torch` (a `torch.export` program, run by PyTorch) and to `onnx` (run by ONNX Runtime) "
        "and compared with PyTorch in float32, on one image and on a batch of five. *torch* and *onnx* are the largest "
        f"differences of an output relative to the largest output; a network passes with at most {BAR:.0e}. *px* is "
        "the smallest size of images of at least 32 pixels that the network takes. *kept* is the fraction of the "
        "parameters. *s* is the time for everything, on a machine that did other work as well.",
        "",
        "| network | px | kept | torch | onnx | opset | MB torch | MB onnx | s | commit | date | machine |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(line(row, kept.origins[row.model]) for row in rows),
    ]
    refused = [row for row in rows if not row.passed]
    if refused:
        lines += ["", "## Networks that do not pass", "", *(f"* `{row.model}`: {why(row)}" for row in refused)]
    return "\n".join(lines) + "\n"


def line(row: Row, origin: Origin) -> str:
    """One line of the table."""
    cells = [
        row.model,
        str(row.pixels),
        f"{row.kept:.1%}",
        shown(row.torch_difference),
        shown(row.onnx_difference),
        "-" if row.opset is None else str(row.opset),
        *(f"{size / 1e6:.3g}" if size else "-" for size in (row.torch_bytes, row.onnx_bytes)),
        f"{row.seconds:.0f}",
        origin.commit,
        origin.date,
        origin.machine,
    ]
    return f"| {' | '.join(cells)} |"


def why(row: Row) -> str:
    return row.reason or f"outputs differ by more than {BAR:.0e}"


if __name__ == "__main__":
    main()
