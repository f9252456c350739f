"""torchvision's detectors in a form that can be compared: the outputs of their layers, before any box is chosen.

A detector returns the boxes that survive thresholds and suppression: none on noise, and another number after a rounding
error. Trace, proof and cost need outputs of a fixed shape. The *dense form* of a detector is a module that shares all
parameters, modules and hooks with it and gives what its heads give for every anchor. The second stage of an R-CNN,
which reads the regions that the first one proposes, gets a fixed number of regions of all sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

SMALL = 160
"""Height and width of the images of a proof, in pixels: the smallest ones whose maps all have more than one pixel."""
FEW = 8
"""Number of regions of an image in a proof."""
SIDES = (64, 160, 320, 640)
"""Sides of the regions in pixels, in turn: one for each level of the maps, by the rule of feature pyramids."""


def dense_form(model: nn.Module, *, small: bool = False) -> nn.Module:
    """Return the dense form of a detector of torchvision, and any other network as it is.

    The dense form takes a list of images `(channels, height, width)` or a batch of them, and gives tensors whose first
    axis is the images. It scales images as the detector does, and takes as many regions as the detector may. With
    `small` it repeats or crops images to `SMALL` pixels where the detector takes any size, and takes few regions, for
    runs in which no value means anything.
    """
    kind = _kind(model)
    if kind is None:
        return model
    # Not through the constructor: the view has the detector's own parts.
    view = nn.Module.__new__(kind)
    vars(view).update(vars(model))
    vars(view)["small"] = small
    return view


class _DenseForm(nn.Module):
    """The parts that all detectors have. The attributes are those of the detector, and `small`."""

    small: bool
    transform: Any
    backbone: Any

    def _maps(self, images: Sequence[Tensor] | Tensor) -> tuple[list[tuple[int, int]], dict[str, Tensor]]:
        """Return the sizes of the images in the batch, and the maps that the backbone makes of the batch."""
        if self.small and self.transform.fixed_size is None:
            batch = torch.stack(list(images))
            batch = batch.repeat(1, 1, *(-(-SMALL // size) for size in batch.shape[2:]))[..., :SMALL, :SMALL]
            sizes = [(batch.shape[-2], batch.shape[-1])] * len(batch)
        else:
            placed, _ = self.transform(list(images))
            batch, sizes = placed.tensors, placed.image_sizes
        maps = self.backbone(batch)
        return sizes, {"0": maps} if isinstance(maps, Tensor) else maps


class _OneStage(_DenseForm):
    """SSD, RetinaNet and FCOS: the outputs of the head for all anchors, `(N, anchors, ...)`."""

    head: Any

    def forward(self, images: Sequence[Tensor] | Tensor) -> Any:
        _, maps = self._maps(images)
        return self.head(list(maps.values()))


class _TwoStages(_DenseForm):
    """R-CNNs: the outputs of the network of proposals, and of the heads for fixed regions, `(N, regions, ...)`."""

    rpn: Any
    roi_heads: Any

    def forward(self, images: Sequence[Tensor] | Tensor) -> list[Tensor]:
        sizes, maps = self._maps(images)
        objectness, deltas = self.rpn.head(list(maps.values()))
        anchors = sum(of_level[0].numel() for of_level in objectness)
        count = FEW if self.small else min(self.rpn._post_nms_top_n["testing"], anchors)
        heads = self.roi_heads
        found = [*objectness, *deltas]
        for pool, head, predictor, regions in (
            (heads.box_roi_pool, heads.box_head, heads.box_predictor, count),
            (heads.mask_roi_pool, heads.mask_head, heads.mask_predictor, min(count, heads.detections_per_img)),
            (
                heads.keypoint_roi_pool,
                heads.keypoint_head,
                heads.keypoint_predictor,
                min(count, heads.detections_per_img),
            ),
        ):
            if pool is None:
                continue
            # A head may be missing, as in torchvision: the maps of the regions then go to the predictor.
            pooled = pool(maps, [_regions(size, regions, maps["0"]) for size in sizes], sizes)
            outputs = predictor(pooled if head is None else head(pooled))
            outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
            found += [out.reshape(len(sizes), regions, *out.shape[1:]) for out in outputs]
        return found


def _regions(size: tuple[int, int], count: int, like: Tensor) -> Tensor:
    """Return `count` regions that begin in an image of this size, `(count, 4)`: left, top, right and bottom."""
    number = torch.arange(count, device=like.device)
    height, width = size
    corners = torch.stack([number * 37 % width, number * 53 % height], dim=1) / 2
    sides = torch.tensor(SIDES, device=like.device)[number % len(SIDES)]
    return torch.cat([corners, corners + sides[:, None]], dim=1).to(like.dtype)


def _kind(model: nn.Module) -> type[_DenseForm] | None:
    """Return the dense form's class for a detector whose forward pass is torchvision's; None for other networks."""
    package = "torchvision.models.detection"
    for module, name, kind in (
        ("generalized_rcnn", "GeneralizedRCNN", _TwoStages),
        ("ssd", "SSD", _OneStage),
        ("retinanet", "RetinaNet", _OneStage),
        ("fcos", "FCOS", _OneStage),
    ):
        # Looked up, not imported: a detector's own module is there already.
        known = getattr(sys.modules.get(f"{package}.{module}"), name, None)
        if known is not None and type(model).forward is known.forward:
            return kind
    return None
