"""The files in cluster/, each held against the rules of what reads it: Ray, AWS, Google Cloud, KubeRay, bash, Docker.

Each check is shown broken copies too, which it must refuse.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it has no types

from raprune import __version__
from tests.orchestration.jobs.kuberay_schema import autoscaling, problems
from tests.tools import require_module

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
TOOLS = Path(sys.executable).parent

LAUNCHED = ("aws", "gcp", "on-premises")
KUBERAY = ("kuberay-cluster", "kuberay-job")
SCRIPTS = ("local.sh", "slurm.sbatch")
FILES = sorted(path.name for path in CLUSTER.iterdir())

Config = dict[str, Any]


def read(name: str) -> Config:
    config: Config = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    return config


def changed(config: Config, place: str, value: Any) -> Config:
    """A copy with `value` at `place`, keys and indices by dots; None takes away what is there."""
    other = copy.deepcopy(config)
    *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    part: Any = other
    for key in parents:
        part = part[key]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return other


# Ray's cluster launcher


def launcher_accepts(config: Config) -> Config:
    """As `ray up` reads it, with its defaults filled in.

    Raises:
        Exception: of many kinds, what Ray refuses.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: Config = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", LAUNCHED)
def test_rays_launcher_takes_the_file_and_adds_no_command(name: str) -> None:
    given = read(name)
    prepared = launcher_accepts(given)
    assert prepared["head_setup_commands"] == prepared["setup_commands"] == given["setup_commands"]
    assert prepared["worker_setup_commands"] == given["setup_commands"]


@pytest.mark.parametrize("name", LAUNCHED)
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("cluster_nam", "x"),
        ("max_workers", "two"),
        ("provider.type", None),
        ("setup_commands", 3),
    ],
)
def test_rays_launcher_refuses_a_broken_file(name: str, place: str, value: Any) -> None:
    with pytest.raises(Exception):  # noqa: B017  # Ray raises what comes.
        launcher_accepts(changed(read(name), place, value))


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_workers_come_and_go_and_the_head_computes_nothing(name: str) -> None:
    prepared = launcher_accepts(read(name))
    head, workers = (prepared["available_node_types"][kind] for kind in ("head", "gpu-spot"))
    assert (workers["min_workers"], workers["max_workers"]) == (0, prepared["max_workers"])
    assert 0 < prepared["idle_timeout_minutes"] <= 30
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "--num-cpus=0 --num-gpus=0" in prepared["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_launched_cluster_has_a_token_and_its_dashboard_on_loopback(name: str) -> None:
    config = read(name)
    assert "RAY_AUTH_MODE=token" in config["initialization_commands"][0]
    home = f"/home/{config['auth']['ssh_user']}"
    assert config["file_mounts"][f"{home}/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_shell_on_a_launched_node_asks_for_tokens_however_often_it_is_set_up(name: str, tmp_path: Path) -> None:
    config = read(name)
    # Ubuntu's begins so: what stands below is not for Ray's shells to see.
    (tmp_path / ".bashrc").write_text("case $- in *i*) ;; *) return ;; esac\nexport FIRST=1\n")
    lines = [line for line in config["initialization_commands"] + config["setup_commands"] if "bashrc" in line]
    show = 'source ~/.bashrc; echo "$RAY_AUTH_MODE $RAY_USAGE_STATS_ENABLED $PATH"'
    for _ in range(2):
        for line in lines:
            subprocess.run(["bash", "-c", line], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    shell = subprocess.run(
        ["bash", "-c", show],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout == f"token 0 {tmp_path}/raprune/venv/bin:/usr/bin\n"


# AWS and Google Cloud


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Config, Callable[[Config], Config]]]:
    """The file as Ray's own code completes it on an AWS that moto plays, and what launches a node there."""
    moto = require_module("moto")
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = launcher_accepts(read("aws"))
    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "none")
        # Ray keeps the pair of keys there that it makes.
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        ec2, iam = boto3.client("ec2", region_name=config["provider"]["region"]), boto3.client("iam")
        for profile in ("raprune-head", "raprune-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        image = ec2.describe_images()["Images"][0]["ImageId"]
        for kind in config["available_node_types"].values():
            # The user's to fill in.
            kind["node_config"]["ImageId"] = image
        config = bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(config))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])

        def launch(node: Config) -> Config:
            created: dict[str, Any] = provider.create_node(copy.deepcopy(node), {"ray-node-type": "worker"}, 1)
            instance: Config = ec2.describe_instances(InstanceIds=list(created))["Reservations"][0]["Instances"][0]
            return instance

        yield config, launch


