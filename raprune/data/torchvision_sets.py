"""The data sets of torchvision, by name. Nothing is downloaded unless `data.download` is set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raprune.data.arrays import LabelArray
from raprune.data.decode import Blob
from raprune.data.source import ArraySource, EncodedRows, EncodedSource, Sources
from raprune.errors import DataError, UsageError
from raprune.spec.job import DataSpec

CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of image files, the same as in torchvision's ImageFolder, so that both number the same files."""

PIECE = 64
"""Number of files that are read together."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files of a folder, one row per file."""

    where: str
    """The folder."""
    names: npt.NDArray[np.bytes_]
    """Paths relative to the folder, in UTF-8, shape `(N,)`. Processes share an array; a list would be copied."""
    labels: LabelArray

    def pieces(self, generator: np.random.Generator | None) -> list[LabelArray]:
        """Return the row numbers in pieces of `PIECE` files; the files are in random order if there is a generator."""
        rows = np.arange(len(self.names)) if generator is None else generator.permutation(len(self.names))
        return [rows[start : start + PIECE] for start in range(0, len(rows), PIECE)]

    def stamp(self) -> str:
        """Return a digest of the paths, labels, sizes and times of the files; 32 threads ask for them."""
        folder = os.path.join(self.where, "").encode()

        def look(name: bytes) -> tuple[int, int]:
            found = os.stat(folder + name)
            return found.st_size, found.st_mtime_ns

        with ThreadPoolExecutor(32) as pool, _readable(self.where):
            known = np.array(list(pool.map(look, self.names, chunksize=PIECE)), dtype=np.int64)
        return hashlib.sha256(b"".join((self.names.tobytes(), self.labels.tobytes(), known.tobytes()))).hexdigest()

    def read(self, rows: LabelArray) -> Iterator[EncodedRows]:
        """Read the files of `rows`, in any order."""
        folder = Path(self.where)
        with _readable(self.where):
            images = [(folder / self.names[row].decode()).read_bytes() for row in rows]
        yield EncodedRows(rows, images, self.labels[rows])


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn the errors of files into a `DataError`."""
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename) if error.filename is not None else "a file"
        raise DataError(
            f"{where}: {name} cannot be read: {error.strerror}.",
            hint="The folder must not change while a search trains on it, and every node must be able to read it.",
        ) from error


def open_torchvision(spec: DataSpec) -> Sources:
    """Open `mnist`, `fashion-mnist`, `cifar10` or `cifar100` in the root folder `spec.train`.

    Raises:
        UsageError: if the data set is not in that folder and `data.download` is not set.
        DataError: if the data set cannot be read or downloaded.
    """
    root = _root(spec)
    return Sources(train=_open(spec, root, train=True), test=_open(spec, root, train=False))


def open_imagefolder(spec: DataSpec) -> Sources:
    """Open a folder with one folder per class, as in torchvision's ImageFolder; `imagenet` has the same layout.

    `spec.train` holds the class folders, or the folder `train/` and optionally `val/` and `test/`; `spec.validation`
    and `spec.test` name other folders for validation and test. Classes are numbered in the order of the names of the
    training folders.

    Raises:
        UsageError: if a folder is missing.
        DataError: if a folder holds no images, or has classes that the training split lacks.
    """
    root = _root(spec)
    if not root.is_dir():
        raise UsageError(
            f"data.train {root}: no such folder.",
            hint="Give a folder that holds train/ and val/, each with one folder per class.",
        )
    has_splits = (root / "train").is_dir()
    train = _folder(root / "train" if has_splits else root, None, field="data.train")
    validation = _split(spec.validation, root / "val" if has_splits else None, taken=spec.test)
    test = _split(spec.test, root / "test" if has_splits else None, taken=spec.validation)
    return Sources(
        train=train,
        validation=None if validation is None else _folder(validation, train.label_names, field="data.validation"),
        test=None if test is None else _folder(test, train.label_names, field="data.test"),
    )


def _split(given: str | None, beside: Path | None, *, taken: str | None) -> Path | None:
    """Return the folder of a split: the `given` one, else the folder `beside` the training split.

    The folder beside is skipped if another split has `taken` it, or if it has no class folders: ImageNet's `test`
    folder has no labels.
    """
    if given is not None:
        return Path(given).expanduser()
    if beside is None or (taken is not None and Path(taken).expanduser().resolve() == beside.resolve()):
        return None
    return beside if any(path.is_dir() for path in beside.glob("*")) else None


def _root(spec: DataSpec) -> Path:
    if spec.train is None:
        raise UsageError(
            f"data.train is not set: the root folder of {spec.name}.",
            hint=f"For example --train ~/data/{spec.name}; --download downloads a torchvision data set into it.",
        )
    return Path(spec.train).expanduser()


def _open(spec: DataSpec, root: Path, *, train: bool) -> ArraySource:
    # Imported here, because torchvision imports torch, which the other sources do not need.
    from torchvision import datasets

    try:
        data: Any = getattr(datasets, CLASSES[spec.name])(str(root), train=train, download=spec.download)
    except RuntimeError as error:
        if spec.download:
            raise DataError(f"{spec.name}: {error}", hint=f"Remove {root} and download the data set again.") from error
        raise UsageError(
            f"data.train {root}: the folder holds no {spec.name}.",
            hint="--download (data.download = true) downloads it; or give the folder that torchvision wrote it to.",
        ) from error
    except OSError as error:
        raise DataError(
            f"{spec.name}: cannot be read or downloaded: {error}",
            hint="Check the folder, its permissions and the network connection.",
        ) from error
    images = np.asarray(data.data, dtype=np.uint8)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    labels = np.asarray(data.targets, dtype=np.int64)
    names = tuple(str(name) for name in data.classes)
    return ArraySource(f"{spec.name} ({'train' if train else 'test'})", labels, names, np.ascontiguousarray(images))


def _folder(folder: Path, names: tuple[str, ...] | None, *, field: str) -> EncodedSource:
    if not folder.is_dir():
        raise UsageError(f"{field} {folder}: no such folder.", hint="Give a folder that holds one folder per class.")
    found = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    names = found if names is None else names
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise DataError(
            f"{folder}: class folders that the training split lacks: {', '.join(unknown[:5])}.",
            hint="All splits need the same class folders.",
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        images = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in EXTENSIONS)
        files += images
        labels += [label] * len(images)
    if not files:
        raise DataError(f"{folder}: no images in class folders.", hint=f"Valid endings: {', '.join(EXTENSIONS)}.")

    def fetch(rows: LabelArray) -> Blob:
        return lambda position: files[rows[position]].read_bytes()

    numbers = np.asarray(labels, dtype=np.int64)
    paths = np.array([str(path.relative_to(folder)).encode() for path in files])
    return EncodedSource(str(folder), numbers, names, fetch, ImageFiles(str(folder), paths, numbers))
