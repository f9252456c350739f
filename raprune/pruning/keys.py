"""Keys of what a method computes once for a network: its scores, and the weights of its own training phase.

Runs share the statistics under these keys, so a change of what a score depends on must change its key here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from raprune.channels.graph import ChannelGraph
from raprune.methods import Method, Regularizer
from raprune.pruning.workload import Workload
from raprune.spec.job import SearchSpec, TrainSpec
from raprune.store.scores import key_of


def phase_spec(spec: SearchSpec, regularizer: Regularizer) -> TrainSpec:
    """Fields of the training phase that the method asks for: those of fine-tuning, without a teacher's logits."""
    phase = spec.finalists.train.decided(epochs=regularizer.epochs, lr=regularizer.lr).by_sgd()
    return phase.model_copy(update={"distillation": 0.0})


def network_content(workload: Workload, graph: ChannelGraph) -> dict[str, Any]:
    """Return the part of a key that identifies the dense network and its data; it reads all weights."""
    data = workload.data.fingerprint
    content = {"weights": workload.weights_hash, "architecture": graph.architecture, "data": data}
    # Keys of classification stay as they were before there were other tasks.
    return content if workload.spec.task == "classification" else content | {"task": workload.spec.task}


def base_key(method: Method, network: Mapping[str, Any], spec: SearchSpec, *, augment: str) -> str:
    """Key of the weights that the method's training phase gives to the network of `network_content`."""
    regularizer = method.regularize()
    assert regularizer is not None, "the method asks for no training"
    content = {
        **network,
        "regularizer": [f"{type(regularizer).__module__}.{type(regularizer).__qualname__}", asdict(regularizer)],
        "training": phase_spec(spec, regularizer).identity(),
        "augment": augment,
        "seed": spec.seed,
    }
    return key_of("network", content)


def score_key(
    method: Method, network: Mapping[str, Any], graph: ChannelGraph, spec: SearchSpec, *, base: str | None, images: int
) -> str:
    """Key of the method's scores of the network of `network_content`, from `images` calibration images.

    `base` is the `base_key` of a method that asks for a training phase.
    """
    content = {
        **network,
        "base": base,
        "groups": graph.widths,
        "calibration": None if method.data_free else [images, spec.search.batch_size, spec.seed],
        # The methods of two users may have the same name.
        "method": f"{type(method).__module__}.{type(method).__qualname__}",
        "settings": method.behind_scores(),
        # Scores count the products of queries and keys; those of networks without attention have the keys they had.
        **({"products": len(graph.products)} if graph.products else {}),
    }
    return key_of(f"scores-{type(method).__name__.lower()}", content)
