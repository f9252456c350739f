"""A streamed training split read by Ray Data: tasks on all nodes read and decode, a few blocks ahead of the training.

Each training opens its own stream, in whatever process it runs (a worker of the search, a task, a worker of Ray
Train): the order of the images then depends only on its seed and its rank, and no training waits for a shard that
another holds. The reading tasks ask for no CPU. The search's own workers may hold all CPUs, and would wait for ever for
images whose reading waits for the workers to end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raprune.data.arrays import LabelArray, Split
from raprune.data.stream import StreamSource
from raprune.errors import RapruneError

TASK_IMAGES = 1024
"""Minimum number of rows that a task reads: starting a task takes some milliseconds."""

LEAST_TASKS = 2
"""Minimum number of tasks that read for one training: one decodes while the other waits for its file."""

BLOCK_BYTES = 16 * 2**20
"""Maximum size of the decoded images that a task returns at a time."""

OBJECT_STORE_BYTES = 2**30
"""Maximum size of the decoded images that wait for one training."""


@dataclass(frozen=True)
class RayReader:
    """Reads by Ray Data. The same seed gives the same images in the same order, on any nodes."""

    num_trainings: int = 1
    """Number of trainings that read streams at the same time: the cluster's CPUs are divided among them."""

    def blocks(self, source: StreamSource, *, seed: int, rank: int, size: int) -> Generator[Split, None, None]:
        tasks = _tasks(source.pieces(seed=seed, rank=rank, size=size))
        if not tasks:
            return
        share = int(ray.cluster_resources().get("CPU", 0)) // max(self.num_trainings, size)
        dataset = _dataset(source, tasks, concurrency=min(len(tasks), max(LEAST_TASKS, share)))
        batches: Any = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
        # Closing it ends its tasks, so no task reads for a training that has ended.
        with _errors_of_ours(), closing(iter(batches)) as blocks:
            for block in blocks:
                yield Split(block["image"], block["label"])


def _dataset(source: StreamSource, tasks: list[list[LabelArray]], *, concurrency: int) -> ray.data.Dataset:
    with warnings.catch_warnings():
        # Warnings of Ray Data about its own settings.
        warnings.simplefilter("ignore")
        dataset = ray.data.read_datasource(
            _Pieces(source, tasks), num_cpus=0, concurrency=concurrency, override_num_blocks=len(tasks)
        )
    context = dataset.context
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=OBJECT_STORE_BYTES
    )
    return dataset


class _Pieces(Datasource):
    """The pieces of a stream, some to a task, in their order."""

    def __init__(self, source: StreamSource, tasks: list[list[LabelArray]]) -> None:
        super().__init__()
        self._source = source
        self._tasks = tasks

    def get_name(self) -> str:
        return "raprune"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        # Once, not with every task: the names of all image files are in it.
        source = ray.put(self._source)
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(_read([source], pieces), unknown) for pieces in self._tasks]


def _read(source: list[ray.ObjectRef[StreamSource]], pieces: list[LabelArray]) -> Callable[[], Iterable[Block]]:
    """A function that reads some pieces; the reference is in a list so that the task fetches it."""

    def read() -> Iterable[Block]:
        stream = ray.get(source[0])
        for piece in pieces:
            for block in stream.read(piece):
                yield BlockAccessor.batch_to_block({"image": block.images, "label": block.labels})

    return read


def _tasks(pieces: list[LabelArray]) -> list[list[LabelArray]]:
    """The pieces in their order, grouped so that each task has enough to do."""
    tasks: list[list[LabelArray]] = []
    rows = TASK_IMAGES
    for piece in pieces:
        if rows >= TASK_IMAGES:
            tasks.append([])
            rows = 0
        tasks[-1].append(piece)
        rows += len(piece)
    return tasks


@contextmanager
def _errors_of_ours() -> Iterator[None]:
    """Raise an error of ours from a reading task as itself, instead of wrapped in Ray's."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, RapruneError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise cause from None
