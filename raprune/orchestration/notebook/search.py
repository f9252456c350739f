"""A search from Python: the job is put together from objects and names, then it is carried out as any other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from raprune.channels.evaluating import evaluating
from raprune.data.given import GivenData, first_image, give_data
from raprune.errors import UsageError
from raprune.models.given import give_model
from raprune.orchestration import search as searches
from raprune.orchestration.notebook.budget import limits_of
from raprune.orchestration.notebook.run import OpenedRun
from raprune.results.stages import Stages
from raprune.spec.budget import Budget
from raprune.spec.job import SearchSpec
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from raprune.training.tasks.segmentation import main_logits

JobFields = str | os.PathLike[str] | Mapping[str, Any]
"""Fields of a job: a TOML file, or nested tables as in one."""

CELL = 100
"""Width of the output of a notebook's cell, in characters."""


def search(
    model: nn.Module | Callable[[], nn.Module] | str | SearchSpec,
    train: object = None,
    test: object = None,
    *,
    validation: object = None,
    calibration: object = None,
    budget: Budget | Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | str | None = None,
    trained: bool = True,
    methods: Sequence[str] = (),
    trials: int | None = None,
    finalists: int | None = None,
    epochs: float | None = None,
    workers: int | None = None,
    seed: int | None = None,
    output: str | os.PathLike[str] | None = None,
    track: Sequence[str] = (),
    job: JobFields | None = None,
    resume: str | os.PathLike[str] | None = None,
    console: Console | None = None,
    stages: Stages | None = None,
) -> OpenedRun:
    """Search for the best sub-networks of a model within a budget, on Ray, and return the run.

    `model` is a trained network, a function without arguments that builds it, or a name of `raprune models`. It may be
    defined in a notebook's cell: its structure, or the function, travels to the workers by cloudpickle, its weights as
    arrays. `weights` is a state dict that replaces the network's own weights, or a file for a network with a name.
    `trained=False`: the network is trained first, by the table `dense` of the job.

    `train`, `validation` and `test` are pairs (images, labels) of arrays or tensors, or map-style data sets with their
    own transforms, also inside of a DataLoader. uint8 images are normalised, floats are taken as they are. Without
    `validation` a part of `train` is held out. `train` may instead be the name of a data set. `calibration` are images
    without labels that methods look at instead of training images. `train` may be such images where `validation` has
    labels: finalists then learn from the network's answers to them.

    `track` names trackers that show the run: `mlflow`, `wandb`, `tensorboard`.

    `job` gives any other field, as a TOML file or as nested tables: `job={"search": {"patience": 20}}`. The arguments
    override its fields. A `SearchSpec` as `model` is a whole job by itself.

    `resume` is the folder of a run that was cut off. It goes on with its own job, and needs the same objects again.

    Raises:
        UsageError: if the job cannot be right; nothing was written then.
        RapruneError: if an object cannot travel, or the run failed.
    """
    if isinstance(model, SearchSpec):
        if train is not None or test is not None:
            raise UsageError("model: a whole job names its data.", hint="Leave train and test out.")
        spec = model
    else:
        values = {
            **{f"budget.{name}": value for name, value in limits_of(budget).items()},
            "methods": list(methods) or None,
            "search.trials": trials,
            "finalists.count": finalists,
            "finalists.train.epochs": epochs,
            "resources.workers": workers,
            "seed": seed,
            "track": list(track) or None,
            "output": None if output is None else os.fspath(output),
        }
        spec = job_of(
            model,
            train,
            test,
            validation=validation,
            calibration=calibration,
            weights=weights,
            trained=trained,
            values=values,
            job=job,
        )
        _check_judges(spec)
    console = console or _console()
    if resume is None:
        folder = searches.search(spec, console=console, stages=stages)
    else:
        folder = searches.resume(os.fspath(resume), placed=_placed(spec, resume), console=console, stages=stages)
    return OpenedRun(folder, spec=spec)


def _console() -> Console:
    """The terminal; in a notebook plain lines, because a block that is redrawn would fill the output of the cell."""
    if "ipykernel" in sys.modules:
        return Console(file=sys.stdout, force_jupyter=False, force_terminal=False, width=CELL)
    return Console()


