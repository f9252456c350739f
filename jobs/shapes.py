"""A made set of shapes with masks or boxes: discs, squares and triangles on noise.

    raprune search jobs/lraspp_shapes.toml
    raprune search jobs/ssdlite_shapes.toml

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


def detection(*, train: int = 1000, test: int = 250, size: int = 160, seed: int = 0) -> dict[str, Any]:
    """Return the splits for `data.name = "jobs.shapes:detection"`: images, and the boxes and labels of their shapes."""
    generator = np.random.default_rng(seed)
    splits = {"train": boxed(train, size, generator), "test": boxed(test, size, generator)}
    return {**splits, "label_names": list(CLASSES)}


def boxed(count: int, size: int, generator: np.random.Generator) -> tuple[Images, list[dict[str, Any]]]:
    """Draw `count` images, and for each the boxes of its shapes `(M, 4)` and their labels `(M,)`."""
    images, targets = np.empty((count, 3, size, size), np.uint8), []
    for image in images:
        pixels, shapes = picture(size, generator)
        image[:] = pixels
        # A shape that others cover has no box.
        seen = [(kind, np.nonzero(inside)) for kind, inside in shapes if inside.sum() > 8]
        boxes = [[across.min(), down.min(), across.max() + 1, down.max() + 1] for _, (down, across) in seen]
        labels = np.array([kind for kind, _ in seen], np.int64)
        targets.append({"boxes": np.array(boxes, np.float32).reshape(-1, 4), "labels": labels})
    return images, targets


def ssdlite(num_classes: int = len(CLASSES), size: int = 160) -> Any:
    """Build torchvision's ssdlite320_mobilenet_v3_large, for images that it scales to `size` pixels.

    It has no layer for a certain size, and at 160 pixels a quarter of the FLOPs.
    """
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)
    model.transform.fixed_size = (size, size)
    return model


def drawn(count: int, size: int, generator: np.random.Generator) -> tuple[Images, Images]:
    """Draw `count` images and their masks."""
    images = np.empty((count, 3, size, size), np.uint8)
    masks = np.zeros((count, size, size), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        pixels, shapes = picture(size, generator)
        image[:] = pixels
        for kind, inside in shapes:
            mask[inside] = kind
    return images, masks


def picture(size: int, generator: np.random.Generator) -> tuple[Images, list[tuple[int, npt.NDArray[np.bool_]]]]:
    """Draw one image, and the class and the pixels of each shape that are seen."""
    ground = generator.uniform(40, 215, 3)
    canvas = ground[:, None, None] + generator.normal(0, 18, (3, size, size))
    shapes: list[tuple[int, npt.NDArray[np.bool_]]] = []
    for _ in range(generator.integers(1, 4)):
        kind = int(generator.integers(1, len(CLASSES)))
        inside = shape(kind, size, generator)
        colour = np.clip(ground + generator.choice([-1, 1], 3) * generator.uniform(45, 110, 3), 0, 255)
        canvas[:, inside] = colour[:, None] + generator.normal(0, 18, (3, int(inside.sum())))
        shapes = [*((before, pixels & ~inside) for before, pixels in shapes), (kind, inside)]
    return np.clip(canvas, 0, 255).astype(np.uint8), shapes


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
