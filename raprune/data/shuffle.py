"""Random order within bounded memory: batches are drawn from a pool that is filled from a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from raprune.data.arrays import Split

POOL_BYTES = 512 * 2**20
POOL_IMAGES = 8192


def pool_size(image_bytes: int, batch_size: int) -> int:
    """Return the number of images in the pool: as many as the two bounds above allow, but at least two batches."""
    return max(2 * batch_size, min(POOL_IMAGES, POOL_BYTES // image_bytes))


def mixed(blocks: Iterator[Split], sizes: Sequence[int], *, capacity: int, seed: int) -> Iterator[Split]:
    """Yield batches of the given sizes, drawn at random from a pool of `capacity` images; no image is drawn twice.

    The generator takes no more images from `blocks` than it yields, and ends early if `blocks` has fewer images. The
    same blocks and seed give the same batches.
    """
    generator = np.random.default_rng(seed)
    # The pool never holds more images than are drawn in total.
    capacity, missing = min(capacity, sum(sizes)), sum(sizes)
    pool, filled, rest = None, 0, None
    for size in sizes:
        while filled < capacity and missing:
            block = rest if rest is not None else next(blocks, None)
            if block is None:
                missing = 0
                break
            if pool is None:
                shape = (capacity, *block.images.shape[1:])
                pool = Split(np.empty(shape, np.uint8), np.empty(capacity, np.int64))
            count = min(len(block), capacity - filled, missing)
            pool.images[filled : filled + count] = block.images[:count]
            pool.labels[filled : filled + count] = block.labels[:count]
            rest = Split(block.images[count:], block.labels[count:]) if count < len(block) else None
            filled, missing = filled + count, missing - count
        size = min(size, filled)
        if pool is None or not size:
            return
        drawn = generator.choice(filled, size, replace=False)
        yield Split(pool.images[drawn], pool.labels[drawn])
        # The last images of the pool move to the positions that were drawn.
        filled -= size
        holes = drawn[drawn < filled]
        movers = np.setdiff1d(np.arange(filled, filled + size), drawn, assume_unique=True)
        pool.images[holes] = pool.images[movers]
        pool.labels[holes] = pool.labels[movers]
