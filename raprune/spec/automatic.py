"""Decisions on the fields that a job leaves open, from its network and data: methods, widths, trainings.

A decision is made once, before the search; `run.json` records it, so that a resumed run uses it again. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from raprune.spec.job import DenseTrainSpec, FinetuneSpec, SamplerSpec, SearchSpec
from raprune.spec.recipes import LONG_EPOCHS, Traits, chosen, recipes

OpenSpecT = TypeVar("OpenSpecT", FinetuneSpec, DenseTrainSpec, SamplerSpec)
TrainingT = TypeVar("TrainingT", FinetuneSpec, DenseTrainSpec)

METHODS = ("reconstruction", "taylor", "activation", "fpgm", "l2")
"""A method of the papers that needs no training, and one strong baseline of each kind: by the loss, by activations, by
the distance and by the size of the filters."""

UNLABELLED_METHODS = tuple(name for name in METHODS if name != "taylor")
"""Those of `METHODS` that look at no labels."""

FAST_MULTIPLE = 8
"""Widths that the convolutions of CPUs and GPUs are made for. A ResNet at 30 % of its FLOPs took 0.33 of the dense
network's time for a batch at multiples of 8, and 0.54 at any widths (two CPU cores, batch of 64)."""
NARROWEST = 32
"""Minimum number of channels of the narrowest group for which such widths are fine enough."""
NARROWEST_IN_ONNX = 16
"""This number for ONNX Runtime, whose fast convolutions take no other widths: a ResNet-56 of any widths with 42 % of
the FLOPs took 1.08 of the dense network's time."""

CALIBRATION, LEAST_CALIBRATION, MOST_CALIBRATION = 1 / 16, 256, 1024
"""Fraction of the training images that methods look at, and the bounds of their number. A least-squares repair takes
longer with more images: of MNIST's sample, 500 gave the accuracies of 1,000 in half the time."""

IMAGES = 3_000
"""Number of images of fine-tuning if everything were cut off."""
LEAST_EPOCHS, MOST_EPOCHS = 0.25, 20.0
LEARNING_RATES = ((5_000, 0.05), (80, 0.02), (0, 0.01))
"""Minimum number of optimiser steps for each learning rate. A short training has no time to recover from the damage of
a high rate to weights that were trained and repaired before. `jobs/benchmarks/recipes.py` has arms at half of the rate
for 88 and 704 steps."""


def decided(
    spec: SearchSpec,
    *,
    num_train: int,
    widths: Mapping[str, int],
    traits: Traits | None = None,
    unlabelled: int | None = None,
) -> SearchSpec:
    """Return the job with every field decided that it left open.

    `num_train` is the number of training images, `widths` are the channels of each group of the dense network. By
    `traits` each training gets a recipe, unless it names one; without them a training without a recipe stays as it is,
    as in a run from before there were recipes. `unlabelled` is the number of calibration images where these have no
    labels.
    """
    keep = min((limit for limit in spec.budget.fractions.values() if limit is not None), default=1.0)
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, round(IMAGES * (1 - keep) / num_train, 2)))
    calibration = min(MOST_CALIBRATION, max(LEAST_CALIBRATION, round(CALIBRATION * num_train)))
    if unlabelled is not None:
        calibration = min(MOST_CALIBRATION, unlabelled)
    asked = spec.finalists.train
    train = with_recipe(asked, asked.epochs or epochs, traits)
    if traits is not None and train.teacher_once is None:
        changed = train.decided()
        changes = changed.policy != "none" or max(changed.erase, changed.mixup, changed.cutmix) > 0
        changes = changes or changed.features != 0
        once = traits.is_plain and not changes and (asked.epochs or epochs) >= 2
        train = train.model_copy(update={"teacher_once": once})
    if traits is not None and train.features is None:
        maps = not spec.teacher.name and train.distillation > 0 and not train.teacher_once
        train = train.model_copy(update={"features": "auto" if maps else 0.0})
    if spec.weights is None:
        spec = spec.model_copy(update={"dense": with_recipe(spec.dense, spec.dense.epochs, traits)})
    spec = spec.model_copy(update={"finalists": spec.finalists.model_copy(update={"train": train})})
    if spec.search.multiple_of == "auto" and not spec.budget.limits_latency:
        spec = _with_open_widths(spec)  # no latency is measured that could tell
    if spec.latency.runtime == "onnxruntime" and spec.budget.limits_latency:
        spec = spec.model_copy(update={"search": _with(spec.search, multiple_of="auto")})
    narrowest = NARROWEST_IN_ONNX if spec.latency.runtime == "onnxruntime" else NARROWEST
    steps = (epochs if asked.epochs is None else asked.epochs) * math.ceil(num_train / asked.batch_size)
    return _filled(
        spec,
        methods=METHODS if unlabelled is None else UNLABELLED_METHODS,
        calibration=calibration,
        multiple_of=FAST_MULTIPLE if min(widths.values(), default=1) >= narrowest else 1,
        epochs=epochs,
        lr=next(rate for least, rate in LEARNING_RATES if steps >= least),
    )


