"""Data: images from files, torchvision or a user's function become arrays, then batches on the device.

Imports `results` and the rooms above it. Open `dataset.py` first; `stream.py` reads data too large for memory.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from raprune.data.arrays import ImageArray, LabelArray, Split
from raprune.data.calibration import open_calibration, read_calibration
from raprune.data.dataset import Dataset
from raprune.data.division import carve
from raprune.data.normalisation import Normalisation, as_they_are, measure, resolve, unchanged
from raprune.data.parquet import open_digits, open_mnist_sample, open_parquet
from raprune.data.parquet_targets import open_parquet_targets
from raprune.data.shuffle import pool_size
from raprune.data.source import ArraySource, EncodedSource, Source, Sources
from raprune.data.split import stratified
from raprune.data.stream import VALIDATION_IMAGES, classes_in_pool
from raprune.data.targets import ANY, BOXES, COLUMNS, FORMS, LABELS, MASKS, TargetArray
from raprune.data.torchvision_sets import open_imagefolder, open_torchvision
from raprune.data.user import open_user
from raprune.errors import DataError, UsageError
from raprune.plugins import GIVEN, check_name_form, is_user_function
from raprune.spec.job import DataSpec
from raprune.store.scores import Statistics

if TYPE_CHECKING:
    from raprune.data.given import ItemsSource
    from raprune.data.items import PackedItems

__all__ = ["DATASETS", "Dataset", "Normalisation", "Split", "ignored", "load_data", "sorted_stream"]
DATASETS: dict[str, Callable[[DataSpec], Sources]] = {
    "mnist-sample": open_mnist_sample,
    "digits": open_digits,
    "parquet": open_parquet,
    "mnist": open_torchvision,
    "fashion-mnist": open_torchvision,
    "cifar10": open_torchvision,
    "cifar100": open_torchvision,
    "imagefolder": open_imagefolder,
    "imagenet": open_imagefolder,
}

AUGMENT = {"cifar10": "shift-flip", "cifar100": "shift-flip", "imagefolder": "crop-flip", "imagenet": "crop-flip"}
"""Augmentation that `data.augment = "auto"` stands for; "shift" for all other data sets, because a mirrored digit or
letter may be another class."""

STANDARD_SIZE = {"imagenet": 224}

MIXING = 0.5
"""Fraction of the classes of random images below which a stream is said to be sorted."""

FROM_FILES = ("parquet", "imagefolder", "imagenet")
"""Data sets in the user's files: each split has a path of its own, and the training split can be streamed."""


def load_data(
    spec: DataSpec,
    *,
    seed: int,
    default: Normalisation | None = None,
    statistics: Statistics | None = None,
    form: str = LABELS,
) -> Dataset:
    """Load and decode the data set of `spec`.

    A data set without a validation split gets one from its training images, drawn by `seed`. Images are normalised
    by the mean and standard deviation of `spec`, else of `default`, else of the training split. `statistics` keep how
    streamed files were divided, so that they are read as a whole only once. `form` is that of the targets, a name in
    `raprune.data.targets.FORMS`.

    Raises:
        UsageError: if the name is unknown or a file is missing.
        DataError: if the data cannot be read, its splits do not match, or it does not fit into memory.
    """
    sources = _open(spec, seed, form)
    if isinstance(sources, Dataset):
        _refuse_calibration(sources, spec)
        return _normalised(sources, spec)
    source, own = sources.train, sources.validation
    splits = [split for split in (source, own, sources.test) if split is not None]
    num_classes = _num_classes(splits) if FORMS[form].has_classes else _num_outputs(splits, form)
    image_size = spec.image_size or STANDARD_SIZE.get(spec.name)
    shape, resize = source.shape(image_size), image_size is not None
    fraction = spec.validation_fraction if own is None else 0.0

    def read(source: Source, chosen: LabelArray) -> Split:
        return Split(source.read(chosen, shape=shape, resize=resize), source.labels[chosen])

    drawn: PackedItems | None = None
    if isinstance(source, EncodedSource) and source.files is not None and spec.stream:
        train, validation, stream = carve(
            source.files,
            spec,
            rows=len(source.labels),
            validation_fraction=fraction,
            shape=shape,
            resize=resize,
            seed=seed,
            statistics=statistics or Statistics(),
        )
        mixing = classes_in_pool(source.files, source.labels, capacity=pool_size(math.prod(shape), 0))
    else:
        train_rows, validation_rows = _divide(source, spec, fraction, seed)
        items = _items(source, spec)
        drawn = None if items is None else items.trained(train_rows)
        if items is not None and items.held is None:
            train_rows = train_rows[_draw(source.labels[train_rows], spec.resident_images, seed)]
        train, validation, stream = read(source, train_rows), read(source, validation_rows), None
        mixing = 1.0
    if own is not None:
        most = min(spec.max_images or VALIDATION_IMAGES, VALIDATION_IMAGES) if spec.stream else spec.max_images
        validation = read(own, _draw(own.labels, most, seed))
    given = open_calibration(spec) if sources.calibration is None else sources.calibration
    calibration = None
    if given is not None:
        calibration = read_calibration(given, spec, shape=shape, resize=resize, seed=seed)
        _check_numbers(given.where, calibration.images, like=train.images)
    test = None if sources.test is None else read(sources.test, _draw(sources.test.labels, spec.max_images, seed))
    for place, split in ((source, train), (source if own is None else own, validation), (sources.test, test)):
        if place is not None and split is not None:
            _check_numbers(place.where, split.images, like=train.images)
    if np.issubdtype(train.images.dtype, np.floating):
        figures = as_they_are(spec, channels=shape[0])
    else:
        if form == BOXES and default is None:
            # Detectors normalise images themselves.
            default = unchanged(shape[0])
        figures = resolve(spec, channels=shape[0], default=default, measured=lambda: measure(train.images))
    return Dataset(
        name=spec.name,
        train=train,
        validation=validation,
        held_out=own is None,
        test=test,
        num_classes=num_classes,
        form=form,
        label_names=source.label_names or tuple(str(label) for label in range(num_classes)),
        mean=figures.mean,
        std=figures.std,
        origin=figures.origin,
        augment=_augment(spec, source, form),
        stream=stream,
        mixing=mixing,
        calibration=calibration,
        unlabelled=sources.unlabelled,
        drawn=drawn,
    )


