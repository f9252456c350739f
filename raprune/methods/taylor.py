"""First-order Taylor expansion: channels whose removal would change the loss least are removed.

Molchanov, Tyree, Karras, Aila, Kautz: "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR
2017 (arXiv 1611.06440): the score of channel c is the mean over images of | mean over positions of a_c dL/da_c |,
divided by the Euclidean norm of its layer's scores.

The paper looks at one layer. Ours: the score is computed at the input of each layer that reads the channel; if several
layers read the channel, their scores are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from raprune.channels.graph import ChannelGraph
from raprune.methods.activations import added, readers, watching, zero_totals
from raprune.methods.method import Batches, Method, Scores, loss_of

MOST_PIXELS = 2**20
"""Maximum number of pixels in a forward pass, because all activations are kept for the gradients: EfficientNet-Lite0
took 20 GB for 256 images of 224 x 224."""


@dataclass(frozen=True, kw_only=True)
class Taylor(Method):
    """The score | a_c dL/da_c |, averaged over images."""

    title: ClassVar[str] = "first-order change of the loss (Taylor; Molchanov et al., ICLR 2017)"
    uses_labels: ClassVar[bool] = True

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        seen = readers(model, graph)
        totals = zero_totals(seen)
        # A layer may run several times in a pass, such as the head of a detector.
        passed: list[tuple[int, Tensor]] = []
        loss_on = loss_of(batches)
        with torch.enable_grad(), watching(model, seen, lambda number, x: passed.append((number, x))):
            for images, labels in _in_parts(batches()):
                passed.clear()
                loss = loss_on(model, images, labels)
                numbers = [number for number, x in passed if x.requires_grad]
                inputs = [x for _, x in passed if x.requires_grad]
                gradients = torch.autograd.grad(loss, inputs, allow_unused=True) if inputs else ()
                for number, x, gradient in zip(numbers, inputs, gradients, strict=True):
                    if gradient is not None:
                        change_BCP = seen[number].channels(x.detach() * gradient)
                        totals[number] += change_BCP.mean(dim=2).abs().double().sum(dim=0)
        return added(graph, seen, totals)


def _in_parts(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches in parts of at most `MOST_PIXELS`, but at least one image; images do not affect each other."""
    for images, labels in batches:
        count = max(1, MOST_PIXELS // images[0, 0].numel())
        yield from zip(images.split(count), labels.split(count), strict=True)
