"""What is wrong with a Kubernetes manifest, KubeRay's kinds among them, without a cluster.

Pods and Kubernetes' own kinds are held against Kubernetes' schemas, which the package kubernetes-validate carries. No
Python package carries KubeRay's CRDs: `_CLUSTER` and `_JOB` are those fields of ray.io/v1 that we have a use for, as
https://docs.ray.io/en/master/kuberay/references/api.html has them for KubeRay 1.7. Nothing else is let through, so they
may refuse what KubeRay takes, not the other way round. What Ray's autoscaler reads from a cluster, its own code says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import yaml  # type: ignore[import-untyped]  # it has no types

KUBERNETES = "1.33"

Schema = dict[str, Any]


def problems(manifest: Any) -> list[str]:
    """What Kubernetes, KubeRay's operator and Ray's autoscaler would refuse of one document, each with its place."""
    if not isinstance(manifest, dict) or "kind" not in manifest:
        return ["kind: missing"]
    if manifest.get("apiVersion") != "ray.io/v1":
        return list(_kubernetes(manifest))
    schema = {"RayCluster": _resource(_CLUSTER), "RayJob": _resource(_JOB)}.get(manifest["kind"])
    if schema is None:
        return [f"kind: {manifest['kind']!r} is none of RayCluster, RayJob"]
    found = [
        f"{_place(error.path)}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(manifest)
    ]
    return found or [*_pods(manifest), *_rules(manifest)]


def _object(required: str = "", **fields: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": fields}


_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_NUMBER: Schema = {"type": "number", "minimum": 0}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}
_ANY: Schema = {"type": "object"}
"""Kubernetes' own: judged by its schema."""


def _one_of(*names: str) -> Schema:
    return {"enum": list(names)}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _group(required: str, **fields: Schema) -> Schema:
    shared = {"template": _ANY, "rayStartParams": _TEXTS, "resources": _TEXTS, "labels": _TEXTS}
    return _object(f"template {required}", **shared, **fields)


_CLUSTER = _object(
    "headGroupSpec",
    rayVersion=_TEXT,
    suspend=_FLAG,
    enableInTreeAutoscaling=_FLAG,
    authOptions=_object(mode=_one_of("disabled", "token"), secretName=_TEXT, enableK8sTokenAuth=_FLAG),
    upgradeStrategy=_object(type=_one_of("Recreate", "None")),
    headServiceAnnotations=_TEXTS,
    autoscalerOptions=_object(
        version=_one_of("v1", "v2"),
        upscalingMode=_one_of("Default", "Aggressive", "Conservative"),
        idleTimeoutSeconds=_COUNT,
        image=_TEXT,
        imagePullPolicy=_one_of("Always", "IfNotPresent", "Never"),
        resources=_ANY,
        securityContext=_ANY,
        env=_list(_ANY),
        envFrom=_list(_ANY),
        volumeMounts=_list(_ANY),
    ),
    headGroupSpec=_group("", serviceType=_TEXT, headService=_ANY, enableIngress=_FLAG),
    workerGroupSpecs=_list(
        _group(
            "groupName minReplicas maxReplicas",
            groupName=_TEXT,
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            idleTimeoutSeconds=_COUNT,
            priority=_COUNT,
            numOfHosts=_COUNT,
            scaleStrategy=_ANY,
            suspend=_FLAG,
        )
    ),
)

_JOB = _object(
    entrypoint=_TEXT,
    entrypointNumCpus=_NUMBER,
    entrypointNumGpus=_NUMBER,
    entrypointResources=_TEXT,
    runtimeEnvYAML=_TEXT,
    metadata=_TEXTS,
    jobId=_TEXT,
    submissionMode=_one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterPodTemplate=_ANY,
    submitterConfig=_object(backoffLimit=_COUNT),
    clusterSelector=_TEXTS,
    rayClusterSpec=_CLUSTER,
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
    activeDeadlineSeconds=_COUNT | {"minimum": 1},
    backoffLimit=_COUNT,
    suspend=_FLAG,
)


def _resource(spec: Schema) -> Schema:
    named = _ANY | {"required": ["name"], "properties": {"name": _TEXT}}
    return _object("apiVersion kind metadata spec", apiVersion=_TEXT, kind=_TEXT, metadata=named, spec=spec)