def ignored(spec: DataSpec, data: Dataset) -> str | None:
    """Return a warning about the field of `spec` that the data set makes useless, or None if that field is not set."""
    if data.held_out or spec.validation_fraction == DataSpec.model_fields["validation_fraction"].default:
        return None
    return (
        f"data.validation_fraction {spec.validation_fraction:g} is ignored: the data set has its own validation "
        f"split of {len(data.validation):,} images."
    )


def sorted_stream(data: Dataset) -> str | None:
    """Return a warning about streamed files whose order leaves few classes in a batch, or None if the classes mix."""
    if data.mixing >= MIXING:
        return None
    return (
        f"The training files are sorted by class: {pool_size(math.prod(data.image_shape), 0):,} images that the stream "
        f"mixes hold {data.mixing:.0%} of the classes of as many random images. Batches of few classes train badly: "
        f"write the rows in random order, or in smaller row groups."
    )


def _refuse_calibration(data: Dataset, spec: DataSpec) -> None:
    """Refuse calibration images beside a data set that a function of the user's made whole.

    Raises:
        UsageError: if the job names some.
    """
    if spec.calibration is not None:
        raise UsageError(
            f"data.calibration {spec.calibration}: {spec.name} returned a data set that holds all of its images.",
            hint="Give it the field `calibration`, or return a dictionary of splits.",
        )


def _check_numbers(where: str, images: ImageArray, *, like: ImageArray) -> None:
    """Refuse images of another type than those of the training split, and floats that are no numbers.

    Raises:
        DataError: with the types, or with the place of the first such image.
    """
    if images.dtype != like.dtype:
        raise DataError(
            f"{where}: images are {images.dtype}, those of the training split {like.dtype}.",
            hint="Give the images of all splits one type: uint8 is normalised, floats are taken as they are.",
        )
    if np.issubdtype(images.dtype, np.floating):
        wrong = next((place for place, image in enumerate(images) if not np.isfinite(image).all()), None)
        if wrong is not None:
            raise DataError(
                f"{where}: image {wrong} of the {len(images):,} that were read has values that are no finite numbers.",
                hint="Look at the division by the standard deviation, and at the transforms.",
            )


def _items(source: Source, spec: DataSpec) -> ItemsSource | None:
    """Return the source if it is a map-style data set."""
    if isinstance(source, ArraySource | EncodedSource):
        return None
    # Imported here, as in `_open`: it needs torch, and images of files are loaded without.
    from raprune.data.given import ItemsSource

    return source if isinstance(source, ItemsSource) else None


def _augment(spec: DataSpec, source: Source, form: str) -> str:
    """Return the training augmentation; `auto` leaves it to the transforms of a map-style data set.

    Raises:
        UsageError: if the images are to be changed, and their targets would have to change with them.
    """
    if form in (MASKS, BOXES, ANY):
        if spec.augment not in ("auto", "none"):
            raise UsageError(
                f"data.augment {spec.augment!r}: images would be moved, and their targets would not.",
                hint="Leave it out, and change images and targets together in a map-style data set of your own.",
            )
        return "none"
    if spec.augment != "auto":
        return spec.augment
    return "none" if _items(source, spec) is not None else AUGMENT.get(spec.name, "shift")


def _normalised(data: Dataset, spec: DataSpec) -> Dataset:
    """Return the user's data set, normalised by the figures of `spec` where they are given."""
    figures = resolve(spec, channels=data.image_shape[0], default=None, measured=lambda: data.normalisation)
    return replace(data, mean=figures.mean, std=figures.std, origin=figures.origin)


