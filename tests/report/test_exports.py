"""The table of an export in the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from raprune.report.exports import render_exports
from raprune.results.exports import BatchTimes
from tests.factories import export_proof


def test_table_of_an_export_of_a_large_network_fits_into_80_columns() -> None:
    proof = export_proof("c1")
    slow = [BatchTimes(batch_size=n, dense_ms=9876.0, network_ms=7777.0) for n in (1, 32)]
    files = [replace(file, size_bytes=1_780_000_000, equal_top1=1999, times=slow) for file in proof.files]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_exports(replace(proof, images=2000, files=files)))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    (row,) = [line.split() for line in text.splitlines() if "model-int8.onnx" in line]
    assert row[1:] == ["1,780", "8.0e-01", "1999/2000", "92.50", "7777", "(1.27x)", "7777", "(1.27x)"]
