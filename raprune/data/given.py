"""Data that a Python session gives as objects: arrays, and map-style data sets with their own transforms.

    train = (images, labels)                 # arrays or tensors: uint8 (N, C, H, W), (N, H, W), (N, H, W, C), or floats
    train = torchvision.datasets.CIFAR10(folder, transform=...)         # anything with __len__ and __getitem__
    train = torch.utils.data.DataLoader(...)                # its data set, its collate_fn and its number of workers

Images that fit into memory are drawn once, unless the transforms of the training items draw random numbers: then every
epoch draws the training items anew. The objects stay in the driver. Only a training set that is drawn anew travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from raprune.data.arrays import ImageArray, ImageShape, LabelArray, Split
from raprune.data.items import TRIED, Items, PackedItems
from raprune.data.source import ArraySource, Source, Sources
from raprune.data.targets import ANY, FORMS, LABELS, TargetArray
from raprune.data.user import typed
from raprune.errors import DataError, UsageError
from raprune.plugins import GIVEN
from raprune.spec.job import DataSpec

HELD_BYTES = 2**30
"""Largest size of the images of a split that are all drawn before the search."""

VALID = "Give (images, labels), a map-style data set, a DataLoader of one, or a name of a data set as train."


@dataclass(frozen=True, eq=False)
class GivenData:
    """The splits as objects of the session; in another process only their name."""

    name: str
    """`object:` and the name of the class."""
    train: object = None
    validation: object = None
    test: object = None
    num_classes: int | None = None
    """Number of classes of the network, where it is known; there may be no image of some of them."""

    def __getstate__(self) -> dict[str, object]:
        return vars(GivenData(self.name))


def give_data(
    train: object, *, validation: object = None, test: object = None, num_classes: int | None = None
) -> GivenData:
    """The data of a search, each split as an object.

    Raises:
        UsageError: if one of them is none of the forms above.
    """
    names = [_name(split, field) for field, split in (("train", train), ("validation", validation), ("test", test))]
    return GivenData(name=GIVEN + names[0], train=train, validation=validation, test=test, num_classes=num_classes)


def given_data(spec: DataSpec) -> GivenData:
    """The objects behind a job's data.

    Raises:
        UsageError: if they are not there now.
    """
    if isinstance(spec.given, GivenData) and spec.given.train is not None:
        return spec.given
    raise UsageError(
        f"data.name {spec.name!r}: the data are objects of a Python session, and no file holds them.",
        hint="Give them again in Python: raprune.search(model, train, test, resume=RUN).",
    )


def first_image(data: GivenData) -> Split:
    """The first training image, with its label.

    Raises:
        DataError: if it is no image with a label.
    """
    where, train = f"train ({data.name.removeprefix(GIVEN)})", data.train
    if _is_pair(train):
        source = _arrays((train[0][:1], train[1][:1]), None, where, ANY)
        return Split(source.images, source.labels)
    return _items(train, where, ANY).read(np.arange(1), seed=0)


def open_given(data: GivenData, spec: DataSpec, *, seed: int, form: str = LABELS) -> Sources:
    """The sources of the splits. Random transforms draw from `seed`.

    Raises:
        DataError: if an image or label is not of the forms above.
    """
    if spec.image_size is not None:
        raise UsageError(
            f"data.image_size {spec.image_size}: not for data that are objects.",
            hint="Resize the images in the transforms of the data set.",
        )

    def source(split: object, field: str) -> Source:
        where = f"{field} ({data.name.removeprefix(GIVEN)})"
        names = _label_names(split, data.num_classes) if FORMS[form].has_classes else None
        return source_of(split, names, where, seed=seed, form=form)

    return Sources(
        train=source(data.train, "train"),
        validation=None if data.validation is None else source(data.validation, "validation"),
        test=None if data.test is None else source(data.test, "test"),
    )


def source_of(split: object, names: tuple[str, ...] | None, where: str, *, seed: int, form: str) -> Source:
    """The source of one split: a pair of arrays, a map-style data set, or a DataLoader of one.

    Raises:
        DataError: if an image or target is not of the form that is needed.
    """
    if _is_pair(split):
        return _arrays(split, names, where, form)
    return _drawn(_items(split, where, form), names, seed)


@dataclass(frozen=True, eq=False)
class ItemsSource:
    """A split of a map-style data set."""

    items: Items
    labels: TargetArray
    label_names: tuple[str, ...] | None
    held: Split | None
    """All images, where they fit into memory."""
    is_random: bool
    """True if the transforms draw random numbers."""
    seed: int

    @property
    def where(self) -> str:
        return self.items.where

    def shape(self, image_size: int | None) -> ImageShape:
        assert image_size is None, "refused by `open_given`"
        first = self.held.images if self.held is not None else self.items.read(np.arange(1), seed=self.seed).images
        channels, height, width = first.shape[1:]
        return channels, height, width

    def read(self, rows: LabelArray, *, shape: ImageShape, resize: bool) -> ImageArray:
        if self.held is None:
            return self.items.read(rows, seed=self.seed, shape=shape).images
        if self.held.images.shape[1:] != shape:
            came = "x".join(map(str, self.held.images.shape[1:]))
            raise DataError(
                f"{self.where}: images are {came}, images of the training split are {'x'.join(map(str, shape))}.",
                hint="Give all images of all splits one size in the transforms.",
            )
        return np.ascontiguousarray(self.held.images[rows])

    def trained(self, rows: LabelArray) -> PackedItems | None:
        """The items for processes that train on them; None where images in memory serve as well."""
        return None if self.held is not None and not self.is_random else self.items.packed(rows)


def _name(split: object, field: str) -> str:
    """Name of a split's object for messages and for the run."""
    if split is None:
        if field == "train":
            raise UsageError("train: no data.", hint=VALID)
        return ""
    if _is_pair(split):
        return "arrays"
    dataset = split.dataset if isinstance(split, DataLoader) else split
    if isinstance(dataset, IterableDataset):
        raise UsageError(
            f"{field}: a {type(dataset).__name__} can only be read from its beginning.",
            hint="A search draws images by number: give a data set with __len__ and __getitem__.",
        )
    if isinstance(split, str | bytes | Mapping) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise UsageError(f"{field}: a {type(split).__name__} is no data set.", hint=VALID)
    while hasattr(dataset, "dataset"):
        # A `Subset` says less than what it is a part of.
        dataset = dataset.dataset
    return type(dataset).__name__


