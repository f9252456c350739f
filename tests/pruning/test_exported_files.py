"""Exported files where they are used: in ONNX Runtime, and in Pythons without raprune."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from raprune.cli import app
from raprune.data import load_data
from raprune.models import build_model
from raprune.pruning.artifact import load
from raprune.spec.job import DataSpec
from raprune.spec.toml import load_spec
from tests.tools import require, require_module

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the bundled network of the digits in all formats, as `raprune prune` writes it; and its output."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require_module(name)
    folder = tmp_path_factory.mktemp("exported") / "out"
    words = ["prune", "--model", "digits-net", "--data", "digits", "--budget-flops", "0.3", "--set", "dense.epochs=2"]
    done = CliRunner().invoke(
        app,
        [*words, "--output", str(folder), "--format", "recipe,torch", "--format", "onnx", "--quantize", "int8"],
        env={"COLUMNS": "80"},
    )
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_onnx_file_runs_in_onnx_runtime_for_any_batch_and_describes_itself(exported: tuple[Path, str]) -> None:
    folder, output = exported
    onnxruntime = require_module("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (came,), (gone,) = session.get_inputs(), session.get_outputs()
    assert (came.name, came.shape) == ("images", ["batch", 1, 8, 8])
    assert (gone.name, gone.shape) == ("logits", ["batch", 10])
    facts = session.get_modelmeta().custom_metadata_map
    recipe = json.loads((folder / "recipe.json").read_text())
    assert json.loads(facts["mean"]) == recipe["data"]["mean"] and json.loads(facts["std"]) == recipe["data"]["std"]
    assert json.loads(facts["classes"]) == [str(digit) for digit in range(10)]
    spec = load_spec(None, {"model.name": "digits-net", "data.name": "digits", "output": "x"})
    network = load(build_model(spec.model, num_classes=10, image_shape=(1, 8, 8)), str(folder))
    for count in (1, 3, 40):
        images = torch.rand(count, 1, 8, 8)
        with torch.no_grad():
            wanted = network(images)
        assert np.allclose(session.run(None, {"images": images.numpy()})[0], wanted.numpy(), atol=1e-5)
    lines = output.splitlines()
    assert [line.split()[0] for line in lines if line.strip().startswith("model")] == [
        "model.pt2",
        "model.onnx",
        "model-int8.onnx",
    ]
    assert max(map(len, lines)) <= 80 and "opset" in output
    proof = json.loads((folder / "export.json").read_text())
    assert [(file["format"], file["precision"]) for file in proof["files"]] == [
        ("torch", "float32"),
        ("onnx", "float32"),
        ("onnx", "int8"),
    ]
    assert all(file["equal_top1"] == proof["images"] for file in proof["files"][:2])
    assert proof["files"][1]["opset"] >= 18


def test_int8_file_is_smaller_and_nearly_as_accurate(exported: tuple[Path, str]) -> None:
    folder, _ = exported
    onnxruntime = require_module("onnxruntime")
    facts = [
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"]).get_modelmeta()
        for name in ("model.onnx", "model-int8.onnx")
    ]
    assert facts[1].custom_metadata_map == {**facts[0].custom_metadata_map, "precision": "int8"}
    onnx = require_module("onnx")
    operations = {node.op_type for node in onnx.load(folder / "model-int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operations
    proof = json.loads((folder / "export.json").read_text())
    exact, rounded = proof["files"][1:]
    assert rounded["accuracy"] > exact["accuracy"] - 0.05
    assert rounded["max_difference"] > exact["max_difference"]


def test_torch_program_runs_in_a_python_without_raprune(exported: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = exported
    code = (
        "import sys, torch\n"
        f"sys.path = [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
        "sys.meta_path.insert(0, type('No', (), {'find_spec': staticmethod(lambda name, *rest: "
        "(_ for _ in ()).throw(ImportError(name)) if name.partition('.')[0] == 'raprune' else None)}))\n"
        f"network = torch.export.load({str(folder / 'model.pt2')!r}).module()\n"
        "print([tuple(network(torch.zeros(n, 1, 8, 8)).shape) for n in (1, 5)])\n"
        "assert 'raprune' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[(1, 10), (5, 10)]"


def test_onnx_file_classifies_with_onnx_runtime_and_numpy_alone(exported: tuple[Path, str], tmp_path: Path) -> None:
    """By the module that docs/export.md shows."""
    folder, _ = exported
    uv = require("uv")
    (module,) = re.findall(r"```python\n(# classify\.py\n.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    (tmp_path / "classify.py").write_text(module)
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    # The versions of this environment are in uv's cache.
    needed = [f"{name}=={version(name)}" for name in ("onnxruntime", "numpy")]
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *needed], check=True)
    data = load_data(DataSpec(name="digits"), seed=0)
    np.save(tmp_path / "pixels.npy", data.validation.images[:64])
    code = (
        "import json, importlib.util, numpy, classify\n"
        "assert not any(importlib.util.find_spec(name) for name in ('torch', 'raprune', 'onnx'))\n"
        "print(json.dumps(classify.classify(numpy.load('pixels.npy'))))"
    )
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=bare, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    named = json.loads(done.stdout)
    recipe = json.loads((folder / "recipe.json").read_text())
    right = np.mean([int(name) == label for name, label in zip(named, data.validation.labels[:64], strict=True)])
    assert abs(right - recipe["accuracy"]) < 0.2
