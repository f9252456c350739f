"""A split of a data set before it is decoded: all labels at once, images by row number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from raprune.data.arrays import ImageArray, ImageShape, LabelArray
from raprune.data.decode import Blob, decode, probe, resize_all
from raprune.data.targets import TargetArray
from raprune.errors import DataError


class Source(Protocol):
    """Labels of a split, and access to the images of any rows."""

    @property
    def where(self) -> str:
        """Name of the source in messages: its file or folder."""

    @property
    def labels(self) -> TargetArray: ...

    @property
    def label_names(self) -> tuple[str, ...] | None: ...

    def shape(self, image_size: int | None) -> ImageShape:
        """Return the shape of every image, which the first image sets; `image_size` replaces height and width."""

    def read(self, rows: LabelArray, *, shape: ImageShape, resize: bool) -> ImageArray:
        """Read the images of `rows` as an array `(len(rows), *shape)`.

        Raises:
            DataError: if an image cannot be read, or has another size and `resize` is False.
        """


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The splits of a data set before they are decoded."""

    train: Source
    validation: Source | None = None
    """The validation split, or None: then a part of the training split is held out."""
    test: Source | None = None
    calibration: Source | None = None
    """Images without labels for calibration, or None: then methods look at training images. Its labels mean nothing."""
    unlabelled: frozenset[str] = frozenset()
    """Names of the splits whose labels stand for none."""


class EncodedRows(NamedTuple):
    """A few rows as they were read, not yet decoded."""

    rows: LabelArray
    """Row numbers in the source."""
    images: list[bytes]
    labels: LabelArray


class EncodedFiles(Protocol):
    """The rows of a source that is stored in files, read piece by piece. Every implementation pickles."""

    @property
    def where(self) -> str: ...

    def pieces(self, generator: np.random.Generator | None) -> list[LabelArray]:
        """Return all row numbers in pieces that are cheap to read: in random order, or in the order of the files."""

    def stamp(self) -> str:
        """Return a digest of the names, sizes and times of the files, without reading them."""

    def read(self, rows: LabelArray) -> Iterator[EncodedRows]:
        """Yield some rows of a piece, in order and a few rows at a time.

        Raises:
            DataError: if the rows cannot be read.
        """


@dataclass(frozen=True)
class EncodedSource:
    """Encoded images in a table or in files. `fetch(rows)` gives access to the images of these rows."""

    where: str
    labels: LabelArray
    label_names: tuple[str, ...] | None
    fetch: Callable[[LabelArray], Blob]
    files: EncodedFiles | None = None
    """The files of the images, or None for a table in memory."""

    def shape(self, image_size: int | None) -> ImageShape:
        return probe(self.fetch(np.zeros(1, np.int64))(0), image_size=image_size, row=0, where=self.where)

    def read(self, rows: LabelArray, *, shape: ImageShape, resize: bool) -> ImageArray:
        numbers: Sequence[int] = rows.tolist()
        return decode(self.fetch(rows), numbers, shape=shape, resize=resize, where=self.where)


@dataclass(frozen=True)
class ArraySource:
    """Images that are already an array of shape `(N, C, H, W)`."""

    where: str
    labels: TargetArray
    label_names: tuple[str, ...] | None
    images: ImageArray

    def shape(self, image_size: int | None) -> ImageShape:
        channels, height, width = self.images.shape[1:]
        return (channels, height, width) if image_size is None else (channels, image_size, image_size)

    def read(self, rows: LabelArray, *, shape: ImageShape, resize: bool) -> ImageArray:
        if self.images.shape[1:] == shape:
            return np.ascontiguousarray(self.images[rows])
        if self.images.shape[1] == shape[0] and not resize:
            raise DataError(
                f"{self.where}: images are {self.images.shape[2]}x{self.images.shape[3]}, "
                f"images of the training split are {shape[1]}x{shape[2]}.",
                hint="Give data.image_size: the shorter side is scaled to it and the centre cut out.",
            )
        if self.labels.ndim > 2:
            raise DataError(
                f"{self.where}: images are {self.images.shape[2]}x{self.images.shape[3]} and not "
                f"{shape[1]}x{shape[2]}, and their targets are not resized with them.",
                hint="Give images of one size with targets for it, and no data.image_size.",
            )
        if self.images.shape[1] != shape[0] and np.issubdtype(self.images.dtype, np.floating):
            raise DataError(
                f"{self.where}: float images have {self.images.shape[1]} channels and not {shape[0]}.",
                hint="Give the images of all splits the same channels: floats are not converted.",
            )
        return resize_all(self.images[rows], shape)
