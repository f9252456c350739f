"""A training split that is too large to hold: a sample of it in memory, the rest read anew each epoch.

Validation is carved out of the training files without an index. A hash of an image's bytes, keyed by the search's
seed, is its place in [0, 1): the lowest places are validation, the next are the sample that stays in memory, and all
but validation is trained on. So every process tells alone on which side a row lies, copies of one image lie on the
same side, and neither the order of the rows nor their division into files matters.

One pass over the files' bytes finds validation and sample, counts the rest and holds every header against the first
image; a truncated image comes to light when it is trained on.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from raprune.data.arrays import LabelArray, Shape, Split
from raprune.data.decode import check_header, decode
from raprune.data.source import Encoded, Files
from raprune.errors import DataError
from raprune.spec.job import DataSpec

VALIDATION_IMAGES = 20_000
"""Held at most: an accuracy of 75 % is then known to 0.3 points, and more would only slow down every candidate."""

PIECES_A_RANK = 64
"""Pieces are dealt out whole where there are so many for each rank; fewer would leave the ranks with unequal rows."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class HashRule:
    """Which rows are validation and which are trained on, by their places in [0, 1)."""

    seed: int
    validation: float
    """Rows below it are validation."""
    used: float = 1.0
    """Rows from here on are left out."""

    def places(self, images: Iterable[bytes]) -> npt.NDArray[np.float64]:
        """The place of each encoded image."""
        key = self.seed.to_bytes(16, "little")
        hashes = b"".join(hashlib.blake2b(image, digest_size=8, key=key).digest() for image in images)
        # The upper 53 bits: more would round the highest places to 1.
        return (np.frombuffer(hashes, "<u8") >> np.uint64(11)) / 2.0**53

    def trained(self, images: Iterable[bytes]) -> npt.NDArray[np.bool_]:
        """Whether each encoded image is trained on."""
        places = self.places(images)
        return (places >= self.validation) & (places < self.used)


@dataclass(frozen=True, kw_only=True)
class StreamSource:
    """The training rows of some files, as plain data: who holds it can read them. It pickles."""

    files: Files
    rule: HashRule
    shape: Shape
    """Of every image."""
    resize: bool
    """Whether images of other sizes are scaled and cut; else they are errors."""
    count: int
    """Images trained on in an epoch."""
    identity: str
    """A digest of the files' images and of the order in which they lie."""

    def pieces(self, *, seed: int, rank: int = 0, size: int = 1) -> list[LabelArray]:
        """What this rank of so many reads in one epoch: row numbers, in random order.

        The ranks' pieces hold every row once between them. `read` leaves out those that are not trained on, so
        ranks may differ by some images.
        """
        pieces = self.files.pieces(np.random.default_rng(seed))
        if len(pieces) >= size * PIECES_A_RANK:
            return pieces[rank::size]
        return [piece[rank::size] for piece in pieces if len(piece) > rank]

    def read(self, piece: LabelArray) -> Iterator[Split]:
        """The training images of a piece, decoded, a few rows at a time.

        Raises:
            DataError: if they cannot be read or decoded.
        """
        for encoded in self.files.read(piece):
            block = self.decoded(encoded)
            if len(block):
                yield block

    def decoded(self, encoded: Encoded) -> Split:
        """Those of these rows that are trained on."""
        chosen = np.flatnonzero(self.rule.trained(encoded.images))
        images = decode(
            lambda position: encoded.images[chosen[position]],
            encoded.rows[chosen].tolist(),
            shape=self.shape,
            resize=self.resize,
            where=self.files.where,
        )
        return Split(images, encoded.labels[chosen])


class Reader(Protocol):
    """Reads a stream. Ray Data does where there is Ray (`raprune.orchestration.workers.streaming`)."""

    def blocks(self, source: StreamSource, *, seed: int, rank: int, size: int) -> Generator[Split, None, None]:
        """The images of `source.pieces(...)` in that order, some at a time, read ahead. Closing it ends the reading.

        Raises:
            DataError: if they cannot be read or decoded.
        """


