"""Untyped dictionaries stand only where the world outside is untyped: each file that has one says why, here."""

from __future__ import annotations

from pathlib import Path

import raprune

ROOT = Path(raprune.__path__[0])

REASONS = {
    "channels/arithmetic.py": "arguments of a torch operation, as __torch_dispatch__ gives them",
    "channels/graph.py": "JSON of a channel graph, in the cache of traces",
    "channels/inputs.py": "keyword arguments of a user's network",
    "channels/positions.py": "JSON of indices, in the cache of traces",
    "channels/shadow.py": "arguments of a torch operation, as __torch_dispatch__ gives them",
    "checks/inspect.py": "JSON that `raprune inspect --json` prints",
    "cli.py": "flags as overrides of a job's fields, before the job is checked",
    "cost/latency.py": "JSON of a latency table in run.json",
    "cost/onnx_networks.py": "the profile of ONNX Runtime, which is JSON",
    "cost/timing_target.py": "JSON of the protocol of a timing worker",
    "cost/timing_worker.py": "JSON of the protocol of a timing worker",
    "cost/conditions.py": "JSON of measuring conditions, part of a table's key",
    "methods/layer_observer.py": "arguments of a torch function, as __torch_function__ gives them",
    "models/__init__.py": "arguments of a network's own function",
    "orchestration/jobs/kuberay.py": "YAML of a RayJob",
    "orchestration/jobs/submission.py": "Ray's runtime environment, and TOML of a job before it is checked",
    "orchestration/ray_private.py": "options as Ray Serve takes them",
    "orchestration/served_page.py": "JSON that the page's application describes itself by",
    "orchestration/tasks.py": "JSON of a recipe's provenance",
    "page/answers.py": "JSON answers of the page",
    "pruning/artifact.py": "JSON of a recipe",
    "pruning/hugging_face.py": "JSON of a recipe and of config.json",
    "pruning/keys.py": "JSON of which a cached score's key is the digest",
    "pruning/phases.py": "JSON of which a cached network's key is the digest",
    "models/programs.py": "extra files as torch.export.save takes them",
    "report/html/job.py": "TOML of a job, as a report repeats it",
    "results/ablation.py": "JSON that commands print",
    "results/exports.py": "JSON of export.json",
    "results/run_list.py": "JSON that commands print and the page sends",
    "results/progress.py": "JSON that commands print and the page sends",
    "results/rows.py": "JSON that commands print and report/front.json holds",
    "results/stages.py": "JSON of progress.json",
    "results/test_split.py": "JSON of report/test.json",
    "results/timings.py": "JSON of report/latency.json",
    "sampling/optuna_sampler.py": "values that Optuna's trials are fixed to",
    "sampling/sources.py": "values that warm starts fix",
    "sampling/warm_start.py": "JSON of warm_start.json",
    "spec/budget.py": "TOML or JSON of a job before it is checked",
    "spec/job.py": "JSON of a training's identity, in checkpoints and keys",
    "spec/toml.py": "TOML of a job before it is checked",
    "store/folder.py": "JSON of run.json",
    "store/learning_curves.py": "JSON of a learning curve",
    "store/networks.py": "JSON of a report on networks",
    "store/record.py": "JSON of run.json: fields that other versions wrote",
    "store/rows.py": "a row of Parquet, as PyArrow gives it",
    "training/checkpoint.py": "JSON in the header of a checkpoint",
    "training/loop.py": "JSON of a checkpoint's identity",
    "training/optimiser.py": "groups of parameters as torch.optim takes them",
    "training/tasks/detection.py": "annotations of COCO, which are JSON, and the outputs of a detector",
}
"""File of the package -> what its `dict[str, Any]` holds."""


def test_every_untyped_dictionary_is_at_an_edge_with_its_reason() -> None:
    found = {str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if "dict[str, Any]" in p.read_text()}
    assert sorted(found) == sorted(REASONS)
