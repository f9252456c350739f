"""Sizes of the work of each section: of a run on a GPU, and of a dry run that takes a minute on a CPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the work. Numbers of images are those of a split, at most."""

    dry: bool
    calibration: int
    """Images that methods look at."""
    methods: int
    """Images of the section `methods`."""
    cifar: int | None
    """Images of the sections that train on CIFAR-10; None: all."""
    candidates: int
    """Candidates that are timed for each multiple of widths."""
    batches: tuple[int, ...]
    """Batch sizes of the training on CIFAR-10."""
    epochs: float
    """Epochs of each timed training on CIFAR-10; the last one counts."""
    steps: int
    """Steps of the training loop that is written by hand."""
    proved: tuple[tuple[str, int], ...]
    """Networks of the section `proof`, with the height and width of their images."""
    imagenet: str
    """Network of the sections `imagenet` and `latency`."""
    pixels: int
    """Height and width of its images."""
    imagenet_images: int
    imagenet_batch: int
    latency_batches: tuple[int, ...]
    repeats: int
    """Timings of each operation for the latency table."""
    widths: int
    """Widths of each operation for the latency table."""
    narrowed: int
    """Networks whose latency is compared with the prediction."""
    steps_watched: int
    """Steps of the training whose waits for the GPU are counted."""
    searched: tuple[str, ...]
    """Methods of the search on Ray, beside the one that breaks an actor."""
    trials: int
    """Candidates of the search on Ray."""
    search_images: int | None
    search_epochs: float
    """Epochs of the finalist of a search."""


REAL = Sizes(
    dry=False,
    calibration=1024,
    methods=20_000,
    cifar=None,
    candidates=12,
    batches=(128, 512),
    epochs=3.0,
    steps=150,
    proved=(
        ("resnet50", 64),
        ("shufflenet_v2_x0_5", 64),
        ("efficientnet_b0", 64),
        ("regnet_y_400mf", 64),
        ("vit_b_16", 224),
        ("convnext_tiny", 64),
    ),
    imagenet="resnet50",
    pixels=224,
    imagenet_images=8192,
    imagenet_batch=256,
    latency_batches=(1, 32),
    repeats=20,
    widths=6,
    narrowed=4,
    steps_watched=100,
    searched=("reconstruction",),
    trials=24,
    search_images=None,
    search_epochs=1.0,
)
"""Sizes of a run on a GPU: about 500 s on an H100."""

DRY = Sizes(
    dry=True,
    calibration=32,
    methods=200,
    cifar=300,
    candidates=1,
    batches=(32,),
    epochs=1.0,
    steps=2,
    proved=(("squeezenet1_1", 64),),
    imagenet="shufflenet_v2_x0_5",
    pixels=64,
    imagenet_images=8,
    imagenet_batch=4,
    latency_batches=(1,),
    repeats=1,
    widths=2,
    narrowed=1,
    steps_watched=4,
    searched=(),
    trials=6,
    search_images=300,
    search_epochs=0.05,
)
"""Sizes of a dry run."""
