"""docs/notebook.ipynb: it is stored without outputs, and it runs from the first cell to the last."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.tools import require_module

ROOT = Path(__file__).parents[3]
NOTEBOOK = ROOT / "docs/notebook.ipynb"


def test_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


@pytest.mark.nightly
@pytest.mark.ray
def test_notebook_runs_and_shows_tables_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Ray of its own, in a kernel of its own: as a reader runs it."""
    nbformat, nbclient = require_module("nbformat"), require_module("nbclient")
    require_module("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # The kernel of this environment, whatever others the user has.
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=400, kernel_name="python3", resources=resources).execute()
    kept = os.environ.get("RAPRUNE_TEST_NOTEBOOK")
    if kept:
        # For whoever wants to look at the pictures.
        nbformat.write(notebook, kept)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.text for output in shown if output.get("name") == "stdout")
    assert "\x1b" not in printed and len(printed.splitlines()) < 120, "lines, not a block that is redrawn"
    assert not [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    data = [output.data for output in shown if "data" in output]
    assert sum("image/png" in one for one in data) == 3, "the images, the front and the widths"
    tables = [one["text/html"] for one in data if "text/html" in one]
    assert any("coupled" in html or "tensors that they slice" in html for html in tables)
    assert any("★" in html and "dense network" in html for html in tables)
    assert (tmp_path / "half/recipe.json").exists() and len(list((tmp_path / "runs").iterdir())) >= 1
