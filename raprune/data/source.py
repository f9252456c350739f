"""A part of a data set before it is decoded: labels at once, images by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from raprune.data.arrays import ImageArray, LabelArray, Shape
from raprune.data.decode import Blob, decode, probe, resize_all
from raprune.errors import DataError


class Source(Protocol):
    """Labels, and the images of any rows."""

    @property
    def where(self) -> str:
        """What to call it in messages: its file or folder."""

    @property
    def labels(self) -> LabelArray: ...

    @property
    def label_names(self) -> tuple[str, ...] | None: ...

    def shape(self, image_size: int | None) -> Shape:
        """The shape of every image, as the first one sets it."""

    def read(self, rows: LabelArray, *, shape: Shape, resize: bool) -> ImageArray:
        """The images of `rows`: `(len(rows), *shape)`."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The splits of a data set before they are decoded."""

    train: Source
    validation: Source | None = None
    """None: a part of the training split is held out."""
    test: Source | None = None


class Encoded(NamedTuple):
    """A few rows as they were read."""

    rows: LabelArray
    """Their numbers in the source."""
    images: list[bytes]
    labels: LabelArray


class Files(Protocol):
    """The rows of a source in the files that they lie in, for who reads them bit by bit. It pickles."""

    @property
    def where(self) -> str: ...

    def pieces(self, generator: np.random.Generator | None) -> list[LabelArray]:
        """All row numbers, in parts that are cheap to read by themselves: in random order, or as they lie."""

    def read(self, rows: LabelArray) -> Iterator[Encoded]:
        """A piece or every n-th row of one, in order and a few rows at a time.

        Raises:
            DataError: if they cannot be read.
        """


@dataclass(frozen=True)
class EncodedSource:
    """Images that are encoded, in a table or in files. `fetch(rows)` gives access to the images of these rows."""

    where: str
    labels: LabelArray
    label_names: tuple[str, ...] | None
    fetch: Callable[[LabelArray], Blob]
    files: Files | None = None
    """None: a table in memory."""

    def shape(self, image_size: int | None) -> Shape:
        return probe(self.fetch(np.zeros(1, np.int64))(0), image_size=image_size, row=0, where=self.where)

    def read(self, rows: LabelArray, *, shape: Shape, resize: bool) -> ImageArray:
        numbers: Sequence[int] = rows.tolist()
        return decode(self.fetch(rows), numbers, shape=shape, resize=resize, where=self.where)


@dataclass(frozen=True)
class ArraySource:
    """Images that are an array `(N, C, H, W)` already."""

    where: str
    labels: LabelArray
    label_names: tuple[str, ...] | None
    images: ImageArray

    def shape(self, image_size: int | None) -> Shape:
        channels, height, width = self.images.shape[1:]
        return (channels, height, width) if image_size is None else (channels, image_size, image_size)

    def read(self, rows: LabelArray, *, shape: Shape, resize: bool) -> ImageArray:
        if self.images.shape[1:] == shape:
            return np.ascontiguousarray(self.images[rows])
        if self.images.shape[1] == shape[0] and not resize:
            raise DataError(
                f"{self.where}: images are {self.images.shape[2]}x{self.images.shape[3]}, "
                f"those of the training split {shape[1]}x{shape[2]}.",
                hint="Give data.image_size: the shorter side is scaled to it and the centre cut out.",
            )
        return resize_all(self.images[rows], shape)
