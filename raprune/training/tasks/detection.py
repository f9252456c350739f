"""Detection: boxes with classes, the detector's own losses, COCO's mean average precision."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raprune.data.targets import BOX_NUMBERS, BOXES
from raprune.training.tasks.task import Task

MOST_BOXES = 100
"""Number of boxes of an image that count, those of the largest scores first, as in COCO's evaluation."""
KEPT = ("backbone", "head", "rpn.head")
"""Modules of a detector whose outputs do not depend on the targets."""


@dataclass(frozen=True)
class Detection(Task):
    """A network takes a list of images with pixels in [0, 1], as torchvision's detectors do.

    In training mode it also takes a list of targets, and gives a dict of its losses, which are added up. In evaluation
    mode it gives `boxes`, `scores` and `labels` for each image. Targets are `(B, M, 6)`: left, top, right and bottom in
    pixels, the class from 1, and 1 for a crowd; rows of class 0 are no boxes.

    Passes run in float32 in every precision, because 16 bits hold no places of boxes.

    The metric is COCO's mAP: the mean over classes and over thresholds of the intersection over union from 0.5 to 0.95
    of the average precision. It is no sum over images. `sums` are therefore records, the boxes of each image found and
    wanted, and records of several batches are joined; pycocotools computes the value from them.
    """

    metric: ClassVar[str] = "COCO mAP"
    targets: ClassVar[str] = BOXES
    maps: ClassVar[bool] = False
    judges_training: ClassVar[bool] = False
    most_images: ClassVar[int | None] = 16
    needs: ClassVar[tuple[str, ...]] = ("pycocotools",)
    capturable: ClassVar[bool] = False

    def inputs(self, images: Tensor) -> tuple[Any, ...]:
        return (list(images),)

    def run(self, model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return the losses, and in evaluation mode the boxes of each image as well, from one pass of the backbone."""
        if model.training:
            return self.run_for_loss(model, images, targets)
        with _outputs_kept(model), torch.autocast(images.device.type, enabled=False):
            boxes = model(images)
            return {"boxes": boxes, **self.run_for_loss(model, images, targets)}

    def run_for_loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Any]:
        wanted = [_target(rows) for rows in targets]
        giving = nullcontext() if model.training else _giving_losses(model)
        # bfloat16 has 8 bits: an anchor at 300 pixels would be rounded by one.
        with giving, torch.autocast(images.device.type, enabled=False):
            return {"losses": model(images, wanted)}

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        losses: list[Tensor] = list(outputs["losses"].values())
        return torch.stack([loss.reshape(()) for loss in losses]).sum()

    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return one record for each image, flat: the numbers of boxes found and wanted, then `BOX_NUMBERS` for each.

        The numbers of a found box are its place, its class and its score.
        """
        records = []
        for found, wanted in zip(outputs["boxes"], targets, strict=True):
            numbers = torch.cat([found["boxes"], found["labels"][:, None], found["scores"][:, None]], dim=1).double()
            numbers = numbers[numbers.isfinite().all(dim=1)]
            numbers = numbers[numbers[:, 5].argsort(descending=True, stable=True)[:MOST_BOXES]]
            wanted = wanted[wanted[:, 4] > 0].double()
            counts = torch.tensor([len(numbers), len(wanted)], dtype=torch.float64, device=numbers.device)
            records += [counts, numbers.flatten(), wanted.flatten()]
        return torch.cat(records)

    def added(self, total: Tensor | None, sums: Tensor) -> Tensor:
        return sums if total is None else torch.cat([total, sums])

    def value(self, sums: Tensor, images: int) -> float:
        found, wanted = _Boxes(), _Boxes()
        for number, (boxes, targets) in enumerate(_records(sums.cpu()), start=1):
            found.add(number, boxes, scores=boxes[:, 5].tolist())
            wanted.add(number, targets, crowds=targets[:, 5].tolist())
        return mean_average_precision(found.annotations, wanted.annotations, images)

    def expected(self, num_outputs: int) -> str:
        return (
            f"the data's {num_outputs} classes, the background among them, need a detector that takes a list of images "
            "and gives boxes, labels and scores for each"
        )

    def fits(self, outputs: Any, images: Tensor, num_outputs: int) -> bool:
        return (
            isinstance(outputs, Sequence)
            and len(outputs) == len(images)
            and all(isinstance(one, Mapping) and {"boxes", "labels", "scores"} <= set(one) for one in outputs)
        )


# Annotations as COCO's files have them.
Annotation = dict[str, Any]


def mean_average_precision(found: Sequence[Annotation], wanted: Sequence[Annotation], images: int) -> float:
    """Return COCO's mAP of the boxes `found`, by pycocotools; 0 if none is wanted.

    Boxes of all areas count, and `MOST_BOXES` of an image. Images are numbered from 1.
    """
    # Imported here: only an evaluation needs it.
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    classes = sorted({one["category_id"] for one in (*found, *wanted)})

    def collected(annotations: Sequence[Annotation]) -> Any:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number} for number in range(1, images + 1)],
            "categories": [{"id": number} for number in classes],
            "annotations": list(annotations),
        }
        coco.createIndex()
        return coco

    # pycocotools prints what it does.
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(collected(wanted), collected(found), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [MOST_BOXES]
        evaluation.evaluate()
        evaluation.accumulate()
    # By threshold, recall, class, area and number of boxes; -1 for a class of which no box is wanted.
    precision = evaluation.eval["precision"]
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


class _Boxes:
    """Boxes of all images as COCO's annotations."""

    def __init__(self) -> None:
        self.annotations: list[Annotation] = []

    def add(self, image: int, rows: Tensor, *, scores: Sequence[float] = (), crowds: Sequence[float] = ()) -> None:
        """Add the boxes of an image: those that were found with `scores`, those that are wanted with `crowds`."""
        for number, (left, top, right, bottom, label, _) in enumerate(rows.tolist()):
            width, height = right - left, bottom - top
            annotation: Annotation = {
                "id": len(self.annotations) + 1,
                "image_id": image,
                "category_id": int(label),
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": int(crowds[number]) if crowds else 0,
            }
            self.annotations.append(annotation | ({"score": scores[number]} if scores else {}))


def _target(rows: Tensor) -> dict[str, Tensor]:
    """Return the boxes of one image as detectors take them; crowds are not trained on."""
    rows = rows[(rows[:, 4] > 0) & (rows[:, 5] == 0)]
    return {"boxes": rows[:, :4], "labels": rows[:, 4].long()}


def _records(sums: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the boxes found and the boxes wanted of each image, `(n, BOX_NUMBERS)` each."""
    at = 0
    while at < len(sums):
        found, wanted = (int(count) * BOX_NUMBERS for count in sums[at : at + 2])
        at += 2
        yield sums[at : at + found].view(-1, BOX_NUMBERS), sums[at + found : at + found + wanted].view(-1, BOX_NUMBERS)
        at += found + wanted


@contextmanager
def _giving_losses(model: nn.Module) -> Iterator[None]:
    """Let a detector in evaluation mode give its losses within the context.

    Its own modules are in training mode; layers, such as batch norm and dropout, and the scaling of images stay in
    evaluation mode. Two-stage detectors draw the regions that their losses look at: from the same numbers every time.
    """
    changed = [module for module in model.modules() if not module.training and _decides(module)]
    with torch.random.fork_rng([p.device for p in model.parameters() if p.device.type == "cuda"][:1]):
        torch.manual_seed(0)
        try:
            for module in changed:
                module.training = True
            yield
        finally:
            for module in changed:
                module.training = False


def _decides(module: nn.Module) -> bool:
    """True for a module whose mode decides between boxes and losses, False for layers."""
    kind = type(module)
    is_layer = kind.__module__.startswith(("torch.nn.", "torchvision.ops.", "torchvision.models.detection.transform"))
    return not is_layer


@contextmanager
def _outputs_kept(model: nn.Module) -> Iterator[None]:
    """Run the modules of `KEPT` once within the context: later calls give the outputs of the first one."""
    known = dict(model.named_modules())
    modules = [known[name] for name in KEPT if name in known]
    handles = []

    def keep(module: nn.Module, _: Any, outputs: Any) -> None:
        if "forward" not in vars(module):
            vars(module)["forward"] = lambda *_: outputs

    try:
        handles = [module.register_forward_hook(keep) for module in modules]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in modules:
            vars(module).pop("forward", None)
