"""Images without labels: the methods that can look at them, and the dense network's answers in the place of labels."""

from __future__ import annotations

import numpy as np
import torch

from raprune.data.batches import DeviceSplit
from raprune.data.dataset import Dataset, Split
from raprune.errors import UsageError
from raprune.methods import METHODS, method_named
from raprune.pruning.workload import Workload
from raprune.spec.job import SearchSpec
from raprune.training.tasks import task_named
from raprune.training.tasks.task import in_float32

AGREEMENT = "agreement with the dense network"
"""Name of the metric where the validation images have the dense network's answers as labels."""

BATCH = 64
"""Number of images in a batch that the dense network answers."""


def check_labels(spec: SearchSpec, data: Dataset) -> None:
    """Refuse methods of the job that need labels which its images have not.

    Raises:
        UsageError: with the methods that work without labels.
    """
    if "train" in data.unlabelled:
        images, needing = "train has no labels", [name for name in spec.methods if method_named(name).needs_labels()]
        working = [name for name, kind in METHODS.items() if not kind.needs_labels()]
        remedy = "give labels"
    elif data.calibration is not None:
        # Methods that train do so on the labelled training images.
        images, needing = "the calibration images have none", _looking_at_labels(spec.methods)
        working = [name for name in METHODS if not _looking_at_labels([name])]
        remedy = "leave the calibration images out, and it looks at training images"
    else:
        return
    if needing:
        many = len(needing) > 1
        raise UsageError(
            f"method{'s' * many} {', '.join(needing)}: {'these need' if many else 'it needs'} labels, and {images}.",
            hint=f"Without labels work: {', '.join(sorted(working))}. Or {remedy}.",
        )


def _looking_at_labels(names: list[str] | tuple[str, ...]) -> list[str]:
    return [name for name in names if method_named(name).uses_labels]


def unlabelled_images(data: Dataset) -> int | None:
    """Number of images that methods can look at, where these have no labels; None where they have."""
    if data.calibration is not None:
        return len(data.calibration)
    return len(data.train) if "train" in data.unlabelled else None


def answered(workload: Workload) -> Dataset:
    """Return the data of the workload with the dense network's answers as the labels of its unlabelled splits.

    The data set keeps its fingerprint, which is that of the images alone.

    Raises:
        UsageError: if the network is not trained, or the task's outputs stand for no targets.
    """
    spec, data = workload.spec, workload.data
    if spec.weights is None:
        raise UsageError(
            "train: images without labels, and the network is to be trained first.",
            hint="Give a trained network, or images with labels.",
        )
    changes = {name: _with_answers(workload, getattr(data, name)) for name in sorted(data.unlabelled)}
    return data.alike(**changes)


def _with_answers(workload: Workload, split: Split) -> Split:
    task = task_named(workload.spec.task)
    found = []
    with torch.inference_mode():
        for x, y in DeviceSplit.place(split, workload.data.mean, workload.data.std, workload.device).batches(BATCH):
            answers = task.answers(in_float32(task.run(workload.model, x, y)))
            if answers is None:
                raise UsageError(
                    f"train: images without labels, and outputs of the task {workload.spec.task!r} stand for none.",
                    hint="Give images with targets: docs/tasks.md.",
                )
            found.append(answers.cpu().numpy())
    return Split(split.images, np.concatenate(found))
