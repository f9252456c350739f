"""The division of a streamed training split into validation, a sample in memory, and the stream.

The first division reads the bytes of all files: hours of a slow disk for 140 GB. Its result, a few row numbers, is kept
in the folder of statistics under everything that it depends on, names, sizes and times of the files included. A run
that finds it there reads only the images that it holds in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from raprune.data.arrays import ImageShape, LabelArray, Split
from raprune.data.decode import check_header, decode
from raprune.data.source import EncodedFiles, EncodedRows
from raprune.data.stream import VALIDATION_IMAGES, HashRule, StreamSource, in_order
from raprune.errors import DataError
from raprune.spec.job import DataSpec
from raprune.store.scores import Arrays, Statistics, key_of


class DividedSplit(NamedTuple):
    """A training split divided into a sample, a validation split and a stream."""

    train: Split
    """The sample that stays in memory."""
    validation: Split
    stream: StreamSource
    """All training images."""


def carve(
    files: EncodedFiles,
    spec: DataSpec,
    *,
    rows: int,
    validation_fraction: float,
    shape: ImageShape,
    resize: bool,
    seed: int,
    statistics: Statistics,
) -> DividedSplit:
    """Divide the `rows` rows of `files`, by one pass over their bytes unless `statistics` hold the division.

    Validation gets `validation_fraction` of the rows (0: none), at most `VALIDATION_IMAGES`; the sample has
    `spec.resident_images`; `spec.max_images` limits the rows that are used at all. Rows are divided by their hashes,
    so the fractions are met to within a few rows.

    Raises:
        DataError: if a row cannot be read, or validation or training would be empty.
    """
    used = min(1.0, (spec.max_images or rows) / rows)
    rule = HashRule(seed, min(validation_fraction * used, VALIDATION_IMAGES / rows), used)
    division = _Division(files, rule, shape, resize, rows=rows, resident=spec.resident_images)
    key = key_of("division", division.content())
    known = statistics.get(key)
    if known is None:
        outcome, held = division.scan()
        statistics.put(key, outcome.to_arrays())
    else:
        outcome = _Outcome.from_arrays(known)
        held = division.read(outcome)
    if not len(outcome.sample) or (validation_fraction and not len(outcome.validation)):
        raise DataError(
            f"{files.where}: of {rows:,} images, data.validation_fraction {validation_fraction:g} left "
            f"{len(outcome.validation)} for validation and {outcome.trained} for training.",
            hint="Both splits need at least one image: use more images, or another fraction.",
        )
    train, validation = (division.decoded(chosen, held) for chosen in (outcome.sample, outcome.validation))
    stream = StreamSource(
        files=files, rule=rule, shape=shape, resize=resize, count=outcome.trained, identity=outcome.identity
    )
    return DividedSplit(train, validation, stream)


class _Image(NamedTuple):
    """An encoded image and its label."""

    label: int
    image: bytes


class _Held(NamedTuple):
    """A row of validation or of the sample; rows sort by place."""

    place: float
    row: int
    content: _Image


class _Scanned(NamedTuple):
    trained: int
    held: list[_Held]
    digest: bytes


@dataclass(frozen=True)
class _Outcome:
    """The result of a pass over all files."""

    validation: LabelArray
    """Row numbers of the validation split, ordered by place."""
    sample: LabelArray
    """Row numbers of the sample, ordered by place."""
    trained: int
    """Number of training images."""
    identity: str

    def to_arrays(self) -> Arrays:
        return {
            "validation": self.validation,
            "sample": self.sample,
            "trained": np.array([self.trained]),
            "identity": np.frombuffer(self.identity.encode(), dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> _Outcome:
        identity = arrays["identity"].tobytes().decode()
        return cls(arrays["validation"], arrays["sample"], int(arrays["trained"][0]), identity)


@dataclass(frozen=True)
class _Division:
    """Files that are divided by a rule."""

    files: EncodedFiles
    rule: HashRule
    shape: ImageShape
    resize: bool
    rows: int
    """Number of rows of the files."""
    resident: int
    """Number of images of the sample."""

    def content(self) -> dict[str, object]:
        """Everything that the outcome depends on, as the part of a key."""
        return {
            "files": self.files.stamp(),
            "rule": asdict(self.rule),
            "shape": list(self.shape),
            "resize": self.resize,
            "rows": self.rows,
            "resident": self.resident,
        }

    def scan(self) -> tuple[_Outcome, dict[int, _Image]]:
        """Read all rows; return the outcome, and by row number the images that stay in memory."""
        files, rule = self.files, self.rule
        # Four standard deviations more than the sample needs; the excess is dropped below.
        sampled = rule.validation + (self.resident + 4 * math.sqrt(self.resident)) / self.rows

        def look(encoded: EncodedRows) -> _Scanned:
            for row, image in zip(encoded.rows.tolist(), encoded.images, strict=True):
                check_header(image, shape=self.shape, resize=self.resize, row=row, where=files.where)
            places = rule.places(encoded.images)
            held = np.flatnonzero(places < min(sampled, rule.used))
            return _Scanned(
                trained=int(((places >= rule.validation) & (places < rule.used)).sum()),
                held=[
                    _Held(places[i], int(encoded.rows[i]), _Image(int(encoded.labels[i]), encoded.images[i]))
                    for i in held
                ],
                digest=hashlib.blake2b(places.tobytes() + encoded.labels.tobytes(), digest_size=16).digest(),
            )

        pieces, trained, held, digest = files.pieces(None), 0, list[_Held](), hashlib.sha256()
        for scanned in in_order(look, (part for piece in pieces for part in files.read(piece))):
            trained += scanned.trained
            held += scanned.held
            digest.update(scanned.digest)
        held.sort()
        validation = sum(row.place < rule.validation for row in held)
        held = held[: validation + self.resident]
        numbers = np.array([row.row for row in held], np.int64)
        outcome = _Outcome(
            numbers[:validation], numbers[validation:], trained, identity=f"{digest.hexdigest()} {len(pieces)}"
        )
        return outcome, {row.row: row.content for row in held}

    def read(self, outcome: _Outcome) -> dict[int, _Image]:
        """Read the images of a known outcome that stay in memory, by row number."""
        wanted = np.zeros(self.rows, np.bool_)
        wanted[outcome.validation] = wanted[outcome.sample] = True
        pieces = (piece[wanted[piece]] for piece in self.files.pieces(None))
        parts: Iterable[EncodedRows] = (part for piece in pieces if len(piece) for part in self.files.read(piece))
        return {
            row: _Image(label, image)
            for part in parts
            for row, label, image in zip(part.rows.tolist(), part.labels.tolist(), part.images, strict=True)
        }

    def decoded(self, rows: LabelArray, held: dict[int, _Image]) -> Split:
        """Decode some of the images in memory."""
        chosen = [held[row] for row in rows.tolist()]
        images = decode(
            lambda position: chosen[position].image,
            rows.tolist(),
            shape=self.shape,
            resize=self.resize,
            where=self.files.where,
        )
        return Split(images, np.array([content.label for content in chosen], np.int64))
