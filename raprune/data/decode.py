"""Encoded images are decoded once, by threads on all CPU cores, into one uint8 array."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from raprune.data.arrays import ImageArray, ImageShape
from raprune.data.free_memory import check_memory
from raprune.errors import DataError

GREY_MODES = ("1", "L", "LA", "La")
CHUNK = 512
"""Number of images that a thread takes at a time."""

Blob = Callable[[int], bytes]
"""Function from a position to the encoded image, so that the thread that decodes a file also reads it."""


def probe(data: bytes, *, image_size: int | None, row: int, where: str) -> ImageShape:
    """Return the shape of all images of a data set: the first image's channels, and its size or `image_size`.

    Raises:
        DataError: if the image cannot be decoded.
    """
    image = _open(data, row=row, where=where)
    channels = 1 if image.mode in GREY_MODES else 3
    if image_size is not None:
        return channels, image_size, image_size
    return channels, image.height, image.width


def check_header(data: bytes, *, shape: ImageShape, resize: bool, row: int, where: str) -> None:
    """Refuse an image that `decode` would refuse, by its header alone; an image that is cut short further on passes.

    Raises:
        DataError: if the bytes are no image, or the image has another size than `shape` and `resize` is False.
    """
    with decodable(row, where):
        width, height = Image.open(io.BytesIO(data)).size
    if not resize:
        _check_size(height, width, shape, row=row, where=where)


def decode(blob: Blob, rows: Sequence[int], *, shape: ImageShape, resize: bool, where: str) -> ImageArray:
    """Decode the images `blob(0), blob(1), ...` into an array `(len(rows), *shape)`.

    `rows` are the images' row numbers in the source, for messages. With `resize` the shorter side is scaled and the
    centre cut out; without `resize` an image of another size is an error. Grey and colour are converted to the number
    of channels of `shape`.

    Raises:
        DataError: if an image cannot be decoded or differs in size, or the array would not fit into memory.
    """
    check_memory(len(rows) * int(np.prod(shape)), what=f"{where}: {len(rows):,} images of {_size(shape)}")
    images = np.empty((len(rows), *shape), dtype=np.uint8)

    def work(start: int) -> None:
        for position in range(start, min(start + CHUNK, len(rows))):
            row = rows[position]
            image = _open(blob(position), row=row, where=where)
            _write(image, images[position], resize=resize, row=row, where=where)

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        # Consuming the results raises the error of a thread.
        for _ in pool.map(work, range(0, len(rows), CHUNK)):
            pass
    return images


def resize_all(images: ImageArray, shape: ImageShape) -> ImageArray:
    """Resize `images` `(N, C, H, W)` to `(N, *shape)`: scale the shorter side, cut out the centre, convert colours."""
    if np.issubdtype(images.dtype, np.floating):
        return _floats_resized(images, shape)
    channels_last = np.moveaxis(images, 1, -1)
    out = np.empty((len(images), *shape), dtype=np.uint8)
    for source, target in zip(channels_last, out, strict=True):
        image = Image.fromarray(source[..., 0] if source.shape[-1] == 1 else np.ascontiguousarray(source))
        _write(image, target, resize=True, row=0, where="")
    return out


def _floats_resized(images: ImageArray, shape: ImageShape) -> ImageArray:
    """Resize float images `(N, C, H, W)` to `(N, C, *shape[1:])`, each channel by itself, as Pillow has no others."""
    _, height, width = shape
    out = np.empty((*images.shape[:2], height, width), np.float32)
    for channels, resized in zip(images, out, strict=True):
        for channel, target in zip(channels, resized, strict=True):
            target[:] = np.asarray(fit(Image.fromarray(np.ascontiguousarray(channel, np.float32)), height, width))
    return out


def _open(data: bytes, *, row: int, where: str) -> Image.Image:
    with decodable(row, where):
        image = Image.open(io.BytesIO(data))
        image.load()
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{where}: the image in row {row} has more than 8 bits a channel (Pillow mode {image.mode}).",
            hint="Convert the images to 8 bits; raprune holds them as uint8.",
        )
    return image


@contextmanager
def decodable(row: int, where: str) -> Iterator[None]:
    """Turn the errors of Pillow into a `DataError`."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        reason = "not an image that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(
            f"{where}: the image in row {row} cannot be decoded: {reason}.",
            hint="Remove or repair that row; PNG, JPEG, WebP and all other formats of Pillow are valid.",
        ) from error


def _write(image: Image.Image, target: ImageArray, *, resize: bool, row: int, where: str) -> None:
    channels, height, width = target.shape
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (width, height):
        if not resize:
            _check_size(image.height, image.width, (channels, height, width), row=row, where=where)
        image = fit(image, height, width)
    pixels = np.asarray(image)
    if channels == 1:
        target[0] = pixels
    else:
        target[:] = pixels.transpose(2, 0, 1)


def _check_size(height: int, width: int, shape: ImageShape, *, row: int, where: str) -> None:
    if (height, width) != shape[1:]:
        raise DataError(
            f"{where}: images differ in size: row {row} is {height}x{width}, the first is {shape[1]}x{shape[2]}.",
            hint="Give --set data.image_size=224: the shorter side is scaled to it and the centre cut out.",
        )


def fit(
    image: Image.Image, height: int, width: int, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """Return the image with its shorter side scaled, and the centre cut out."""
    size, left, top = placement(image.width, image.height, height, width)
    return image.resize(size, resample).crop((left, top, left + width, top + height))


def placement(image_width: int, image_height: int, height: int, width: int) -> tuple[tuple[int, int], int, int]:
    """Return width and height of a scaled image, and the left and upper edge of what is cut out of it, in pixels."""
    scale = max(height / image_height, width / image_width)
    size = max(width, round(image_width * scale)), max(height, round(image_height * scale))
    return size, (size[0] - width) // 2, (size[1] - height) // 2


def _size(shape: ImageShape) -> str:
    return "x".join(str(extent) for extent in shape)