@pytest.mark.nightly
def test_aws_starts_a_head_on_demand_and_gpu_workers_on_spot(aws: tuple[Config, Callable[[Config], Config]]) -> None:
    config, launch = aws
    kinds = config["available_node_types"]
    head, worker = (launch(kinds[kind]["node_config"]) for kind in ("head", "gpu-spot"))
    assert "InstanceLifecycle" not in head
    assert worker["InstanceLifecycle"] == "spot"
    assert (kinds["gpu-spot"]["resources"]["GPU"], kinds["gpu-spot"]["resources"]["CPU"]) == (1, 8)
    for instance, profile in ((head, "raprune-head"), (worker, "raprune-worker")):
        assert instance["IamInstanceProfile"]["Arn"].endswith(profile)
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["DeleteOnTermination"] for disk in instance["BlockDeviceMappings"])


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("InstanceMarketOption", {"MarketType": "spot"}),
        ("InstanceMarketOptions", {"Market": "spot"}),
        ("BlockDeviceMappings", {"DeviceName": "/dev/sda1"}),
    ],
)
def test_aws_refuses_a_broken_node(aws: tuple[Config, Callable[[Config], Config]], place: str, value: Any) -> None:
    from botocore.exceptions import ParamValidationError

    config, launch = aws
    with pytest.raises(ParamValidationError):
        launch(changed(config["available_node_types"]["gpu-spot"]["node_config"], place, value))


@pytest.fixture(scope="module")
def compute() -> Config:
    """Compute Engine's schemas, from Google's client: name -> schema."""
    require_module("googleapiclient")
    document = resources.files("googleapiclient.discovery_cache") / "documents" / "compute.v1.json"
    schemas: Config = json.loads(document.read_text())["schemas"]
    return schemas