def _open(spec: DataSpec, seed: int, form: str) -> Dataset | Sources:
    if spec.given is not None or spec.name.startswith(GIVEN):
        from raprune.data.given import given_data, open_given

        return open_given(given_data(spec), spec, seed=seed, form=form)
    known = spec.name in DATASETS or is_user_function(spec.name)
    if spec.stream and known and spec.name not in FROM_FILES:
        raise UsageError(
            f"data.stream is set, but data.name {spec.name!r} is loaded as a whole and cannot be streamed.",
            hint=f"Remove data.stream, or give the images as files: {', '.join(FROM_FILES)}.",
        )
    if spec.validation is not None and known and spec.name not in FROM_FILES:
        raise UsageError(
            f"data.validation {spec.validation}: data.name is {spec.name!r}, which reads no such file.",
            hint=f"Valid with {', '.join(FROM_FILES)}. A function of your own returns its validation split as "
            '"validation"; for other data sets, data.validation_fraction of the training split is held out.',
        )
    if spec.name in DATASETS:
        if spec.name == "parquet" and form in (MASKS, BOXES, COLUMNS):
            return open_parquet_targets(spec, form)
        if form not in (LABELS, ANY):
            raise UsageError(
                f"data.name {spec.name!r} has one class for each image; the task needs {FORMS[form].described}.",
                hint="Give Parquet with a column of them (--data parquet), or name a function of your own that returns "
                "such data (package.module:function): docs/tasks.md.",
            )
        return DATASETS[spec.name](spec)
    check_name_form(spec.name, field="data.name")
    if is_user_function(spec.name):

        def of_items(split: object, names: tuple[str, ...] | None, where: str) -> Source:
            from raprune.data.given import source_of

            return source_of(split, names, where, seed=seed, form=form)

        return open_user(spec, form, of_items)
    close = difflib.get_close_matches(spec.name, DATASETS, n=3)
    raise UsageError(
        f"data.name {spec.name!r}: no such data set." + (f" Did you mean {' or '.join(close)}?" if close else ""),
        hint=f"Valid: {', '.join(DATASETS)}, or package.module:function.",
    )


def _num_classes(splits: Sequence[Source]) -> int:
    """Check the labels of all splits, the training split first, and return the number of classes."""
    found: int | None = None
    for split in splits:
        found = _check_labels(split, found)
    assert found is not None, "there is a training split"
    return found


def _num_outputs(splits: Sequence[Source], form: str) -> int:
    """Return the number of outputs of a network for the targets of all splits.

    Raises:
        DataError: if a split has no images, or the splits differ in the shape of their targets.
    """
    first = splits[0]
    for split in splits:
        if not len(split.labels):
            raise DataError(f"{split.where}: no images.", hint="Give a split with at least one row.")
        if not FORMS[form].fits(split.labels, first.labels):
            raise DataError(
                f"{split.where}: targets of an image have shape {split.labels.shape[1:]}, those of {first.where} "
                f"{first.labels.shape[1:]}.",
                hint="Give the targets of all splits one shape.",
            )
    found = max(FORMS[form].count(split.labels) for split in splits)
    return max(found, len(first.label_names or ()))


def _check_labels(source: Source, num_classes: int | None) -> int:
    """Check the labels of a source and return the number of classes.

    Raises:
        DataError: if there are no labels, or a label is outside of `[0, num_classes)`.
    """
    labels = source.labels
    if not len(labels):
        raise DataError(f"{source.where}: no images.", hint="Give a split with at least one row.")
    if num_classes is None:
        names = source.label_names
        # Without class names, a label that is larger than the number of images cannot be a class number.
        num_classes = len(names) if names is not None else min(int(labels.max()) + 1, len(labels))
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise DataError(
            f"{source.where}: the label in row {wrong[0]} is {labels[wrong[0]]}; valid are 0 to {num_classes - 1}.",
            hint="Labels are class numbers from 0, the same in all splits; class names must cover all labels.",
        )
    return num_classes


def _divide(source: Source, spec: DataSpec, fraction: float, seed: int) -> tuple[LabelArray, LabelArray]:
    """Return the rows of the training split, and the `fraction` of all rows that is held out for validation."""
    rows = _draw(source.labels, spec.max_images, seed)
    if not fraction:
        return rows, rows[:0]
    held_out = round(len(rows) * fraction)
    if not 0 < held_out < len(rows):
        raise DataError(
            f"{source.where}: {len(rows)} images with data.validation_fraction {fraction:g} leave "
            f"{held_out} for validation and {len(rows) - held_out} for training.",
            hint="Both splits need at least one image: use more images, or another fraction.",
        )
    validation, train = stratified(_strata(source.labels)[rows], held_out, seed=seed)
    return rows[train], rows[validation]


def _draw(labels: TargetArray, max_images: int | None, seed: int) -> LabelArray:
    if max_images is None or max_images >= len(labels):
        return np.arange(len(labels))
    return stratified(_strata(labels), max_images, seed=seed)[0]


def _strata(labels: TargetArray) -> LabelArray:
    """Return the class of each image by which images are drawn: one class for all where targets are no labels."""
    is_class = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    return labels if is_class else np.zeros(len(labels), np.int64)
