"""The manifest that `raprune submit --kuberay` prints: held against KubeRay's and Kubernetes' schemas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it has no types
from typer.testing import CliRunner

from raprune.cli import app
from raprune.orchestration.jobs.kuberay import kubernetes_name
from raprune.spec.toml import load_spec
from tests.orchestration.jobs.kuberay_schema import problems

LINE = "submit job.toml --kuberay --output s3://bucket/deep/My_Run.1 --budget-flops 0.25"


@pytest.fixture
def in_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "job.toml").write_text('seed = 7\n[data]\nname = "parquet"\ntrain = "/shared/train.parquet"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(line: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The text, and the two documents in it."""
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
    config, job = yaml.safe_load_all(result.stdout)
    return result.stdout, config, job


@pytest.mark.parametrize(
    "flags", ["", "--gpus 0 --nodes 1", "--secret s3-keys --secret hub", "--install raprune==0.1.0 --name other"]
)
def test_kubernetes_and_kuberay_take_it(in_project: Path, flags: str) -> None:
    _, config, job = printed(f"{LINE} {flags}")
    assert problems(config) == []
    assert problems(job) == []
    # The check would say it.
    job["spec"]["entrypont"] = "x"
    assert problems(job)


def test_it_runs_the_same_job_and_goes_on_with_its_run(in_project: Path) -> None:
    text, config, job = printed(LINE)
    (in_project / "there.toml").write_text(config["data"]["job.toml"])
    spec = load_spec(in_project / "there.toml")
    assert (spec.seed, spec.budget.flops, spec.output) == (7, 0.25, "s3://bucket/deep/My_Run.1")
    assert spec.data.train == "/shared/train.parquet"
    assert "# data.train: /shared/train.parquet is not sent" in text
    assert job["metadata"]["name"] == config["metadata"]["name"] == "my-run-1"
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    [mount] = head["containers"][0]["volumeMounts"]
    assert job["spec"]["entrypoint"] == f"python -m raprune search {mount['mountPath']}/job.toml --resume"
    assert head["volumes"] == [{"name": mount["name"], "configMap": {"name": "my-run-1"}}]
    assert job["spec"]["metadata"] == {
        "job_name": "My_Run.1",
        "raprune_run": "s3://bucket/deep/My_Run.1",
        "raprune_budget": "FLOPs 25%",
    }


def test_the_cluster_goes_with_the_job_and_has_the_workers_asked_for(in_project: Path) -> None:
    _, _, job = printed(f"{LINE} --nodes 3 --gpus 4 --cpus 16 --memory 64Gi --image registry.local/raprune:1")
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    cluster = job["spec"]["rayClusterSpec"]
    [workers] = cluster["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (3, 3, 3)
    [worker] = workers["template"]["spec"]["containers"]
    assert worker["resources"]["limits"] == {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "4"}
    [head] = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert head["image"] == worker["image"] == "registry.local/raprune:1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "the head computes nothing"
    assert "nvidia.com/gpu" not in head["resources"]["limits"]


def test_secrets_are_named_and_nowhere_written(in_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden-token")
    text, _, job = printed(f"{LINE} --token-secret our-token --secret s3-keys")
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "our-token"}
    assert text.count("s3-keys") == 2, "head and workers read their environment from it"
    assert "hidden-token" not in text
    assert not re.search(r"[0-9a-f]{32}", text)


@pytest.mark.parametrize("output", ["run", "~/run", "../run"])
def test_a_run_that_would_go_with_its_pod_is_refused(in_project: Path, output: str) -> None:
    result = CliRunner().invoke(app, ["submit", "job.toml", "--kuberay", "--output", output])
    assert result.exit_code == 2
    assert "would be on the disk of a pod" in result.stderr and "s3://" in result.stderr


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("My_Run.1", "my-run-1"),
        ("7days", "raprune-7days"),
        ("--", "raprune"),
        ("x" * 60, "x" * 47),
        ("a" * 46 + "-b", "a" * 46),
    ],
)
def test_names(text: str, name: str) -> None:
    assert kubernetes_name(text) == name
