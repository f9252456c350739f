"""A job as a KubeRay `RayJob`: the manifest, as YAML. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml  # type: ignore[import-untyped]  # it has no types

from raprune.errors import UsageError
from raprune.orchestration.jobs.submission import STOP_WAIT_S, Submission, requirement

FOLDER = "/etc/raprune"
"""Folder in the head's pod that holds the job."""

_NAME_LENGTH = 47
"""Maximum length of a job's name: KubeRay derives the names of pods from it."""


@dataclass(frozen=True, kw_only=True)
class Pods:
    """Pods of the job's cluster: a head that computes nothing, and `nodes` workers."""

    image: str
    nodes: int
    cpus: int
    """CPUs of each worker, as are GPUs and memory."""
    gpus: int
    memory: str
    token_secret: str
    """The Kubernetes secret whose key `auth_token` is the Ray cluster's token."""
    secrets: tuple[str, ...] = ()
    """Kubernetes secrets whose keys become environment variables of all pods: the storage's credentials."""


def manifest(submission: Submission, pods: Pods, *, install: str | None = None) -> str:
    """The YAML of a `ConfigMap` that holds the job and of the `RayJob` that runs it.

    The cluster is deleted when the job has ended; a job that failed is tried again, and resumes its run.

    Raises:
        UsageError: if the run would go with the cluster.
    """
    output = submission.spec.output
    if output.startswith("~") or ("://" not in output and not output.startswith("/")):
        raise UsageError(
            "--output: with --kuberay the run would be on the disk of a pod, and go with it.",
            hint="Give s3://bucket/run or gs://bucket/run, or the path of a volume that is mounted into all pods.",
        )
    name = kubernetes_name(submission.name)
    labels = {"app.kubernetes.io/name": "raprune", "app.kubernetes.io/instance": name}
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": labels},
        "data": {"job.toml": submission.toml},
    }
    environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
    if install is not None:
        environment["pip"] = [requirement(install)]
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "entrypoint": f"python -m raprune search {FOLDER}/job.toml --resume",
            "metadata": submission.metadata,
            "runtimeEnvYAML": _yaml(environment),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": 2,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token", "secretName": pods.token_secret},
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
                    "template": _pod("ray-head", pods, {"cpu": "4", "memory": "16Gi"}, config=name),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": pods.nodes,
                        "minReplicas": pods.nodes,
                        "maxReplicas": pods.nodes,
                        "rayStartParams": {},
                        "template": _pod("ray-worker", pods, _worker_resources(pods)),
                    }
                ],
            },
        },
    }
    return _HEAD.format(secret=pods.token_secret, image=pods.image) + yaml.dump_all(
        [config, job], Dumper=_Dumper, sort_keys=False, width=120
    )


def kubernetes_name(text: str) -> str:
    """`text` as a name that Kubernetes takes."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = name if name[:1].isalpha() else f"raprune-{name}"
    return name[:_NAME_LENGTH].strip("-")


_HEAD = """\
# A raprune search as a KubeRay RayJob, for KubeRay 1.6 or newer. The image {image} holds raprune (cluster/Dockerfile)
# and this machine's Ray.
# Once, a token that only the cluster knows:
#   kubectl create secret generic {secret} --from-literal=auth_token="$(python -c 'import secrets; print(secrets.token_hex(32))')"
# Then: kubectl apply -f THIS_FILE; kubectl get rayjob; kubectl logs --follow job/NAME
"""  # noqa: E501


def _pod(container: str, pods: Pods, resources: dict[str, str], *, config: str | None = None) -> dict[str, Any]:
    """The template of a pod, as YAML takes it."""
    one: dict[str, Any] = {
        "name": container,
        "image": pods.image,
        "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
        "resources": {"requests": resources, "limits": resources},
    }
    if pods.secrets:
        one["envFrom"] = [{"secretRef": {"name": name}} for name in pods.secrets]
    spec: dict[str, Any] = {"containers": [one]}
    if config is not None:
        one["volumeMounts"] = [{"name": "job", "mountPath": FOLDER, "readOnly": True}]
        spec["volumes"] = [{"name": "job", "configMap": {"name": config}}]
    return {"spec": spec}


def _worker_resources(pods: Pods) -> dict[str, str]:
    resources = {"cpu": str(pods.cpus), "memory": pods.memory}
    return resources | ({"nvidia.com/gpu": str(pods.gpus)} if pods.gpus else {})


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _yaml(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False))