class ThreadReader:
    """Reads in the process itself, and decodes by all its processors."""

    def blocks(self, source: StreamSource, *, seed: int, rank: int, size: int) -> Generator[Split, None, None]:
        pieces = source.pieces(seed=seed, rank=rank, size=size)
        encoded = (part for piece in pieces for part in source.files.read(piece))
        return _in_order(source.decoded, encoded)


class Carved(NamedTuple):
    """A training split, divided."""

    train: Split
    """The sample that stays in memory."""
    validation: Split
    stream: StreamSource


def carve(
    files: Files, spec: DataSpec, *, rows: int, validation_fraction: float, shape: Shape, resize: bool, seed: int
) -> Carved:
    """The `rows` rows of `files`, divided by one pass over their bytes.

    Validation is `validation_fraction` of them (0: none), but `VALIDATION_IMAGES` at most, and the sample
    `spec.resident_images`. `spec.max_images` limits all that is used. The shares are met by chance, to a few rows.

    Raises:
        DataError: if a row cannot be read, or validation or training would be empty.
    """
    used = min(1.0, (spec.max_images or rows) / rows)
    rule = HashRule(seed, min(validation_fraction * used, VALIDATION_IMAGES / rows), used)
    # Four standard deviations more than the sample: what is too much is left out below.
    sampled = rule.validation + (spec.resident_images + 4 * math.sqrt(spec.resident_images)) / rows

    def scan(encoded: Encoded) -> _Scanned:
        for row, image in zip(encoded.rows.tolist(), encoded.images, strict=True):
            check_header(image, shape=shape, resize=resize, row=row, where=files.where)
        places = rule.places(encoded.images)
        held = np.flatnonzero(places < min(sampled, used))
        return _Scanned(
            trained=int(((places >= rule.validation) & (places < used)).sum()),
            held=[_Held(places[i], int(encoded.rows[i]), int(encoded.labels[i]), encoded.images[i]) for i in held],
            digest=hashlib.blake2b(places.tobytes() + encoded.labels.tobytes(), digest_size=16).digest(),
        )

    pieces, trained, held, digest = files.pieces(None), 0, list[_Held](), hashlib.sha256()
    for scanned in _in_order(scan, (part for piece in pieces for part in files.read(piece))):
        trained += scanned.trained
        held += scanned.held
        digest.update(scanned.digest)
    held.sort()
    validation = [row for row in held if row.place < rule.validation]
    sample = held[len(validation) : len(validation) + spec.resident_images]
    if not sample or (validation_fraction and not validation):
        raise DataError(
            f"{files.where}: of {rows:,} images, data.validation_fraction {validation_fraction:g} left "
            f"{len(validation)} for validation and {trained} for training.",
            hint="Both need at least one: use more images, or another fraction.",
        )

    def hold(chosen: list[_Held]) -> Split:
        numbers, labels = [row.row for row in chosen], np.array([row.label for row in chosen], np.int64)
        blob = [row.image for row in chosen].__getitem__
        return Split(decode(blob, numbers, shape=shape, resize=resize, where=files.where), labels)

    identity = f"{digest.hexdigest()} {len(pieces)}"
    stream = StreamSource(files=files, rule=rule, shape=shape, resize=resize, count=trained, identity=identity)
    return Carved(hold(sample), hold(validation), stream)


class _Held(NamedTuple):
    """A row of validation or of the sample; they sort by place."""

    place: float
    row: int
    label: int
    image: bytes


class _Scanned(NamedTuple):
    trained: int
    held: list[_Held]
    digest: bytes


def _in_order(work: Callable[[In], Out], items: Iterable[In]) -> Generator[Out, None, None]:
    """`work` of each item in their order, by threads that are only a few items ahead of the reader."""
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
