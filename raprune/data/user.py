"""A data set from the user's own function.

    def my_data(**arguments):
        return {
            "train": (images, labels),          # (N, C, H, W), (N, H, W) or (N, H, W, C); integers from 0
            "validation": (images, labels),     # optional: without it, a part of "train" is held out
            "test": (images, labels),           # optional
            "calibration": images,              # optional: methods look at these, which need no labels
            "label_names": ["cat", "dog"],      # optional
        }

Images are uint8 from 0 to 255, which are normalised, or floats, which are taken as they are. For another task than
classification the second array has that task's form (targets.py). A split may also be a
map-style data set, whose items are pairs of an image and its target. The function may also return a
`raprune.data.Dataset`, which keeps its own validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from raprune.data.dataset import Dataset, ImageArray
from raprune.data.source import ArraySource, Source, Sources
from raprune.data.targets import ANY, FORMS, LABELS
from raprune.errors import DataError
from raprune.plugins import load_function
from raprune.spec.job import DataSpec

OfItems = Callable[[object, tuple[str, ...] | None, str], Source]
"""Function that makes the source of a map-style data set, from its class names and its name in messages."""

EXPECTED = 'Return {"train": (images, labels), "test": (images, labels)} with images (N, C, H, W) of uint8 or floats.'


def open_user(spec: DataSpec, form: str, of_items: OfItems) -> Dataset | Sources:
    """Call `package.module:function(**spec.arguments)`; return its `Dataset`, or the sources of its splits.

    Raises:
        UsageError: if there is no such function.
        DataError: if the function fails, or returns something else than the module's docstring says.
    """
    function = load_function(spec.name, field="data.name")
    try:
        result = function(**spec.arguments)
    except Exception as error:
        raise DataError(
            f"data.name {spec.name!r} raised {type(error).__name__}: {error}",
            hint="`raprune check` calls the function alone; data.arguments are its keyword arguments.",
        ) from error
    if isinstance(result, Dataset):
        return result
    if not isinstance(result, Mapping) or "train" not in result:
        raise DataError(f"data.name {spec.name!r} returned {type(result).__name__}.", hint=EXPECTED)
    names = result.get("label_names")
    label_names = None if names is None else tuple(str(name) for name in names)
    train, validation, test = (
        None
        if result.get(name) is None
        else _source(result[name], label_names, form, of_items, where=f"{spec.name} ({name})")
        for name in ("train", "validation", "test")
    )
    if train is None:
        raise DataError(f'data.name {spec.name!r} returned None as "train".', hint=EXPECTED)
    images, where = result.get("calibration"), f"{spec.name} (calibration)"
    return Sources(
        train=train,
        validation=validation,
        test=test,
        calibration=None if images is None else images_alone(np.asarray(images), where, form),
    )


def images_alone(images: ImageArray, where: str, form: str) -> ArraySource:
    """Return the source of images without labels, whose labels are all 0.

    Raises:
        DataError: if they are of another type or shape than images have.
    """
    return ArraySource(where, np.zeros(len(images), np.int64), None, typed(images, where, form))


def _source(pair: Any, label_names: tuple[str, ...] | None, form: str, of_items: OfItems, *, where: str) -> Source:
    if not isinstance(pair, tuple | list) and hasattr(pair, "__getitem__") and hasattr(pair, "__len__"):
        return of_items(pair, label_names, where)
    try:
        images, labels = pair
        images, labels = np.asarray(images), np.asarray(labels)
    except (RuntimeError, TypeError, ValueError) as error:
        # NumPy takes no tensor of a GPU, with a gradient, or of bfloat16.
        raise DataError(f"{where}: not a pair (images, labels): {error}", hint=EXPECTED) from error
    if form != LABELS:
        return ArraySource(
            where, FORMS[form].array(labels, len(images), where), label_names, typed(images, where, form)
        )
    images = typed(images, where, form)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where}: labels are {labels.dtype} of shape {labels.shape}; {len(images)} integers are needed.",
            hint=EXPECTED,
        )
    return ArraySource(where, labels.astype(np.int64), label_names, images)


def typed(images: ImageArray, where: str, form: str) -> ImageArray:
    """Return images of uint8 or of floats, which become float32, as `(N, C, H, W)`.

    Raises:
        DataError: if they are of another type or shape.
    """
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
    elif images.dtype != np.uint8:
        raise DataError(f"{where}: images are {images.dtype}.", hint="Give uint8 from 0 to 255, or floats.")
    # A task of the user's may take any number of channels.
    return images if form == ANY and images.ndim == 4 else channels_first(images, where)


def channels_first(images: ImageArray, where: str) -> ImageArray:
    """Return images `(N, C, H, W)`, `(N, H, W)` or `(N, H, W, C)` as `(N, C, H, W)`.

    Raises:
        DataError: if they have another shape.
    """
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise DataError(f"{where}: images have shape {images.shape}; 1 or 3 channels are needed.", hint=EXPECTED)