def _kubernetes(manifest: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[str]:
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{_place((*prefix, *error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        yield f"kind: Kubernetes has no {manifest['kind']!r} in {manifest.get('apiVersion')!r}"


def _pods(manifest: dict[str, Any]) -> Iterator[str]:
    """Of the pod templates and of all else that is Kubernetes' own."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
    yield from _kubernetes(body)
    for name, template in _templates(manifest["spec"]):
        spec, metadata = template.get("spec", {}), template.get("metadata", {})
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **metadata}, "spec": spec}
        yield from _kubernetes(pod, (name,))
        mounted = {volume["name"] for volume in spec.get("volumes", [])}
        for container in spec.get("containers", []):
            for mount in container.get("volumeMounts", []):
                if mount.get("name") not in mounted:
                    yield f"{name}: {container['name']} mounts {mount.get('name')!r}, which is no volume of the pod"
            yield from _quantities(name, container.get("resources", {}))
    options = _cluster_of(manifest["spec"]).get("autoscalerOptions", {})
    sidecar = {
        key: value for key, value in options.items() if key in ("resources", "env", "envFrom", "securityContext")
    }
    pod = {"containers": [{"name": "autoscaler", "image": "any", **sidecar}]}
    named = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
    yield from _kubernetes(named, ("autoscalerOptions",))


def _quantities(name: str, resources: dict[str, Any]) -> Iterator[str]:
    """Ray reads what a node has from the limits, and a GPU's request must be its limit."""
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for resource in {"cpu", "memory"} - set(limits):
        yield f"{name}: resources.limits.{resource} is missing: Ray takes it for what the node has"
    for resource, amount in requests.items():
        if "/" in resource and limits.get(resource) != amount:
            yield f"{name}: resources.requests.{resource} is {amount}, its limit {limits.get(resource)}"


def _templates(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if "submitterPodTemplate" in spec:
        yield "submitterPodTemplate", spec["submitterPodTemplate"]
    cluster = _cluster_of(spec)
    if cluster:
        yield "headGroupSpec", cluster["headGroupSpec"]["template"]
    for group in cluster.get("workerGroupSpecs", []):
        yield group["groupName"], group["template"]


def _cluster_of(spec: dict[str, Any]) -> dict[str, Any]:
    cluster: dict[str, Any] = spec.get("rayClusterSpec", {} if "headGroupSpec" not in spec else spec)
    return cluster


def _rules(manifest: dict[str, Any]) -> Iterator[str]:
    """What the operator checks beyond types, and what Ray's autoscaler makes of the cluster."""
    name, spec = manifest["metadata"]["name"], manifest["spec"]
    longest = 47 if manifest["kind"] == "RayJob" else 63
    if len(name) > longest:
        yield f"metadata.name: {len(name)} characters; a {manifest['kind']} takes {longest}"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished: needs shutdownAfterJobFinishes"
    if manifest["kind"] == "RayJob" and ("rayClusterSpec" in spec) == ("clusterSelector" in spec):
        yield "spec: wants one of rayClusterSpec and clusterSelector"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML: no mapping"
    cluster = _cluster_of(spec)
    for group in cluster.get("workerGroupSpecs", []):
        low, high = group["minReplicas"], group["maxReplicas"]
        if not low <= group.get("replicas", low) <= high:
            yield f"{group['groupName']}: replicas {group.get('replicas')} outside of {low} to {high}"
    if cluster.get("authOptions") and _version(cluster.get("rayVersion", "0")) < (2, 52):
        yield "rayVersion: authOptions wants it named, 2.52.0 or newer"
    if cluster:
        yield from _autoscaler(manifest["metadata"], cluster)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _autoscaler(metadata: dict[str, Any], cluster: dict[str, Any]) -> Iterator[str]:
    try:
        autoscaling(metadata, cluster)
    except Exception as error:
        yield f"Ray's autoscaler: {error}"


def autoscaling(metadata: dict[str, Any], cluster: dict[str, Any]) -> dict[str, Any]:
    """What Ray's autoscaler reads from a RayCluster, by its own code: the node types and what each has."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"namespace": "default", **metadata}, "spec": {"workerGroupSpecs": [], **cluster}}
    )
    return config


def _place(path: Any) -> str:
    return ".".join(str(part) for part in path) or "manifest"
