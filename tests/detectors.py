"""Small detectors of torchvision's classes, for the tests of several rooms."""

from __future__ import annotations

from torch import Tensor, nn


class _TinyMaps(nn.Module):
    """A backbone with maps of 1/2 and 1/4 of the image's size, of equally many channels, as detectors take them."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 10, 3, stride=2, padding=1)
        self.inner = nn.ModuleList([nn.Conv2d(6, 8, 1), nn.Conv2d(10, 8, 1)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.norm(self.stem(x)).relu()
        return {"0": self.inner[0](first), "1": self.inner[1](self.deep(first).relu())}


def small_detector(num_classes: int = 4, *, stages: int = 1, size: int = 32) -> nn.Module:
    """An untrained RetinaNet (one stage) or Faster R-CNN (two) with a tiny backbone, which scales images to `size`."""
    from torchvision.models.detection import FasterRCNN, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.retinanet import RetinaNetHead
    from torchvision.ops import MultiScaleRoIAlign

    anchors = AnchorGenerator(((8,), (14,)), ((0.7, 1.0, 1.4),) * 2)
    image = {"min_size": size, "max_size": size, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    if stages == 1:
        head = RetinaNetHead(8, 3, num_classes)
        for towers in (head.classification_head.conv, head.regression_head.conv):
            for conv in (module for module in towers.modules() if isinstance(module, nn.Conv2d)):
                # torchvision's weights are made for 256 channels; with 8 next to nothing would arrive.
                nn.init.kaiming_normal_(conv.weight)
        return RetinaNet(_TinyMaps(), num_classes, anchor_generator=anchors, head=head, **image)
    return FasterRCNN(
        _TinyMaps(),
        rpn_anchor_generator=anchors,
        rpn_post_nms_top_n_train=40,
        box_batch_size_per_image=40,
        box_head=TwoMLPHead(8 * 3 * 3, 16),
        box_predictor=FastRCNNPredictor(16, num_classes),
        rpn_post_nms_top_n_test=20,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], output_size=3, sampling_ratio=1),
        **image,
    )
