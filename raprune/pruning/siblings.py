"""Measure smaller dense networks on the data of a run, to set them beside its front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from raprune.channels.trace import trace
from raprune.cost.flops import CostModel
from raprune.errors import RapruneError, UsageError
from raprune.pruning.preparation import check_same_data, job_data
from raprune.pruning.workload import build_workload
from raprune.results.siblings import Sibling
from raprune.results.stages import COMPARE, LOAD_DATA, Stages
from raprune.results.test_split import read_test
from raprune.spec.job import ModelSpec, SearchSpec
from raprune.store.address import last_part
from raprune.store.folder import Store
from raprune.training.evaluate import evaluate


@dataclass(frozen=True)
class NamedNetwork:
    """A network with the file of its trained weights."""

    model: str
    """A name of `raprune models`, or `package.module:function`."""
    weights: str
    """Path or URI of a file."""

    @classmethod
    def of(cls, text: str) -> NamedNetwork:
        """The network of a value of `--compare`: `MODEL=FILE`.

        Raises:
            UsageError: if a part is missing.
        """
        model, _, weights = text.partition("=")
        if not model or not weights:
            raise UsageError(
                f"--compare {text!r}: must be MODEL=FILE.",
                hint="Name a network as for --model and the file of its trained weights: "
                "--compare resnet18=resnet18.safetensors.",
            )
        return cls(model, weights)


def measure_siblings(run: str, networks: Sequence[NamedNetwork], *, stages: Stages | None = None) -> list[Sibling]:
    """FLOPs, parameters and accuracies of networks on the data of `run`, whose normalisation they must share.

    The test split is evaluated only where the run has evaluated it.

    Raises:
        StoreError: if the run cannot be read, or its data changed.
        UsageError, ModelError: if a network or its weights cannot be loaded, or do not fit the data.
    """
    store, stages = Store(run), stages or Stages()
    described = store.record()
    spec = SearchSpec.model_validate(described.spec)
    is_tested = read_test(store, store.trials()).dense is not None
    stages.begin(LOAD_DATA)
    data = job_data(spec, described)
    check_same_data(data, described)
    found: list[Sibling] = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stages.begin(COMPARE, total=len(networks), unit="networks")
    for network in networks:
        model = ModelSpec(name=network.model, weights=network.weights)
        try:
            workload = build_workload(spec.model_copy(update={"model": model}), data=data, device=device)
        except RapruneError as error:
            raise type(error)(
                f"--compare {network.model}={network.weights}: {error.message}", hint=error.hint
            ) from None
        cost = CostModel(trace(workload.model, workload.example_input()))
        batch_size = spec.search.eval_batch_size
        validation = evaluate(workload.model, workload.validation, task=workload.task, batch_size=batch_size)
        test = None
        if is_tested and workload.test is not None:
            test = evaluate(workload.model, workload.test, task=workload.task, batch_size=batch_size).accuracy
        found.append(
            Sibling(
                name=network.model,
                weights=last_part(network.weights),
                weights_hash=workload.weights_hash,
                flops=cost.dense_flops,
                params=cost.dense_params,
                val_accuracy=validation.accuracy,
                test_accuracy=test,
            )
        )
        stages.step()
    stages.end()
    return found