def refused(value: Any, schema: Config, schemas: Config, place: str = "Instance") -> Iterator[str]:
    """What Compute Engine does not know of `value`, by a schema of its discovery document."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kind: type | tuple[type, ...] = {"string": str, "boolean": bool, "integer": int, "array": list}.get(
        schema.get("type", ""), dict
    )
    # Numbers of 64 bits are texts in its JSON; it takes both.
    if schema.get("format") in ("int64", "uint64"):
        kind = (str, int)
    if not isinstance(value, kind):
        yield f"{place}: {value!r} is no {schema.get('type')}"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from refused(item, schema["items"], schemas, f"{place}.{index}")
    elif isinstance(value, dict):
        for name, item in value.items():
            known = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if known is None:
                yield f"{place}: no field {name!r}"
            else:
                yield from refused(item, known, schemas, f"{place}.{name}")
    elif value not in schema.get("enum", [value]):
        yield f"{place}: {value!r} is none of {', '.join(schema['enum'])}"


def test_compute_engine_knows_every_field_of_the_gcp_nodes(compute: Config) -> None:
    kinds = launcher_accepts(read("gcp"))["available_node_types"]
    for kind in kinds.values():
        assert list(refused(kind["node_config"], compute["Instance"], compute)) == []
    assert kinds["gpu-spot"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "scheduling" not in kinds["head"]["node_config"]
    assert kinds["gpu-spot"]["resources"]["GPU"] == 1


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("scheduling.provisioningModel", "SPOTS", "none of"),
        ("scheduling", [{"preemptible": True}], "is no"),
        ("sheduling", {}, "no field 'sheduling'"),
        ("disks.0.initializeParams.diskSizeGB", 200, "no field 'diskSizeGB'"),
        ("serviceAccounts.0.scopes", "all", "is no array"),
    ],
)
def test_a_broken_gcp_node_is_refused(compute: Config, place: str, value: Any, reason: str) -> None:
    node = changed(read("gcp")["available_node_types"]["gpu-spot"]["node_config"], place, value)
    assert any(reason in found for found in refused(node, compute["Instance"], compute))


# KubeRay


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_takes_the_manifest(name: str) -> None:
    assert problems(read(name)) == []


@pytest.mark.parametrize("name", KUBERAY)
def test_rays_autoscaler_reads_gpu_workers_and_a_head_that_computes_nothing_from_it(name: str) -> None:
    manifest = read(name)
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    config = autoscaling(manifest["metadata"], cluster)
    head, workers = (config["available_node_types"][kind] for kind in ("headgroup", "gpu"))
    assert (head["resources"]["CPU"], head["resources"]["GPU"]) == (0, 0)
    assert (workers["resources"]["CPU"], workers["resources"]["GPU"]) == (8, 1)
    assert workers["min_workers"] < workers["max_workers"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberays_token_is_named_and_not_given(name: str) -> None:
    manifest = read(name)
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert cluster["authOptions"] == {"mode": "token", "secretName": "raprune-ray-token"}


_WORKER = "workerGroupSpecs.0.template.spec"


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("apiVersion", "v1", "RayCluster"),
        ("kind", "RayCluste", "none of RayCluster, RayJob"),
        ("metadata.name", "x" * 64, "takes 63"),
        ("metadata.labels", {"a": 1}, "metadata.labels"),
        ("spec.rayVersion", None, "rayVersion"),
        ("spec.authOptions.mode", "none", "authOptions.mode"),
        ("spec.authOptions.token", "x", "'token' was unexpected"),
        ("spec.autoscalerOptions.version", "v3", "'v3' is not one of"),
        ("spec.autoscalerOptions.resources.limit", {}, "autoscalerOptions"),
        ("spec.headGroupSpec", None, "'headGroupSpec' is a required property"),
        ("spec.headGroupSpec.rayStartParams.num-cpus", 0, "num-cpus: 0 is not of type 'string'"),
        ("spec.workerGroupSpecs.0.minReplicas", None, "'minReplicas' is a required property"),
        ("spec.workerGroupSpecs.0.replicas", 9, "outside of 0 to 8"),
        ("spec.workerGroupSpecs.0.maxReplica", 9, "'maxReplica' was unexpected"),
        (f"spec.{_WORKER}.container", [], "'container' was unexpected"),
        (f"spec.{_WORKER}.restartPolicy", True, "restartPolicy"),
        (f"spec.{_WORKER}.tolerations.0.effects", "NoSchedule", "'effects' was unexpected"),
        (f"spec.{_WORKER}.volumes", None, "which is no volume of the pod"),
        (f"spec.{_WORKER}.containers.0.resources.limits", None, "limits.cpu is missing"),
        (f"spec.{_WORKER}.containers.0.resources.requests.nvidia.com/gpu", None, ""),
        (f"spec.{_WORKER}.containers.0.resources.limits.cpu", "eight", "autoscaler"),
    ],
)
def test_a_broken_ray_cluster_is_refused(place: str, value: Any, reason: str) -> None:
    if not reason:
        manifest = read("kuberay-cluster")
        container = manifest["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
        container["resources"]["limits"]["nvidia.com/gpu"] = "2"
        reason = "nvidia.com/gpu is 1, its limit 2"
    else:
        manifest = changed(read("kuberay-cluster"), place, value)
    assert any(reason in found for found in problems(manifest)), problems(manifest)


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("metadata.name", "x" * 48, "takes 47"),
        ("spec.entrypoint", ["python"], "entrypoint"),
        ("spec.submissionMode", "Job", "submissionMode"),
        ("spec.shutdownAfterJobFinishes", False, "needs shutdownAfterJobFinishes"),
        ("spec.rayClusterSpec", None, "one of rayClusterSpec and clusterSelector"),
        ("spec.runtimeEnvYAML", "- pip", "no mapping"),
        ("spec.retries", 3, "'retries' was unexpected"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.volumes.0.configMap", "job", "headGroupSpec.spec.volumes"),
    ],
)
def test_a_broken_ray_job_is_refused(place: str, value: Any, reason: str) -> None:
    manifest = changed(read("kuberay-job"), place, value)
    assert any(reason in found for found in problems(manifest)), problems(manifest)


# Scripts


def shell_says(text: str, path: Path) -> str:
    """What bash's own reading and shellcheck have against a script; empty where nothing."""
    path.write_text(text)
    read_by_bash = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    checked = subprocess.run([TOOLS / "shellcheck", "--shell=bash", path], capture_output=True, text=True)
    return read_by_bash.stderr + checked.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_is_sound_and_a_broken_one_is_not(name: str, tmp_path: Path) -> None:
    text = (CLUSTER / name).read_text()
    assert shell_says(text, tmp_path / name) == ""
    assert "SC2086" in shell_says(text + "\nrm -r $undefined_folder/x\n", tmp_path / name)
    assert "syntax error" in shell_says(text.replace("esac", "", 1), tmp_path / name)


