"""A made set of shapes with masks, for semantic segmentation: discs, squares and triangles on noise.

    raprune search jobs/lraspp-shapes.toml

The same seed gives the same images. Classes are `background`, `disc`, `square` and `triangle`; each image has up to
three shapes, whose colours and brightness say nothing of their class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

CLASSES = ("background", "disc", "square", "triangle")
"""Names of the classes, by the numbers in the masks."""

Images = npt.NDArray[np.uint8]


def segmentation(*, train: int = 2000, test: int = 500, size: int = 64, seed: int = 0) -> dict[str, Any]:
    """Return the splits for `data.name = "jobs.shapes:segmentation"`: images and masks.

    Images have shape `(N, 3, size, size)`, masks `(N, size, size)`; `train` and `test` are numbers of images.
    """
    generator = np.random.default_rng(seed)
    return {
        "train": drawn(train, size, generator),
        "test": drawn(test, size, generator),
        "label_names": list(CLASSES),
    }


def drawn(count: int, size: int, generator: np.random.Generator) -> tuple[Images, Images]:
    """Draw `count` images and their masks."""
    images = np.empty((count, 3, size, size), np.uint8)
    masks = np.zeros((count, size, size), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        ground = generator.uniform(40, 215, 3)
        canvas = ground[:, None, None] + generator.normal(0, 18, (3, size, size))
        for _ in range(generator.integers(1, 4)):
            kind = int(generator.integers(1, len(CLASSES)))
            inside = shape(kind, size, generator)
            colour = np.clip(ground + generator.choice([-1, 1], 3) * generator.uniform(45, 110, 3), 0, 255)
            canvas[:, inside] = colour[:, None] + generator.normal(0, 18, (3, int(inside.sum())))
            mask[inside] = kind
        image[:] = np.clip(canvas, 0, 255)
    return images, masks


def shape(kind: int, size: int, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return the pixels of a shape at a random place, of a random size and turn."""
    rows, columns = np.mgrid[:size, :size]
    reach = generator.uniform(0.12, 0.28) * size
    down, across = generator.uniform(reach, size - reach, 2)
    turn = generator.uniform(0, 2 * np.pi)
    y = np.cos(turn) * (rows - down) - np.sin(turn) * (columns - across)
    x = np.sin(turn) * (rows - down) + np.cos(turn) * (columns - across)
    if kind == 1:
        return np.asarray(np.hypot(x, y) <= reach)
    if kind == 2:
        return np.asarray(np.maximum(abs(x), abs(y)) <= 0.8 * reach)
    # Three half planes, each at half of the distance of the corners.
    sides = [np.cos(angle) * x + np.sin(angle) * y for angle in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    return np.asarray(np.max(sides, axis=0) <= 0.5 * reach)
