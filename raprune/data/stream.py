"""A training split that is too large for memory: a sample stays in memory, the whole split is read again each epoch.

Validation is drawn from the training files without an index. A hash of an image's bytes, keyed by the search's seed,
gives its place in [0, 1): the lowest places are validation, the next places are the sample that stays in memory, and
all images except validation are trained on. So every process can tell by itself the split of a row, copies of one
image are in the same split, and neither the order of the rows nor their division into files matters.

One pass over the files' bytes finds validation and sample, counts the other rows, and compares every header with the
first image; a truncated image is found when it is trained on.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from raprune.data.arrays import ImageShape, LabelArray, Split
from raprune.data.decode import decode
from raprune.data.source import EncodedFiles, EncodedRows

VALIDATION_IMAGES = 20_000
"""Maximum number of validation images: the standard error of an accuracy of 75 % is then 0.3 points, and more images
would only slow down every candidate."""

PIECES_A_RANK = 64
"""Minimum number of pieces per rank to give each rank whole pieces; fewer pieces would give the ranks unequal rows."""

POOLS = 4
"""Number of pools whose classes are counted."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class HashRule:
    """The division of rows into validation and training, by their places in [0, 1)."""

    seed: int
    validation: float
    """Rows with a place below this one are validation."""
    used: float = 1.0
    """Rows from this place on are not used."""

    def places(self, images: Iterable[bytes]) -> npt.NDArray[np.float64]:
        """Return the place of each encoded image, shape `(N,)`, in [0, 1)."""
        key = self.seed.to_bytes(16, "little")
        hashes = b"".join(hashlib.blake2b(image, digest_size=8, key=key).digest() for image in images)
        # The upper 53 bits: more would round the highest places to 1.
        return (np.frombuffer(hashes, "<u8") >> np.uint64(11)) / 2.0**53

    def trained(self, images: Iterable[bytes]) -> npt.NDArray[np.bool_]:
        """Return True for each encoded image that is trained on, shape `(N,)`."""
        places = self.places(images)
        return (places >= self.validation) & (places < self.used)


@dataclass(frozen=True, kw_only=True)
class StreamSource:
    """The training rows of some files, as plain data that pickles; any process can read the rows with it."""

    files: EncodedFiles
    rule: HashRule
    shape: ImageShape
    """Shape of every image."""
    resize: bool
    """True if images of other sizes are scaled and cut; otherwise such an image is an error."""
    count: int
    """Number of training images in an epoch."""
    identity: str
    """A digest of the files' images and of their order."""

    def pieces(self, *, seed: int, rank: int = 0, size: int = 1) -> list[LabelArray]:
        """Return the row numbers that rank `rank` of `size` reads in one epoch, in random order.

        The pieces of all ranks hold every row once. `read` leaves out the rows that are not trained on, so the ranks'
        numbers of images may differ slightly.
        """
        pieces = self.files.pieces(np.random.default_rng(seed))
        if len(pieces) >= size * PIECES_A_RANK:
            return pieces[rank::size]
        return [piece[rank::size] for piece in pieces if len(piece) > rank]

    def read(self, piece: LabelArray) -> Iterator[Split]:
        """Yield the decoded training images of a piece, a few rows at a time.

        Raises:
            DataError: if the images cannot be read or decoded.
        """
        for encoded in self.files.read(piece):
            block = self.decoded(encoded)
            if len(block):
                yield block

    def decoded(self, encoded: EncodedRows) -> Split:
        """Decode the rows that are trained on."""
        chosen = np.flatnonzero(self.rule.trained(encoded.images))
        images = decode(
            lambda position: encoded.images[chosen[position]],
            encoded.rows[chosen].tolist(),
            shape=self.shape,
            resize=self.resize,
            where=self.files.where,
        )
        return Split(images, encoded.labels[chosen])


def classes_in_pool(files: EncodedFiles, labels: LabelArray, *, capacity: int) -> float:
    """Return how many classes a pool of `capacity` images holds, as a fraction of those that random images hold.

    The pool is filled piece by piece as in an epoch. The fraction is 1 if the rows are in random order, and near 0 if
    they are sorted by class in pieces as large as the pool. `labels`: of all rows.
    """
    if capacity >= len(labels):
        return 1.0
    found = expected = 0
    for seed in range(POOLS):
        generator, taken, rows = np.random.default_rng(seed), 0, list[LabelArray]()
        for piece in files.pieces(generator):
            rows.append(piece[: capacity - taken])
            taken += len(rows[-1])
            if taken == capacity:
                break
        found += len(np.unique(labels[np.concatenate(rows)]))
        expected += len(np.unique(labels[generator.choice(len(labels), capacity, replace=False)]))
    return found / expected


class StreamReader(Protocol):
    """Protocol of a reader of streams. `raprune.orchestration.workers.streaming` implements it by Ray Data."""

    def blocks(self, source: StreamSource, *, seed: int, rank: int, size: int) -> Generator[Split, None, None]:
        """Yield the images of `source.pieces(...)` in order, some at a time, read ahead. Closing ends the reading.

        Raises:
            DataError: if the images cannot be read or decoded.
        """


class ThreadReader:
    """StreamReader in the process itself, which decodes by threads on all CPU cores."""

    def blocks(self, source: StreamSource, *, seed: int, rank: int, size: int) -> Generator[Split, None, None]:
        pieces = source.pieces(seed=seed, rank=rank, size=size)
        encoded = (part for piece in pieces for part in source.files.read(piece))
        return in_order(source.decoded, encoded)


def in_order(work: Callable[[In], Out], items: Iterable[In]) -> Generator[Out, None, None]:
    """Yield `work(item)` for each item in order, computed by threads that run only a few items ahead of the reader."""
    threads = min(32, os.cpu_count() or 1)
    pending: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