def test_sbatch_reads_every_option_of_the_slurm_script() -> None:
    lines = (CLUSTER / "slurm.sbatch").read_text().splitlines()
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    known = "job-name nodes ntasks-per-node cpus-per-task gres time output open-mode requeue no-kill signal"
    assert {option.lstrip("-").partition("=")[0] for option in options} == set(known.split())
    # sbatch stops to read them at the first command.
    first_command = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(index for index, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command


# The image


def docker_says(text: str, path: Path) -> list[str]:
    """What hadolint and the rules of this folder have against a Dockerfile."""
    path.write_text(text)
    linted = subprocess.run([TOOLS / "hadolint", path], capture_output=True, text=True)
    instructions = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.M)).splitlines()
    found = linted.stdout.splitlines()
    words = [shlex.split(line) for line in instructions if line]
    users = [rest[0] for instruction, *rest in words if instruction == "USER"]
    found += [
        f"FROM {rest[0]}" for head, *rest in words if head == "FROM" and not re.search(r":\d+\.\d+\.\d+-", rest[0])
    ]
    found += [f"ADD {rest[0]}" for instruction, *rest in words if instruction == "ADD"]
    found += [f"ARG {rest[0]}" for instruction, *rest in words if instruction == "ARG"]
    if not users or not users[-1].isdigit() or users[-1] == "0":
        found.append(f"USER {users[-1:]}")
    if not any(instruction == "HEALTHCHECK" for instruction, *_ in words):
        found.append("HEALTHCHECK missing")
    return found


def test_the_image_is_pinned_and_runs_as_nobody_special(tmp_path: Path) -> None:
    assert docker_says((CLUSTER / "Dockerfile").read_text(), tmp_path / "Dockerfile") == []


@pytest.mark.parametrize(
    ("pattern", "other", "reason"),
    [
        (r"FROM python:[\d.]+-slim", "FROM python:3-slim", "FROM"),
        (r"USER 1000", "USER root", "USER"),
        (r"USER 1000\n", "", "USER"),
        (r"HEALTHCHECK.*\n.*\n", "", "HEALTHCHECK"),
        (r"COPY raprune", "ADD https://example.com/raprune", "ADD"),
        (r"USER 1000", "ARG TOKEN\nUSER 1000", "ARG"),
        (r"install --no-cache-dir", "install", "DL3042"),
        (r"ENV ", "EN ", "unexpected 'E'"),
    ],
)
def test_a_broken_image_is_refused(pattern: str, other: str, reason: str, tmp_path: Path) -> None:
    text, times = re.subn(pattern, other, (CLUSTER / "Dockerfile").read_text())
    assert times and any(reason in found for found in docker_says(text, tmp_path / "Dockerfile"))


