"""Decide how many workers run at the same time, on which resources. Pure: nodes and request in, a decision out.

Nothing here can lock up, for these reasons:

* Resources are held by four kinds: the search's workers (each the size of a trial), tasks of that same size (dense
  network, statistics, test split), groups of training workers, and the task that times whole networks. The
  coordinator, the driver and the groups' controllers hold none.
* Kinds take turns: groups are placed after every trial's worker has ended, and end before the next kind starts. So at
  no time is more asked for than `place` or `place_training` alone found room for.
* Within a kind all bundles are equal and each is on one node, so wherever Ray puts the first ones, the last one fits:
  after k of them a node still has room for floor(node / bundle) - k.
* No holder of resources waits for one that does not have its own yet. Workers that meet before the first trial continue
  without those that are late (`meeting.MEETING_S`), and a group gets all its bundles or none.
* A whole node, for timings, may never be free where others use the cluster as well: after a while a task of the size of
  a trial does instead.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from raprune.errors import UsageError
from raprune.spec.job import ResourceSpec

_TOLERANCE = 1e-9

IMAGES_A_WORKER = 64
"""Minimum number of images of a batch that a worker of a group gets, if the job does not ask for a group.

A step on fewer images takes a GPU as long: the time goes into starting the kernels, not into the images.
"""
LARGE_IMAGES_A_WORKER = 32
"""The same for images of `LARGE_IMAGE` pixels and more, which keep a GPU busy longer."""
LARGE_IMAGE = 224

SMALLEST_PART = 2
"""Minimum number of images of a batch that a worker gets of any group: batch norm cannot train on one image.

With fewer, every worker would compute the whole batch (`Ranks.part`).
"""

SLOWDOWN = 2.0
"""Assumed time of a step of k workers, as a multiple of a k-th of the time of one worker.

