"""The table of an export in the terminal: for each file its size, its difference from PyTorch, and its speed."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from raprune.report import formats
from raprune.results.exports import BatchTimes, ExportProof
from raprune.store.record import ACCURACY


def render_exports(proof: ExportProof) -> RenderableType:
    """The table of the exported files, at most 80 columns wide, and the notes that explain it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("file", no_wrap=True)
    sizes = [times.batch_size for times in proof.files[0].times]
    is_top1 = proof.metric == ACCURACY
    judged = ["agree", "top-1"] if is_top1 else [proof.metric]
    headers = ["MB", "differs", *judged, *(f"ms@{size}" for size in sizes)]
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for file in proof.files:
        table.add_row(
            escape(file.file),
            _megabytes(file.size_bytes),
            f"{file.max_difference:.1e}",
            *([f"{file.equal_top1}/{proof.images}"] if is_top1 else []),
            formats.accuracy(file.accuracy),
            *map(_time, file.times),
        )
    runtimes = dict.fromkeys(file.runtime for file in proof.files)
    opsets = [f"opset {file.opset}" for file in proof.files if file.opset is not None][:1]
    threads = f"{proof.threads} thread{'s' * (proof.threads != 1)}"
    dense = ", ".join(
        f"{_megabytes(file.dense_bytes)} ({file.format})" for file in proof.files if file.precision == "float32"
    )
    notes = [
        f"MB: size of the file; the dense network's is {dense}.",
        f"Differs: largest difference of an output from PyTorch's on {proof.images} validation images. "
        + (
            "Agree: images of the same predicted class. Top-1: accuracy on these images in percent"
            if is_top1
            else f"{proof.metric}: on these images, in percent"
        )
        + f"; the PyTorch network's is {formats.accuracy(proof.accuracy)}.",
        "ms@N: milliseconds for a batch of N images, and how much faster that is than the dense network in float32, "
        f"exported alike; on {proof.device}, {threads}.",
        f"Runtimes: {', '.join([*runtimes, *opsets])}.",
    ]
    return Group(table, *(f"[dim]{escape(note)}[/dim]" for note in notes))


def _megabytes(size_bytes: int) -> str:
    megabytes = size_bytes / 1e6
    return f"{megabytes:.3g}" if megabytes < 100 else f"{megabytes:,.0f}"


def _time(times: BatchTimes) -> str:
    ms = times.network_ms
    return f"{f'{ms:.2f}' if ms < 10 else f'{ms:.0f}'} ({formats.times_as_fast(times.speedup)})"