def _is_pair(split: object) -> TypeGuard[tuple[Any, Any]]:
    """True for (images, labels); a list of two items is a small data set."""
    return isinstance(split, tuple | list) and len(split) == 2 and isinstance(split[0], np.ndarray | Tensor)


def _items(split: object, where: str, form: str) -> Items:
    if isinstance(split, DataLoader):
        from torch.utils.data import default_collate

        collate = None if split.collate_fn is default_collate else split.collate_fn
        return Items(where, split.dataset, collate=collate, workers=split.num_workers, form=form)
    return Items(where, split, form=form)


def _drawn(items: Items, names: tuple[str, ...] | None, seed: int) -> ItemsSource:
    if not len(items):
        raise DataError(f"{items.where}: no images.", hint="Give a data set with at least one item.")
    first = items.read(np.arange(1), seed=seed)
    fits = len(items) * first.images.nbytes <= HELD_BYTES
    held = items.read(np.arange(len(items)), seed=seed) if fits else None
    labels = held.labels if held is not None else _all_labels(items, seed)
    return ItemsSource(items, labels, names, held, items.is_random(), seed)


def _all_labels(items: Items, seed: int) -> TargetArray:
    """The labels of a data set whose images do not fit into memory: its `targets`, where these are its labels."""
    targets = getattr(items.dataset, "targets", None)
    tried = np.arange(min(TRIED, len(items)))
    if items.form == LABELS and targets is not None and len(targets) == len(items):
        found = np.asarray(targets)
        if np.issubdtype(found.dtype, np.integer) and np.array_equal(found[tried], items.read(tried, seed=seed).labels):
            return found.astype(np.int64)
    parts = [range(start, min(start + TRIED, len(items))) for start in range(0, len(items), TRIED)]
    return FORMS[items.form].joined([labels for _, labels in items.batches(parts, seed=seed)])


def _arrays(pair: tuple[Any, Any], names: tuple[str, ...] | None, where: str, form: str) -> ArraySource:
    images, labels = map(_array, pair)
    if form != LABELS:
        return ArraySource(where, FORMS[form].array(labels, len(images), where), names, typed(images, where, form))
    images = typed(images, where, form)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where}: labels are {labels.dtype} of shape {labels.shape}; {len(images)} integers are needed.",
            hint="Labels are class numbers from 0.",
        )
    return ArraySource(where, labels.astype(np.int64), names, images)


def _array(part: Any) -> npt.NDArray[Any]:
    """Return an array or tensor of any device as an array; NumPy has no type for bfloat16, so floats get float32."""
    if not isinstance(part, Tensor):
        return np.asarray(part)
    part = part.detach().cpu()
    return np.asarray(part.float() if part.is_floating_point() else part)


def _label_names(split: object, num_classes: int | None) -> tuple[str, ...] | None:
    """Names of the classes: those of the data set, or numbers, as many as the network has classes."""
    dataset = split.dataset if isinstance(split, DataLoader) else split
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)
    known = [str(name) for name in classes] if isinstance(classes, list | tuple) else []
    if num_classes is None:
        return tuple(known) or None
    return tuple(known[:num_classes]) + tuple(str(number) for number in range(len(known), num_classes))
