"""The conditions of timings: device, threads, precision, and the key under which a table is stored."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from raprune.channels.graph import ChannelGraph
from raprune.cost.compiled import COMPILE, TENSORRT
from raprune.cost.stopwatch import mode_of
from raprune.cost.timing_target import ServedTarget
from raprune.models.precision import half_precision
from raprune.spec.job import LatencySpec, Multiple
from raprune.store.scores import key_of


def conditions(spec: LatencySpec, *, device: str) -> dict[str, Any]:
    """Return the conditions of the timings as plain data: the device's name, the batch size, the precision."""
    where = torch.device(timed_device(spec, device))
    name = timed_device_name(spec, device)
    if where.type == "cpu":
        name = f"{name}, {spec.threads} thread{'s' * (spec.threads > 1)}"
    return {
        "device": name,
        "batch_size": spec.batch_size,
        "precision": precision_of(spec, where),
        "runtime": spec.runtime,
    }


def timed_device(spec: LatencySpec, device: str) -> str:
    """Return the device that the runtime of `spec` runs on: ONNX Runtime on the CPU, PyTorch on `device`."""
    return "cpu" if spec.runtime == "onnxruntime" else device


def timed_device_name(spec: LatencySpec, device: str) -> str:
    """Return the name of the device on which networks are timed.

    Raises:
        TargetError: if the timing worker of the job does not answer.
    """
    if spec.target is not None:
        return ServedTarget(spec.target).device()
    return device_name(torch.device(timed_device(spec, device)))


def table_key(graph: ChannelGraph, spec: LatencySpec, *, device: str, seed: int = 0, multiple_of: Multiple = 1) -> str:
    """Return the key of this network's table for this device in the statistics. Weights do not affect the key."""
    content = {
        "architecture": graph.architecture,
        "factors": [factor.to_json() for factor in graph.factors],
        # The batch of the report does not affect the table. The runtime follows, so that older tables keep their key,
        # and a target counts by the name of its device.
        "spec": spec.model_dump(mode="json", exclude={"report_batch", "mode", "runtime", "target"}),
        "device": timed_device_name(spec, device),
        "torch": torch.__version__,
        "seed": seed,
        # Tables that smoothed the steps of the hardware away have a key without it.
        "keeps_steps": True,
        # Tables whose whole networks were timed with the weights of others in the caches have a key without it.
        "warm_turns": True,
    }
    if multiple_of != 1:
        content["multiple_of"] = multiple_of
    if spec.runtime == "onnxruntime":
        content["runtime"] = f"onnxruntime {metadata.version('onnxruntime')}"
    elif spec.runtime == TENSORRT:
        content["runtime"] = f"{TENSORRT} {metadata.version('torch_tensorrt')}"
    elif spec.runtime == COMPILE:
        content["runtime"] = COMPILE  # a part of PyTorch, whose version is there
    if spec.runtime != "onnxruntime" and torch.device(device).type == "cuda":
        content |= {"mode": mode_of(spec, torch.device(device)), "libraries": _gpu_libraries()}
    return key_of("latency", content)


def precision_of(spec: LatencySpec, device: torch.device) -> str:
    """Return the precision of the timings on `device`: `float32` or `bfloat16`."""
    if spec.precision == "auto":
        return "bfloat16" if half_precision(device) is torch.bfloat16 else "float32"
    return spec.precision


def _gpu_libraries() -> list[str]:
    """Return the versions of what chooses and runs the kernels: CUDA, cuDNN and the driver."""
    driver = Path("/proc/driver/nvidia/version")
    return [
        str(torch.version.cuda),
        str(torch.backends.cudnn.version()),
        driver.read_text().partition("\n")[0] if driver.exists() else "",
    ]


def device_name(device: torch.device) -> str:
    """Return the device's product name."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cpus() -> int:
    """Return the number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
