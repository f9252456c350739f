"""Data that a Python session gives as objects: arrays, and map-style data sets with their own transforms.

    train = (images, labels)                 # arrays or tensors: uint8 (N, C, H, W), (N, H, W), (N, H, W, C), or floats
    train = torchvision.datasets.CIFAR10(folder, transform=...)         # anything with __len__ and __getitem__
    train = torch.utils.data.DataLoader(...)                # its data set, its collate_fn and its number of workers

Images that fit into memory are drawn once, unless the transforms of the training items draw random numbers: then every
epoch draws the training items anew. The objects stay in the driver. Only a training set that is drawn anew travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from raprune.data.arrays import ImageArray, ImageShape, LabelArray, Split
from raprune.data.items import TRIED, Items, PackedItems, drawn_under
from raprune.data.source import ArraySource, Source, Sources
from raprune.data.targets import ANY, COLUMNS, FORMS, LABELS, MASKS, TargetArray
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
    calibration: object = None
    """Images without labels that methods look at; None: they look at training images."""
    num_classes: int | None = None
    """Number of classes of the network, where it is known; there may be no image of some of them."""
    unlabelled: frozenset[str] = frozenset()
    """Names of the splits that are images without labels."""

    def __getstate__(self) -> dict[str, object]:
        return vars(GivenData(self.name))


def give_data(
    train: object,
    *,
    validation: object = None,
    test: object = None,
    calibration: object = None,
    num_classes: int | None = None,
) -> GivenData:
    """The data of a search, each split as an object; `calibration` and `train` may be images without labels.

    Raises:
        UsageError: if one of them is none of the forms above, or images are judged on that have no labels.
    """
    splits = {"train": train, "validation": validation, "test": test}
    names = [_name(split, field) for field, split in (splits | {"calibration": calibration}).items()]
    unlabelled = {field for field, split in splits.items() if is_unlabelled(split)}
    for field in sorted(unlabelled - {"train"}):
        raise UsageError(
            f"{field}: images without labels, on which no metric can be measured.",
            hint=f"Give {field} as (images, labels), or leave it out.",
        )
    if "train" in unlabelled and validation is None:
        # It is a part of the training split.
        unlabelled.add("validation")
    return GivenData(
        name=GIVEN + names[0],
        train=train,
        validation=validation,
        test=test,
        calibration=calibration,
        num_classes=num_classes,
        unlabelled=frozenset(unlabelled),
    )


def is_unlabelled(split: object) -> bool:
    """True for images without labels: an array or tensor, or a map-style data set whose items are images alone."""
    if isinstance(split, np.ndarray | Tensor):
        return True
    dataset: Any = split.dataset if isinstance(split, DataLoader) else split
    if dataset is None or _is_pair(dataset) or not len(dataset):
        return False
    try:
        with drawn_under(0):
            first = dataset[0]
    except Exception:
        # The error is told where the items are read.
        return False
    return isinstance(first, np.ndarray | Tensor) or (isinstance(first, tuple | list) and len(first) == 1)


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
    if "train" in data.unlabelled:
        train = _with_zeros(train[:1] if isinstance(train, np.ndarray | Tensor) else train, where, LABELS)
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
        if field in data.unlabelled:
            names = _label_names(split, data.num_classes)
            return _held(
                source_of(_with_zeros(split, where, form, data.num_classes or 1), names, where, seed=seed, form=form)
            )
        names = _label_names(split, data.num_classes) if FORMS[form].has_classes else None
        return source_of(split, names, where, seed=seed, form=form)

    def images(split: object) -> Source:
        # The targets are not looked at, and only tasks of the user's take any number of channels.
        kind, where = ANY if form == ANY else LABELS, "calibration"
        return source_of(_with_zeros(split, where, kind), None, where, seed=seed, form=kind)

    if data.unlabelled and (form not in (LABELS, COLUMNS, MASKS) or data.num_classes is None):
        raise UsageError(
            "train: images without labels, and it is not known what the network's outputs say of them.",
            hint="This needs a built-in task other than detection, and a network as an object that runs on these "
            "images and gives a number for each class.",
        )
    return Sources(
        train=source(data.train, "train"),
        validation=None if data.validation is None else source(data.validation, "validation"),
        test=None if data.test is None else source(data.test, "test"),
        calibration=None if data.calibration is None else images(data.calibration),
        unlabelled=data.unlabelled,
    )


class _ImagesAlone:
    """Items of a data set with zeros in the place of a target, whatever they have there."""

    def __init__(self, dataset: Any, form: str, outputs: int) -> None:
        self._dataset, self._form, self._outputs = dataset, form, outputs

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        item = self._dataset[index]
        image = item[0] if isinstance(item, tuple | list) else item
        zeros = _zeros(self._form, 1, self._outputs, tuple(image.shape[-2:]))[0]
        return image, int(zeros) if self._form == LABELS else zeros


def _zeros(form: str, images: int, outputs: int, size: tuple[int, ...]) -> TargetArray:
    """Return targets of this form that are all zeros; `size` is that of an image, `(H, W)`."""
    if form == COLUMNS:
        return np.zeros((images, outputs), np.float32)
    return np.zeros((images, *size), np.uint8) if form == MASKS else np.zeros(images, np.int64)


def _with_zeros(split: Any, where: str, form: str, outputs: int = 1) -> Any:
    """Return images as a split whose targets are all zeros; `outputs` is the number of a network's outputs.

    Raises:
        UsageError: if they come from a DataLoader with a function of its own that makes batches.
    """
    if isinstance(split, DataLoader):
        from torch.utils.data import default_collate

        if split.collate_fn is not default_collate:
            raise UsageError(
                f"{where}: images without labels from a DataLoader with a collate_fn of its own.",
                hint="Give its data set, whose items are images.",
            )
        split = split.dataset
    if _is_pair(split):
        split = split[0]
    if isinstance(split, np.ndarray | Tensor):
        images = typed(_array(split), where, form)
        return images, _zeros(form, len(images), outputs, images.shape[2:])
    return _ImagesAlone(split, form, outputs)


def _held(source: Source) -> Source:
    """Return a source of images without labels as it is read once, so that each image keeps the answer to it.

    Raises:
        DataError: if the images do not fit into memory.
    """
    if not isinstance(source, ItemsSource):
        return source
    if source.held is None:
        raise DataError(
            f"{source.where}: images without labels, of which {HELD_BYTES / 2**30:.0f} GiB at most are taken.",
            hint="Give fewer, such as a Subset.",
        )
    return replace(source, is_random=False)


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