def with_recipe(train: TrainingT, epochs: float, traits: Traits | None) -> TrainingT:
    """Return the training with the fields of its recipe that it left open, for so many epochs."""
    name = train.recipe or (None if traits is None else chosen(traits, epochs))
    if name is None:
        return train
    fields = recipes()[name].fields_for(train.batch_size, is_dense=isinstance(train, DenseTrainSpec))
    if traits is not None and traits.has_floats:
        fields.pop("policy", None)
    return _with(train, recipe=name, **fields)


def decided_as(spec: SearchSpec, begun: SearchSpec) -> SearchSpec:
    """Return the job with every field that it left open set as in the run `begun`."""
    if spec.search.multiple_of == "auto":
        spec = _with_open_widths(spec)
    train = _as_begun(spec.finalists.train, begun.finalists.train)
    spec = spec.model_copy(
        update={
            "dense": _as_begun(spec.dense, begun.dense),
            "finalists": spec.finalists.model_copy(update={"train": train}),
        }
    )
    return _filled(
        spec,
        methods=begun.methods,
        calibration=begun.search.calibration,
        multiple_of=begun.search.step,
        epochs=begun.finalists.train.epochs,
        lr=begun.finalists.train.lr,
    )


def _filled(
    spec: SearchSpec,
    *,
    methods: tuple[str, ...],
    multiple_of: int,
    calibration: int,
    epochs: float | None,
    lr: float | None,
) -> SearchSpec:
    search = _with(spec.search, multiple_of=multiple_of, calibration_images=calibration)
    finalists = spec.finalists.model_copy(update={"train": _with(spec.finalists.train, epochs=epochs, lr=lr)})
    return spec.model_copy(update={"methods": spec.methods or methods, "search": search, "finalists": finalists})


def _with_open_widths(spec: SearchSpec) -> SearchSpec:
    return spec.model_copy(update={"search": spec.search.model_copy(update={"multiple_of": None})})


def _as_begun(train: TrainingT, begun: TrainingT) -> TrainingT:
    """The training with its open fields as the run began with them."""
    return _with(train, **{name: getattr(begun, name) for name in type(train).model_fields})


# Fields of any part of a job.
def _with(part: OpenSpecT, **values: Any) -> OpenSpecT:
    """The part of a job with these values in fields that have none."""
    return part.model_copy(update={name: value for name, value in values.items() if getattr(part, name) is None})


def told(asked: SearchSpec, spec: SearchSpec, traits: Traits | None = None) -> dict[str, str]:
    """Return for each field that `asked` left open the decision and its reason."""
    decisions = {}
    if not asked.methods:
        are_unlabelled = spec.methods == UNLABELLED_METHODS
        need = "neither training nor labels" if are_unlabelled else "no training"
        decisions["methods"] = f"{', '.join(spec.methods)}, which need {need}; random and l1 as baselines"
    if asked.finalists.train.epochs is None and spec.finalists.count:
        decisions["fine-tuning"] = f"{spec.finalists.train.epochs:g} epochs for each finalist; --epochs N for longer"
    before, after = asked.finalists.train, spec.finalists.train
    if traits is not None and before.recipe is None and after.recipe is not None and spec.finalists.count:
        length = "below" if (after.epochs or 0.0) < LONG_EPOCHS else "from"
        decisions["recipe"] = (
            f"{after.recipe}, for {traits.kind} and a fine-tuning {length} {LONG_EPOCHS:g} epochs; --recipe NAME for "
            "another"
        )
    if traits is not None and traits.has_floats and after.recipe is not None and before.policy is None:
        left_out = recipes()[after.recipe].fields.get("policy")
        if left_out is not None and spec.finalists.count:
            decisions["policy"] = f"none instead of the recipe's {left_out}, which changes pixels from 0 to 255"
    return decisions
