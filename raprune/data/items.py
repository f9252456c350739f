"""Map-style data sets of the user: items are drawn with their own transforms, through a `torch.utils.data.DataLoader`.

Items are pairs of an image, a tensor or array `(C, H, W)` or `(H, W)` of uint8 or of floats, and a whole number. uint8
images are normalised as all others are; float images are taken as they are. Transforms that draw random numbers draw
them from a seed, so that a search gives the same result again.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cloudpickle
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from raprune.data.arrays import ImageArray, ImageShape, LabelArray, Split
from raprune.data.augment import Augmentation
from raprune.data.batches import DeviceSplit, EpochDraws
from raprune.data.ranks import ALONE, Ranks
from raprune.data.targets import FORMS, LABELS, TargetArray
from raprune.data.transfer import sent
from raprune.errors import DataError

READ_AT_ONCE = 64
"""Items in a batch of a reading in order."""
TRIED = 32
"""Items that are drawn twice to see if transforms draw random numbers."""

PAIR = "An item is a pair (image, label): a tensor (C, H, W) of uint8 or floats, and a whole number from 0."

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True, eq=False)
class Items:
    """A data set as it is read: the object, and how a `DataLoader` reads it."""

    where: str
    dataset: Any
    """An object with `__len__` and `__getitem__`."""
    collate: Collate | None = None
    """The user's own `collate_fn`."""
    workers: int = 0
    """Number of processes that draw items, for each reader; 0: the reader itself."""
    form: str = LABELS
    """Form of the targets: a name in `raprune.data.targets.FORMS`."""

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, parts: Sequence[Sequence[int]], *, seed: int) -> Iterator[tuple[Tensor, TargetArray]]:
        """Yield images and labels of each part, a list of item numbers, drawn under `seed`.

        Raises:
            DataError: if an item cannot be drawn, or is no image with a label.
        """
        generator = torch.Generator().manual_seed(seed % 2**63)
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=[list(part) for part in parts],
            num_workers=self.workers,
            collate_fn=_Collated(self.where, self.collate, self.form),
            generator=generator,
        )
        with drawn_under(seed):
            batches = iter(loader)
        for number in range(len(parts)):
            try:
                with drawn_under(seed + 1_000_003 * (number + 1)):
                    images, labels = next(batches)
            except DataError:
                raise
            except Exception as error:
                lines = str(error).strip().splitlines() or [""]
                raise DataError(
                    f"{self.where}: drawing the items {_few(parts[number])} raised {type(error).__name__}: {lines[-1]}",
                    hint="Draw them yourself: dataset[i] must give the same kind of item for every i.",
                ) from error
            yield images, labels

    def read(self, rows: LabelArray, *, seed: int, shape: ImageShape | None = None) -> Split:
        """Draw these items into memory.

        Raises:
            DataError: as `batches`, and if the images differ in shape or type.
        """
        numbers = rows.tolist()
        parts = [numbers[start : start + READ_AT_ONCE] for start in range(0, len(numbers), READ_AT_ONCE)]
        images: ImageArray | None = None
        labels: list[TargetArray] = []
        form, at = FORMS[self.form], 0
        for batch, of_batch in self.batches(parts, seed=seed):
            labels.append(of_batch)
            if images is None:
                images = np.empty((len(rows), *batch.shape[1:]), _dtype(batch))
            if not form.fits(of_batch, labels[0]):
                raise DataError(
                    f"{self.where}: targets differ in shape: {_by(of_batch.shape[1:])} and {_by(labels[0].shape[1:])}.",
                    hint="Give the targets of all images one shape.",
                )
            check_alike(batch, images.shape[1:] if shape is None else shape, self.where)
            if _dtype(batch) != images.dtype:
                raise DataError(f"{self.where}: some images are uint8 and others floats.", hint="Give all of one type.")
            images[at : at + len(batch)] = batch.numpy()
            at += len(batch)
        if images is None:
            raise DataError(f"{self.where}: no images.", hint="Give a data set with at least one item.")
        return Split(images, form.joined(labels))

    def is_random(self) -> bool:
        """True if items differ when they are drawn again."""
        rows = np.arange(min(TRIED, len(self)))
        first, second = self.read(rows, seed=1), self.read(rows, seed=2)
        return not np.array_equal(first.images, second.images)

    def packed(self, rows: LabelArray) -> PackedItems:
        """The items of these rows, ready to travel to other processes.

        Raises:
            DataError: if the data set cannot be pickled.
        """
        buffer = io.BytesIO()
        try:
            cloudpickle.dump(self, buffer)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise DataError(
                f"{self.where}: {type(self.dataset).__name__} cannot travel to the workers: "
                f"{type(error).__name__}: {first}",
                hint="Open files and connections in __getitem__ instead of __init__, or give arrays: (images, labels).",
            ) from error
        first_image = self.read(rows[:1], seed=0).images
        channels, height, width = first_image.shape[1:]
        return PackedItems(
            where=self.where,
            content=np.frombuffer(buffer.getvalue(), np.uint8),
            rows=rows,
            shape=(channels, height, width),
            identity=hashlib.sha256(rows.tobytes()).hexdigest()[:16],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedItems:
    """The training items of a data set, which every process draws by itself.

    `content` was pickled by the driver of the same session, and travels to its workers in memory. No file holds it.
    """

    where: str
    content: npt.NDArray[np.uint8]
    rows: LabelArray
    """Numbers of the items that are trained on."""
    shape: ImageShape
    identity: str
    """Digest of the row numbers."""

    def __len__(self) -> int:
        return len(self.rows)

    def opened(self) -> Items:
        """The data set in this process.

        Raises:
            DataError: if its code cannot be imported here.
        """
        try:
            # Bytes that the driver of this session made from its user's own object, never those of a file or a store.
            items: Items = pickle.loads(self.content.data)
        except Exception as error:
            raise DataError(
                f"{self.where}: the data set cannot be made in another process: {type(error).__name__}: {error}",
                hint="The modules of its classes and transforms must be installed on every node.",
            ) from error
        return items


@dataclass(frozen=True)
class DrawnSplit:
    """A training split whose items are drawn anew in each epoch, with their transforms."""

    source: PackedItems
    empty: DeviceSplit
    """A split without images on the device of the batches, with their normalisation and memory format."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def device(self) -> torch.device:
        return self.empty.device

    @property
    def layout(self) -> torch.memory_format:
        return self.empty.layout

    @cached_property
    def items(self) -> Items:
        """The data set, unpickled once."""
        return self.source.opened()

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in the same order each time: normalised `(B, C, H, W)`, labels `(B,)`.

        Raises:
            DataError: if an item cannot be drawn.
        """
        numbers = self.source.rows.tolist()
        parts = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
        for images, labels in self.items.batches(parts, seed=0):
            yield self._placed(images, torch.from_numpy(labels))

    def shuffled(
        self, batch_size: int, generator: torch.Generator, augment: str | Augmentation = "none", ranks: Ranks = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch as `DeviceSplit.shuffled` does, with other random numbers of the transforms in each epoch.

        Raises:
            DataError: if an item cannot be drawn.
        """
        del augment  # the data set's own transforms do it
        epoch = EpochDraws.drawn(len(self), batch_size, generator, "none", self.source.shape, ranks)
        seed = int(torch.randint(2**62, (), generator=generator)) + ranks.rank
        chosen = torch.from_numpy(np.array(self.source.rows))[epoch.rows]
        parts = [part.tolist() for part in chosen.split(epoch.sizes)]
        for images, labels in self.items.batches(parts, seed=seed):
            check_alike(images, self.source.shape, self.source.where)
            yield self._placed(images, torch.from_numpy(labels))

    def _placed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        placed = replace(self.empty, images=sent(images, self.device), labels=sent(labels, self.device))
        return next(placed.batches(len(labels)))


class _Collated:
    """Makes a batch of items: images `(B, C, H, W)` uint8 or float32, labels `(B,)`."""

    def __init__(self, where: str, collate: Collate | None, form: str) -> None:
        self._where, self._collate, self._form = where, collate, form

    def __call__(self, items: list[Any]) -> tuple[Tensor, TargetArray]:
        if self._collate is None:
            pairs = [self._pair(item) for item in items]
            shapes = {tuple(image.shape) for image, _ in pairs}
            if len(shapes) > 1:
                some = " and ".join(_by(shape) for shape in sorted(shapes)[:2])
                raise DataError(
                    f"{self._where}: images differ in shape: {some}.",
                    hint="Give all images one size in the transforms, such as Resize and CenterCrop.",
                )
            images = torch.stack([image for image, _ in pairs])
            return images, self._stacked([label for _, label in pairs])
        images, labels = self._pair_of_batch(self._collate(items))
        images = _typed(images, self._where)
        if self._form == LABELS:
            return images, np.asarray(labels, np.int64).reshape(-1)
        return images, FORMS[self._form].array(labels, len(images), self._where)

    def _stacked(self, labels: list[Any]) -> TargetArray:
        if self._form == LABELS:
            return np.array(labels, np.int64)
        arrays = [np.asarray(label) for label in labels]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            some = " and ".join(_by(shape) for shape in sorted(shapes)[:2])
            raise DataError(
                f"{self._where}: targets differ in shape: {some}.", hint="Give the targets of all images one shape."
            )
        return FORMS[self._form].array(np.stack(arrays), len(arrays), self._where)

    def _pair(self, item: Any) -> tuple[Tensor, Any]:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{self._where}: an item is {_kind(item)}, not a pair.", hint=PAIR)
        image, label = item
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.array(image))
        if not isinstance(image, Tensor):
            raise DataError(
                f"{self._where}: an image is {_kind(image)}, not a tensor.",
                hint="Add a transform that makes one, such as torchvision.transforms.ToTensor().",
            )
        image = image[None] if image.ndim == 2 else image
        if image.ndim != 3:
            raise DataError(f"{self._where}: an image has shape {_by(tuple(image.shape))}.", hint=PAIR)
        if self._form != LABELS:
            return _typed(image, self._where), label
        try:
            number = int(label)
            is_whole = number == label
        except (TypeError, ValueError):
            is_whole = False
        if not is_whole:
            raise DataError(f"{self._where}: a label is {_kind(label)}, not a whole number.", hint=PAIR)
        return _typed(image, self._where), number

    def _pair_of_batch(self, batch: Any) -> tuple[Tensor, Any]:
        if isinstance(batch, tuple | list) and len(batch) == 2 and _is_list_of_images(batch[0]):
            # Detectors take lists of images, and so their collate functions give them.
            batch = torch.stack(list(batch[0])), batch[1]
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Tensor):
            raise DataError(
                f"{self._where}: collate_fn gives {_kind(batch)}, not a pair (images, labels).",
                hint="It must return a tensor (B, C, H, W) and whole numbers (B,).",
            )
        images, labels = batch
        return images, labels


def _is_list_of_images(value: object) -> bool:
    is_list = isinstance(value, tuple | list) and bool(value) and all(isinstance(one, Tensor) for one in value)
    return is_list and len({tuple(one.shape) for one in value}) == 1  # type: ignore[attr-defined]


def check_alike(images: Tensor, shape: Sequence[int], where: str) -> None:
    """Refuse images that have another shape than the first one.

    Raises:
        DataError: with both shapes.
    """
    if tuple(images.shape[1:]) != tuple(shape):
        raise DataError(
            f"{where}: images differ in shape: {_by(tuple(images.shape[1:]))} and {_by(tuple(shape))}.",
            hint="Give all images of all splits one size in the transforms, such as Resize and CenterCrop.",
        )


@contextmanager
def drawn_under(seed: int) -> Iterator[None]:
    """Seed the random numbers of torch, NumPy and Python for the block, and restore them: transforms use any of them.

    The numbers of the training itself, such as those of dropout, stay as they were.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed % 2**63)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _typed(images: Tensor, where: str) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"{where}: images are {images.dtype}.", hint=PAIR)
    return images.float()


def _dtype(images: Tensor) -> Any:
    return np.uint8 if images.dtype == torch.uint8 else np.float32


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__name__}"


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)


def _few(rows: Sequence[int]) -> str:
    return ", ".join(str(row) for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