Groups exchange gradients, and take half a minute to start. So a group is formed where at least half of the GPUs would
be idle otherwise: the search's own workers train each network on one GPU.
"""


NODE_ID = "ray.io/node-id"
"""Label that Ray gives each node: its id."""


def nodes_but(left_out: Collection[str]) -> dict[str, str]:
    """The selector of all nodes but those of the ids in `left_out`, for `label_selector` of Ray."""
    return {NODE_ID: f"!in({','.join(sorted(left_out))})"} if left_out else {}


@dataclass(frozen=True)
class Placement:
    """`workers` trials at the same time, each on `cpus` CPUs and `gpus` GPUs of one node."""

    workers: int
    cpus: float
    gpus: float
    reason: str

    @property
    def side_by_side(self) -> int:
        """Number of processes that run at the same time."""
        return self.workers

    @property
    def threads(self) -> int:
        """Torch threads of a trial."""
        return max(1, int(self.cpus))

    @property
    def device(self) -> str:
        return "cuda" if self.gpus > 0 else "cpu"

    @property
    def card_share(self) -> float:
        """Fraction of a GPU's memory that belongs to a trial, in (0, 1]; 1 without GPUs."""
        return min(1.0, self.gpus) or 1.0

    @property
    def resources(self) -> dict[str, float]:
        """Resources of a trial, by Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus > 0 else {"CPU": self.cpus}


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """Trainings that are to be placed."""

    networks: int
    """Number of networks."""
    batch_size: int
    """Images in each step of the optimiser; the smallest number, where they differ."""
    image_size: int
    """Pixels of the longer side of an image."""


@dataclass(frozen=True)
class TrainPlacement(Placement):
    """Groups of `workers` processes that train one network together, each on `cpus` CPUs and `gpus` GPUs of one node.

    `groups` of them run side by side; each takes one network after another.
    """

    groups: int = 1
    left_out: tuple[str, ...] = ()
    """Ids of the nodes that get none of the workers."""

    @property
    def side_by_side(self) -> int:
        return self.groups * self.workers

    @property
    def backend(self) -> str:
        """Backend of torch.distributed. NCCL does not support two processes on one card."""
        return "nccl" if self.gpus >= 1 else "gloo"


def place(nodes: Sequence[Mapping[str, float]], spec: ResourceSpec, *, lookahead: int | None) -> Placement:
    """The placement on nodes with these resources (`CPU`, `GPU`, as Ray names them).

    A trial is on one node. At most `lookahead` workers, if that is set, because proposal n waits for the result of
    proposal n - `lookahead`.

    Raises:
        UsageError: if no node carries a trial, or fewer trials fit than workers were asked for.
    """
    cpus, gpus = _trial(nodes, spec)
    room = capacity(nodes, spec)
    if room == 0:
        largest = max(nodes, key=lambda n: (n.get("GPU", 0.0), n.get("CPU", 0.0)), default={})
        raise UsageError(
            f"resources: a trial asks for {_words(cpus, gpus)}, and no node of the cluster has that.",
            hint=f"The largest of {len(nodes)} nodes has {_words(largest.get('CPU', 0.0), largest.get('GPU', 0.0))}: "
            f"lower resources.cpus_per_trial or resources.gpus_per_trial.",
        )
    if spec.workers is not None and spec.workers > room:
        raise UsageError(
            f"resources.workers (--workers) {spec.workers}: the cluster carries {room} "
            f"trial{'s' * (room > 1)} of {_words(cpus, gpus)} side by side.",
            hint=f"Use --workers {room} or fewer, or lower resources.cpus_per_trial"
            f"{' or resources.gpus_per_trial' if gpus else ''}.",
        )
    asked = spec.workers or room
    workers = min(asked, lookahead or asked)
    reason = f"{workers} x {_words(cpus, gpus)}"
    if workers < asked:
        reason += f" (search.lookahead {lookahead} keeps {asked - workers} more idle)"
    return Placement(workers, cpus, gpus, reason)


def place_resumed(nodes: Sequence[Mapping[str, float]], spec: ResourceSpec, *, lookahead: int | None) -> Placement:
    """`place` for a resumed run: with as many of its workers as the cluster now has room for.

    Nodes may have gone since it began; its results do not depend on the number of workers.

    Raises:
        UsageError: if no node carries a trial.
    """
    most = place(nodes, spec.model_copy(update={"workers": None}), lookahead=lookahead)
    if spec.workers is None or spec.workers >= most.workers:
        return most
    return place(nodes, spec, lookahead=lookahead)


def missing(nodes: Sequence[Mapping[str, float]], spec: ResourceSpec) -> list[dict[str, float]]:
    """The bundles, one a worker, that a cluster needs so that `place` finds room for the workers of `spec`, or for one.

    Empty if there is room. The size of a trial is known only when a node with a GPU has come, so ask again then.
    """
    cpus, gpus = _trial(nodes, spec)
    asked = spec.workers or 1
    if capacity(nodes, spec) >= asked:
        return []
    return [{"CPU": cpus, "GPU": gpus} if gpus > 0 else {"CPU": cpus} for _ in range(asked)]


def has_room(node: Mapping[str, float], placement: Placement) -> bool:
    """True if a worker of the placement fits on a node with these resources."""
    return _fits(node, placement.cpus, placement.gpus) > 0


def capacity(nodes: Sequence[Mapping[str, float]], spec: ResourceSpec) -> int:
    """Number of trials that fit at the same time."""
    cpus, gpus = _trial(nodes, spec)
    return sum(_fits(node, cpus, gpus) for node in nodes)


def place_training(
    nodes: Sequence[Mapping[str, float]], spec: ResourceSpec, trainings: Trainings
) -> TrainPlacement | None:
    """The groups that carry out `trainings`; None: the search's own workers train, each a network by itself.

    `nodes` as for `place`. With `train_workers` left open, the groups have the size that is expected to end first, and
    none are formed where one GPU a network is expected to end earlier, or on CPUs alone. A worker then has at least
    `IMAGES_A_WORKER` images of each batch, or `LARGE_IMAGES_A_WORKER` large ones.

    Raises:
        UsageError: if fewer workers fit than `train_workers` asks for, or a batch has fewer than two images for each.
    """
    if spec.train_workers == 0 or trainings.networks == 0:
        return None
    has_gpu = any(node.get("GPU", 0.0) > 0 for node in nodes)
    gpus = spec.gpus_per_train_worker if spec.gpus_per_train_worker is not None else float(has_gpu)
    cpus = spec.cpus_per_train_worker
    capacity = sum(_fits(node, cpus, gpus) for node in nodes)
    if spec.train_workers is None:
        # Processes that share a card train no faster together.
        workers = _group_size(capacity, trainings) if gpus >= 1 else 1
        if workers == 1:
            return None
        groups = min(capacity // workers, trainings.networks)
        reason = _group_words(groups, workers, cpus, gpus) + f", {trainings.batch_size // workers} images a worker"
        return TrainPlacement(workers, cpus, gpus, reason, groups)
    most = trainings.batch_size // SMALLEST_PART
    if spec.train_workers > max(1, most):
        raise UsageError(
            f"resources.train_workers {spec.train_workers}: a batch of {trainings.batch_size} images has fewer than "
            f"{SMALLEST_PART} images for each.",
            hint=f"Use {max(1, most)} or fewer, or a larger batch_size; with 0, the search's own workers train.",
        )
    if spec.train_workers > capacity:
        lower = "resources.cpus_per_train_worker" + (" or resources.gpus_per_train_worker" if gpus else "")
        raise UsageError(
            f"resources.train_workers {spec.train_workers}: of workers with {_words(cpus, gpus)} each, the cluster "
            f"carries {capacity or 'none'}.",
            hint=(f"Use {capacity} or fewer, or lower {lower}" if capacity else f"Lower {lower}")
            + "; with 0, the search's own workers train.",
        )
    groups = min(capacity // spec.train_workers, trainings.networks)
    reason = _group_words(groups, spec.train_workers, cpus, gpus) + ", as asked for"
    return TrainPlacement(spec.train_workers, cpus, gpus, reason, groups)


def place_again(nodes: Sequence[Mapping[str, float]], before: TrainPlacement) -> TrainPlacement | None:
    """The groups that were placed `before`, as many and as large as the remaining nodes allow; None: no worker fits."""
    capacity = sum(_fits(node, before.cpus, before.gpus) for node in nodes)
    if capacity == 0:
        return None
    workers = min(before.workers, capacity)
    groups = min(before.groups, capacity // workers)
    if (workers, groups) == (before.workers, before.groups):
        return before
    words = _group_words(groups, workers, before.cpus, before.gpus)
    reason = f"{words}, of {_group_count(before.groups, before.workers)} before nodes were lost"
    return replace(before, workers=workers, groups=groups, reason=reason)


def place_timing(nodes: Sequence[Mapping[str, float]], trial: Placement) -> Placement:
    """Resources for timing networks while nothing else runs there: a whole GPU, or all CPUs of the largest node.

    `trial` is the placement of the search, `nodes` as for `place`.
    """
    if trial.gpus > 0:
        return Placement(1, trial.cpus, 1.0, f"1 x {_words(trial.cpus, 1.0)}")
    cpus = max((node.get("CPU", 0.0) for node in nodes), default=trial.cpus)
    return Placement(1, cpus, 0.0, f"1 x {_words(cpus, 0.0)}")


def _trial(nodes: Sequence[Mapping[str, float]], spec: ResourceSpec) -> tuple[float, float]:
    """CPUs and GPUs of a trial."""
    has_gpu = any(node.get("GPU", 0.0) > 0 for node in nodes)
    return spec.cpus_per_trial, spec.gpus_per_trial if spec.gpus_per_trial is not None else float(has_gpu)


def _group_size(capacity: int, trainings: Trainings) -> int:
    """Number of workers of each group that is expected to end first; 1: one GPU a network.

    Equal times: the larger part of a batch for each worker, but rather groups than idle GPUs.
    """
    images = LARGE_IMAGES_A_WORKER if trainings.image_size >= LARGE_IMAGE else IMAGES_A_WORKER
    best, shortest = 1, float(math.ceil(trainings.networks / max(1, capacity)))
    for workers in range(2, min(capacity, trainings.batch_size // images) + 1):
        expected = SLOWDOWN * math.ceil(trainings.networks / (capacity // workers)) / workers
        if expected < shortest or (best == 1 and expected == shortest):
            best, shortest = workers, expected
    return best


def _group_words(groups: int, workers: int, cpus: float, gpus: float) -> str:
    return f"{_group_count(groups, workers)} x {_words(cpus, gpus)} together"


def _group_count(groups: int, workers: int) -> str:
    return f"{groups} groups of {workers}" if groups > 1 else f"{workers}"


def _fits(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    by_cpu = math.floor(node.get("CPU", 0.0) / cpus + _TOLERANCE)
    if gpus == 0:
        return by_cpu
    cards = node.get("GPU", 0.0)
    if gpus < 1:
        # A fraction is part of one card: halves of two cards make no whole one.
        return min(by_cpu, math.floor(cards) * math.floor(1 / gpus + _TOLERANCE))
    return min(by_cpu, math.floor(cards / gpus + _TOLERANCE))


def _words(cpus: float, gpus: float) -> str:
    text = f"{cpus:g} CPU{'s' * (cpus != 1)}"
    return f"{text} and {gpus:g} GPU{'s' * (gpus != 1)}" if gpus else text