def test_image_gets_the_files_that_the_package_is_built_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hatch = project["tool"]["hatch"]
    wheel = hatch["build"]["targets"]["wheel"]
    readme = {fragment["path"] for fragment in hatch["metadata"]["hooks"]["fancy-pypi-readme"]["fragments"]}
    needed = {"pyproject.toml", *readme, *wheel["packages"], *wheel.get("force-include", {})}
    needed |= {path.split("/")[0] for path in project["project"]["license-files"]}
    copied = re.findall(r"^COPY (.*) \S+$", (CLUSTER / "Dockerfile").read_text(), flags=re.M)
    assert needed == set(" ".join(copied).split())
    let_through = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in let_through and needed == {line[1:] for line in let_through if line.startswith("!")}


# All files


def test_all_files_have_one_version_of_ray_and_of_raprune() -> None:
    text = "\n".join(path.read_text() for path in CLUSTER.iterdir())
    versions = set(re.findall(r"ray(?:\[[\w,]*\])?==([\d.]+\d)", text)) | set(re.findall(r'rayVersion: "(.*)"', text))
    assert len(versions) == 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, high = re.findall(r"ray\[[\w,]*\]>=([\d.]+),<([\d.]+)", " ".join(project["dependencies"]))[0]
    assert _numbers(low) <= _numbers(versions.pop()) < _numbers(high)
    assert set(re.findall(r"raprune[:-](\d+\.\d+\.\d+)", text)) == {__version__}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


SECRETS = (
    r"AKIA[0-9A-Z]{16}",
    r"-----BEGIN",
    r"\b[0-9a-fA-F]{32,}\b",
    r"\b[A-Za-z0-9+/]{60,}={0,2}(?![\w/])",
    r"(?i)\b(auth_?token|access_?key|secret_?key|password|passwd|api_?key)['\"]?\s*[:=]\s*['\"]?(?![\s$~/{\"'(])\w{6,}",
    r"(?i)\bkind: Secret\b",
)


def secrets_in(text: str) -> list[str]:
    return [found.group() for pattern in SECRETS for found in re.finditer(pattern, text)]


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_a_secret_or_turns_tokens_off(name: str) -> None:
    text = (CLUSTER / name).read_text()
    assert secrets_in(text) == []
    assert "RAY_AUTH_MODE=disabled" not in text and not re.search(r"mode: disabled", text)


@pytest.mark.parametrize(
    "planted",
    [
        "aws: AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "RAY_AUTH_TOKEN=" + "5e" * 32,
        "  auth_token: hunter2hunter2",
        "AWS_SECRET_ACCESS_KEY=" + "aB3" * 20,
        "password='correcthorse'",
        "kind: Secret",
    ],
)
def test_a_planted_secret_is_found(planted: str) -> None:
    assert secrets_in(f"a: b\n{planted}\n")


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("README.md", "Dockerfile.dockerignore")])
def test_ray_reports_nothing_and_nobody_elses_processes_end(name: str) -> None:
    text = (CLUSTER / name).read_text()
    assert re.search(r"""RAY_USAGE_STATS_ENABLED(=|, value: ")0""", text)
    assert not re.search(r"\b(pkill|killall)\b", text)
    commands = [line.strip() for line in text.splitlines() if "ray stop" in line and not line.startswith("#")]
    assert commands == (["- ray stop"] * 2 if name.removesuffix(".yaml") in LAUNCHED else [])


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("README.md", "Dockerfile.dockerignore")])
def test_the_commands_in_a_files_head_are_commands_of_raprune(name: str) -> None:
    import typer

    from raprune.cli import app

    commands: Config = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    head = [line[1:].strip() for line in (CLUSTER / name).read_text().splitlines() if line.startswith("#  ")]
    for line in head:
        if line.startswith("raprune "):
            _, command, *rest = shlex.split(line, comments=True)
            flags = {flag.partition("=")[0] for flag in rest if flag.startswith("--")}
            # `submit` takes what `search` takes.
            known = {option for one in (commands[command], commands["search"]) for p in one.params for option in p.opts}
            assert flags <= known
