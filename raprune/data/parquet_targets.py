"""Parquet files with masks, boxes or numbers beside the images, in the layout of Hugging Face.

    masks    a column of encoded images of one channel, PNG as a rule, whose pixels are class numbers
    boxes    a struct of lists, or a list of structs, with `bbox` and `category`: COCO's left, top, width, height
    numbers  a number or a list of numbers for each image

Images and targets are decoded together, because a target is scaled and cut like its image; both are held in memory.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from PIL import Image

from raprune.data.arrays import ImageShape
from raprune.data.decode import Blob, decodable, decode, fit, placement, probe
from raprune.data.parquet import check_image_type, fetch_images, label_names_of, open_dataset
from raprune.data.source import ArraySource, Sources
from raprune.data.targets import BOXES, COLUMNS, FORMS, MASKS, TargetArray
from raprune.errors import DataError, UsageError
from raprune.spec.job import DataSpec

USUAL = {MASKS: "mask", BOXES: "objects", COLUMNS: "label"}
"""Form of the targets -> the column that holds them where there is no column `data.label_column`."""
BACKGROUND = "background"


def open_parquet_targets(spec: DataSpec, form: str) -> Sources:
    """Open and decode the splits of `spec` with targets of `form`: masks, boxes or numbers.

    With `data.image_size` images are scaled and cut like those of classes, and masks and boxes with them.

    Raises:
        UsageError: if a file is missing, or the split is to be streamed.
        DataError: if a file lacks a column, or a row holds no such image or target.
    """
    if spec.stream:
        raise UsageError(
            f"data.stream is set, but images with {form} are held in memory.",
            hint="Remove data.stream; data.image_size makes the images smaller.",
        )
    if spec.train is None:
        raise UsageError(
            "data.train is not set: the path or URI of the training images in Parquet.",
            hint="For example --train train.parquet --test test.parquet.",
        )
    train, validation, test = (
        None if uri is None else _open(uri, spec, form, field=f"data.{field}")
        for field, uri in (("train", spec.train), ("validation", spec.validation), ("test", spec.test))
    )
    assert train is not None, "data.train is set"
    return Sources(train=train, validation=validation, test=test)


def _open(uri: str, spec: DataSpec, form: str, *, field: str) -> ArraySource:
    dataset = open_dataset(uri, field=field)
    names = dataset.schema.names
    column = USUAL[form] if spec.label_column not in names else spec.label_column
    for name, setting in ((spec.image_column, "data.image_column"), (column, "data.label_column")):
        if name not in names:
            raise DataError(
                f"{uri}: no column {name!r}. Its columns: {', '.join(names)}.",
                hint=f"Name the right column with {setting}.",
            )
    check_image_type(dataset.schema.field(spec.image_column).type, spec.image_column, uri)
    rows = np.arange(dataset.count_rows())
    if not len(rows):
        raise DataError(f"{uri}: no images.", hint="Give a split with at least one row.")
    images = fetch_images(dataset, spec.image_column, rows, uri)
    shape = probe(images(0), image_size=spec.image_size, row=0, where=uri)
    pixels = decode(images, rows.tolist(), shape=shape, resize=spec.image_size is not None, where=uri)
    sizes = [_size(images(row), row, uri) for row in rows.tolist()]
    made = {MASKS: _masks, BOXES: _boxes, COLUMNS: _numbers}[form](dataset, column, sizes, shape, uri)
    return ArraySource(uri, FORMS[form].array(made, len(rows), uri), _names(dataset.schema, column, form), pixels)


def _size(blob: bytes, row: int, where: str) -> tuple[int, int]:
    """Return height and width of an encoded image."""
    with decodable(row, where):
        width, height = Image.open(io.BytesIO(blob)).size
    return height, width


def _masks(
    dataset: pads.Dataset, column: str, sizes: Sequence[tuple[int, int]], shape: ImageShape, where: str
) -> TargetArray:
    """Return the masks, `(N, H, W)`, scaled to the nearest pixel and cut like their images."""
    check_image_type(dataset.schema.field(column).type, column, where)
    count = dataset.count_rows()
    blob: Blob = fetch_images(dataset, column, np.arange(count), where)
    _, height, width = shape
    held = np.empty((count, height, width), np.uint8)
    for row in range(count):
        with decodable(row, where):
            mask = Image.open(io.BytesIO(blob(row)))
            mask.load()
        if len(mask.getbands()) != 1:
            raise DataError(
                f"{where}: the mask in row {row} has {len(mask.getbands())} channels (Pillow mode {mask.mode}).",
                hint="Store class numbers in one channel of 8 bits; 255 is no class.",
            )
        numbers = np.asarray(mask)
        if numbers.max() > 255 or numbers.min() < 0:
            raise DataError(
                f"{where}: the mask in row {row} has the class {numbers.max()}; valid are 0 to 254, and 255.",
                hint="Class numbers count from 0; 255 is no class.",
            )
        if numbers.shape != sizes[row]:
            raise DataError(
                f"{where}: the mask in row {row} is {numbers.shape[0]}x{numbers.shape[1]}, its image "
                f"{sizes[row][0]}x{sizes[row][1]}.",
                hint="A mask has the size of its image; data.image_size scales both.",
            )
        placed = fit(Image.fromarray(numbers.astype(np.uint8)), height, width, Image.Resampling.NEAREST)
        held[row] = np.asarray(placed)
    return held


def _boxes(
    dataset: pads.Dataset, column: str, sizes: Sequence[tuple[int, int]], shape: ImageShape, where: str
) -> TargetArray:
    """Return for each image the mapping that `raprune.data.targets` takes; boxes are scaled and cut like their image.

    A box of which nothing is left in the image is left out. Categories count from 0, and classes from 1.
    """
    found = np.empty(dataset.count_rows(), object)
    for row, objects in enumerate(dataset.to_table(columns=[column])[column].to_pylist()):
        try:
            boxes, categories, crowd = _of_image(objects)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{where}: row {row} of column {column!r} has no boxes: {type(error).__name__}: {error}.",
                hint="Each image needs `bbox`, a list of [left, top, width, height], and `category`, as many numbers.",
            ) from error
        (wide, high), left, top = placement(sizes[row][1], sizes[row][0], shape[1], shape[2])
        scale = np.array([wide / sizes[row][1], high / sizes[row][0]] * 2)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) * scale - [left, top, left, top]
        corners = corners.clip(0, [shape[2], shape[1], shape[2], shape[1]])
        stays = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        found[row] = {"boxes": corners[stays], "labels": categories[stays] + 1, "iscrowd": crowd[stays]}
    return found


def _of_image(objects: Any) -> tuple[TargetArray, TargetArray, TargetArray]:
    """Return boxes `(M, 4)`, categories and crowds of an image, from a struct of lists or a list of structs."""
    if objects is None:
        objects = []
    if not isinstance(objects, Mapping):
        keys = ("bbox", "category", "iscrowd")
        objects = {key: [one[key] for one in objects] for key in keys if all(key in one for one in objects)}
    boxes = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
    categories = np.asarray(objects["category"]).reshape(-1).astype(np.int64)
    crowd = np.asarray(objects.get("iscrowd") or np.zeros(len(boxes))).reshape(-1).astype(np.int64)
    if not len(boxes) == len(categories) == len(crowd):
        raise ValueError(f"{len(boxes)} boxes, {len(categories)} categories")
    return boxes, categories, crowd


def _numbers(
    dataset: pads.Dataset, column: str, sizes: Sequence[tuple[int, int]], shape: ImageShape, where: str
) -> TargetArray:
    """Return the numbers of each image, `(N, K)`."""
    rows = dataset.to_table(columns=[column])[column].to_pylist()
    try:
        return np.asarray(rows, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: column {column!r} has no numbers, or rows of several lengths: {error}.",
            hint="Store a number, or a list of as many numbers, for each image.",
        ) from error


def _names(schema: pa.Schema, column: str, form: str) -> tuple[str, ...] | None:
    """Return the names of the classes: those of the file, and for boxes those of Hugging Face behind the background."""
    if form != BOXES:
        return label_names_of(schema, column)
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
    except (ValueError, KeyError, TypeError):
        return None
    names = _category_names(features)
    return None if names is None else (BACKGROUND, *map(str, names))


def _category_names(features: Any) -> Sequence[object] | None:
    """Return the names of `category`, wherever it stands in the description of the column."""
    if isinstance(features, Mapping):
        category = features.get("category")
        while isinstance(category, Mapping) and "names" not in category and "feature" in category:
            category = category["feature"]
        if isinstance(category, Mapping) and "names" in category:
            return list(category["names"])
    parts = features.values() if isinstance(features, Mapping) else features if isinstance(features, list) else ()
    return next((names for part in parts if (names := _category_names(part)) is not None), None)
