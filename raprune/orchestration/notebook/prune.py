"""One network, cut to a budget in this process, without Ray."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raprune.errors import UsageError
from raprune.orchestration.notebook.budget import limits_of
from raprune.orchestration.notebook.search import JobFields, job_of
from raprune.pruning.export import Single, prune_once, save_single
from raprune.records import Trial
from raprune.spec.budget import Budget


@dataclass(frozen=True, eq=False, repr=False)
class PrunedNetwork:
    """A network that `raprune.prune` made, with its trial and the dense network's value of the task's metric."""

    single: Single

    @property
    def model(self) -> nn.Module:
        """The smaller network, in evaluation mode, on the GPU if there is one."""
        return self.single.model

    @property
    def trial(self) -> Trial:
        """The record of how it was made, with its metrics."""
        return self.single.trial

    @property
    def accuracy(self) -> float:
        """Value of the task's metric on the validation split, at most 1; for classification the accuracy.

        For images without labels it is the fraction on which both networks agree.
        """
        assert self.trial.metrics is not None, "a complete trial has metrics"
        return self.trial.metrics.accuracy

    @property
    def dense_accuracy(self) -> float:
        """Value of the task's metric of the dense network on the validation split, at most 1."""
        return self.single.dense_accuracy

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Write `recipe.json` and `weights.safetensors` to `folder`, which `raprune.load` reads.

        Raises:
            StoreError: if `folder` holds a recipe already or cannot be written.
        """
        save_single(self.single, os.fspath(folder))

    def __repr__(self) -> str:
        return f"PrunedNetwork({self._told()})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self._told())}</p>"

    def _told(self) -> str:
        metrics, proposal = self.trial.metrics, self.trial.proposal
        assert metrics is not None, "a complete trial has metrics"
        return (
            f"{proposal.method}, {proposal.allocation}: {metrics.flops_fraction:.1%} of the FLOPs, "
            f"{metrics.params_fraction:.1%} of the parameters, validation {self.single.metric} {metrics.accuracy:.2%}, "
            f"dense {self.dense_accuracy:.2%}"
        )


def prune(
    model: nn.Module | Callable[[], nn.Module] | str,
    data: object,
    *,
    validation: object = None,
    calibration: object = None,
    method: str = "l2",
    allocation: str = "uniform",
    budget: Budget | Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | str | None = None,
    trained: bool = True,
    finetune: bool = False,
    epochs: float | None = None,
    seed: int | None = None,
    job: JobFields | None = None,
) -> PrunedNetwork:
    """Cut one network to a budget by one method, in this process and without Ray. `model` is not changed.

    `model`, `weights`, `trained` and `job` are as for `raprune.search`, `data` as its `train`, and the defaults as of
    `raprune prune`. Without `validation` a part of `data` measures the accuracies. `finetune` trains the smaller
    network by distillation from the dense one, for `epochs`.

    `data` may be images without labels, an array or a map-style data set of images, for a method that needs none; the
    accuracy is then the agreement with the dense network. `calibration` are such images beside labelled data, which the
    method looks at instead.

    Raises:
        UsageError: if a name or a value is not valid, or the budget is out of reach.
        ModelError, DataError: if network or data do not work.
    """
    if epochs is not None and not finetune:
        raise UsageError("epochs: only with fine-tuning.", hint="Give finetune=True.")
    values = {
        **{f"budget.{name}": value for name, value in limits_of(budget).items()},
        "finalists.train.epochs": epochs,
        "seed": seed,
    }
    spec = job_of(
        model,
        data,
        validation=validation,
        calibration=calibration,
        weights=weights,
        trained=trained,
        values=values,
        job=job,
    )
    return PrunedNetwork(prune_once(spec, method=method, allocation=allocation, finetune=finetune))