def job_of(
    model: nn.Module | Callable[[], nn.Module] | str,
    train: object,
    test: object = None,
    *,
    validation: object = None,
    calibration: object = None,
    weights: Mapping[str, Tensor] | str | None = None,
    trained: bool = True,
    values: Mapping[str, Any],
    job: JobFields | None = None,
) -> SearchSpec:
    """The job of these objects and names. `values` maps fields to values; None leaves a field as `job` has it.

    Raises:
        UsageError: if a field or an object is not valid.
        ModelError: if the network cannot travel.
    """
    fields = dict(_flat(job)) if isinstance(job, Mapping) else {}
    fields |= {name: value for name, value in values.items() if value is not None}
    given = None
    if not isinstance(model, str):
        if isinstance(weights, str):
            raise UsageError("weights: a file, for a network that is an object.", hint="Load it into the network.")
        given = give_model(model, weights=weights, is_trained=trained)
        fields["model.name"] = given.name
    else:
        fields["model.name"] = model
        if weights is not None and not isinstance(weights, str):
            raise UsageError("weights: a state dict, for a network with a name.", hint="Save it to a file.")
        if weights is not None:
            fields["model.weights"] = weights
    data = None
    if isinstance(train, str):
        _no_objects(test, validation, calibration)
        fields["data.name"] = train
    elif train is not None:
        data = give_data(train, validation=validation, test=test, calibration=calibration)
        network = given.build() if given is not None and data.unlabelled else model
        if isinstance(network, nn.Module):
            data = replace(data, num_classes=_outputs(network, data))
        fields["data.name"] = data.name
    else:
        _no_objects(test, validation, calibration)
    path = None if job is None or isinstance(job, Mapping) else Path(job)
    spec = load_spec(path, fields)
    if given is not None:
        named = {"weights": given.name if given.is_trained else None}
        spec = spec.model_copy(update={"model": spec.model.model_copy(update=named).holding(given)})
    return spec if data is None else spec.model_copy(update={"data": spec.data.holding(data)})


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of nested tables by their dotted names; tables of a method's settings stay tables."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in ("settings", "model.arguments", "data.arguments"):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _check_judges(spec: SearchSpec) -> None:
    """Refuse a search that would be judged by images without labels.

    Raises:
        UsageError: with what takes such images.
    """
    if isinstance(spec.data.given, GivenData) and "validation" in spec.data.given.unlabelled:
        raise UsageError(
            "train: images without labels: a search chooses by the metric on validation images, which needs labels.",
            hint="Give validation=(images, labels) beside them, or labelled data as train and these images as "
            "calibration. One network without any labels: raprune.prune(model, images, method=..., budget=...).",
        )


def _no_objects(test: object, validation: object, calibration: object) -> None:
    for field, split in (("test", test), ("validation", validation), ("calibration", calibration)):
        if split is not None:
            raise UsageError(
                f"{field}: given as an object, and train is not.",
                hint=f'Give train as an object too, or name the file: job={{"data": {{"{field}": ...}}}}.',
            )


def _outputs(model: nn.Module, data: GivenData) -> int | None:
    """Number of logits that the network gives for the first image, or each pixel of it; None if it does not run."""
    first = first_image(data)
    parameter = next(model.parameters(), None)
    try:
        image = torch.from_numpy(first.images).float()
        with torch.inference_mode(), evaluating(model):
            logits = main_logits(model(image if parameter is None else image.to(parameter.device)))
    except Exception:
        # The error is told where the network is built for the run, with the remedy.
        return None
    return int(logits.shape[1]) if isinstance(logits, Tensor) and logits.ndim in (2, 4) else None


def _placed(spec: SearchSpec, run: str | os.PathLike[str]) -> SearchSpec:
    """The job of the run with the objects of `spec`.

    Raises:
        UsageError: if the run has other objects.
        StoreError: if there is no run.
    """
    begun = SearchSpec.model_validate(Store(os.fspath(run)).record().spec)
    for field, before, now in (
        ("model", begun.model.name, spec.model.name),
        ("train", begun.data.name, spec.data.name),
    ):
        if before != now:
            raise UsageError(
                f"{field}: the run has {before}, and now {now} is given.", hint="Give what the run began with."
            )
    return begun.model_copy(
        update={"model": begun.model.holding(spec.model.given), "data": begun.data.holding(spec.data.given)}
    )
