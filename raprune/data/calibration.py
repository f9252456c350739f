"""Images for calibration, which need no labels: Parquet with a column of images, or a folder of image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raprune.data.arrays import ImageArray, ImageShape, LabelArray, Split
from raprune.data.decode import Blob
from raprune.data.parquet import open_images
from raprune.data.source import EncodedSource, Source
from raprune.data.torchvision_sets import EXTENSIONS
from raprune.errors import DataError
from raprune.spec.job import DataSpec

NO_LABEL = -1
"""Label of an image that has none: a loss that is asked for it fails, and does not go on with a wrong class."""


def unlabelled(images: ImageArray) -> Split:
    """Return images `(N, C, H, W)` as a split in which no image has a label."""
    return Split(images, np.full(len(images), NO_LABEL, np.int64))


def open_calibration(spec: DataSpec) -> Source | None:
    """Open the images at `spec.calibration`, without their labels; None if the job names none.

    A folder with image files, in folders of it as well, is read as such; all else is Parquet.

    Raises:
        UsageError: if there is no such file or folder.
        DataError: if the file is no Parquet file, or lacks the image column.
    """
    if spec.calibration is None:
        return None
    folder = Path(spec.calibration).expanduser()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS) if folder.is_dir() else []
    if not files:
        return open_images(spec.calibration, spec, field="data.calibration")

    def fetch(rows: LabelArray) -> Blob:
        return lambda position: files[rows[position]].read_bytes()

    return EncodedSource(str(folder), np.zeros(len(files), np.int64), None, fetch)


def read_calibration(source: Source, spec: DataSpec, *, shape: ImageShape, resize: bool, seed: int) -> Split:
    """Read the images, at most `data.max_images` and `data.resident_images`, which are drawn by `seed`.

    Raises:
        DataError: if there are none, one cannot be read, or one differs from `shape` and `resize` is False.
    """
    total = len(source.labels)
    if not total:
        raise DataError(f"{source.where}: no images.", hint="Give calibration images, or leave data.calibration out.")
    most = min(total, spec.max_images or total, spec.resident_images)
    rows = np.sort(np.random.default_rng(seed).permutation(total)[:most])
    came = source.shape(None)
    if came[1:] != shape[1:] and not resize:
        raise DataError(
            f"{source.where}: calibration images are {came[1]}x{came[2]}, training images {shape[1]}x{shape[2]}.",
            hint="Give data.image_size: the shorter side is scaled to it and the centre cut out.",
        )
    return unlabelled(source.read(rows, shape=shape, resize=resize))
