"""Distillation from a teacher: by softened logits or their correlations, and by feature maps channel by channel.

Hinton, Vinyals, Dean (2015), "Distilling the Knowledge in a Neural Network", and following Romero et al. (2015),
"FitNets: Hints for Thin Deep Nets", whose regressor between the widths is not needed: each channel of a cut network
corresponds to one channel of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from raprune.channels.cut import kept_positions, rebuild
from raprune.channels.evaluating import evaluating
from raprune.channels.graph import ChannelGraph
from raprune.data.host import ImageSplit
from raprune.errors import ModelError

VARIANCE_FLOOR = 0.01
"""Minimum variance of a channel as a fraction of the mean over a map's channels; a nearly constant channel would
otherwise dominate all others."""


@dataclass(frozen=True)
class ChannelMap:
    """The layers at which a cut network's feature maps are compared with the dense network's."""

    points: Mapping[str, tuple[int, ...] | None]
    """Channels of the dense layer's input that the cut layer reads, by the layer's name; None: all, in order."""


def channel_map(
    dense: nn.Module, graph: ChannelGraph, kept: Mapping[str, tuple[int, ...]], example_input: Tensor
) -> ChannelMap:
    """Return the ends of the stages: for each resolution in `dense` the last convolution or linear layer.

    `kept` are the channels that stay in each group of `graph`. The maps are inputs of layers, not outputs of blocks,
    because the graph knows the channels of these inputs, and no later layer may change them in place, since the
    backward pass reads them. `example_input` has shape `(1, C, H, W)`; `dense` is not changed.
    """
    positions = kept_positions(graph, kept)
    readers: dict[int, str] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        if x.untyped_storage().data_ptr() != example_input.untyped_storage().data_ptr():
            readers[x.numel() // x.shape[_channel_axis(module)]] = name

    handles = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in dense.named_modules()
        if _reads_plainly(module)
    ]
    try:
        with evaluating(dense), torch.no_grad():
            dense(example_input)
    finally:
        for handle in handles:
            handle.remove()
    stay = {name: positions.get(f"{name}.weight", {}).get(1) for name in readers.values()}
    return ChannelMap({name: None if kept_ is None else tuple(kept_.tolist()) for name, kept_ in stay.items()})


def logit_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return `T^2 KL(teacher || student)` of the softened outputs, mean over the batch; logits `(B, num_classes)`."""
    student = functional.log_softmax(logits / temperature, dim=1)
    target = functional.log_softmax(teacher_logits / temperature, dim=1)
    return functional.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def dist_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return `T^2 (inter + intra)` of the softened outputs, in [0, 4 T^2]; logits `(B, num_classes)`.

    Huang et al. (2022), "Knowledge Distillation from A Stronger Teacher": one minus Pearson's correlation with the
    teacher, `inter` over the classes of each image and `intra` over the images of each class, both as means, Eq. (7)
    and (10). Unlike there, the sum stands in place of the divergence of the logits, and is weighted as that is.
    """
    student, teacher = (values / temperature for values in (logits, teacher_logits))
    student, teacher = student.softmax(1), teacher.softmax(1)
    inter, intra = _correlation(student, teacher).mean(), _correlation(student.T, teacher.T).mean()
    return (2 - inter - intra) * temperature**2


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return Pearson's correlation of each row; 0 for a row of equal values."""
    one, other = one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True)
    return functional.cosine_similarity(one, other, dim=1)


LOGIT_LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"logits": logit_loss, "dist": dist_loss}
"""Comparisons of logits by their names in `TrainSpec.teacher_loss`."""


LARGEST_ANSWERS = 2**30
"""Bytes of a teacher's outputs on a whole split from which they are computed again in each epoch."""


@dataclass(frozen=True)
class Answers:
    """A teacher's logits `(N, num_classes)` and the labels `(N,)` of all images of a split, on its device."""

    logits: Tensor
    labels: Tensor

    @classmethod
    def of(cls, teacher: nn.Module, split: ImageSplit, batch_size: int, half: torch.dtype | None) -> Answers | None:
        """Return the answers of `teacher`, in evaluation mode, in the precision of the training.

        None if they are too large, or no single tensor, as those of a segmentation network with an auxiliary head.
        """
        found: list[tuple[Tensor, Tensor]] = []
        autocast = torch.autocast(split.device.type, dtype=half or torch.bfloat16, enabled=half is not None)
        with torch.no_grad(), autocast:
            for x, y in split.batches(batch_size):
                out = teacher(x.contiguous(memory_format=split.layout))
                if not isinstance(out, Tensor):
                    return None
                found.append((out.float(), y))
                if len(split) * found[0][0][0].nbytes > LARGEST_ANSWERS:
                    return None
        logits, labels = zip(*found, strict=True)
        return cls(torch.cat(logits), torch.cat(labels))


def teacher_in(precision: torch.dtype, teacher: nn.Module) -> nn.Module:
    """Return a copy of `teacher` whose convolutions and linear layers hold their weights in `precision`.

    Under autocast its outputs are those of `teacher`, without a cast of every weight in every step. All other tensors
    are those of `teacher`, which is left as it is.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    cast = {
        f"{name}.{key}".removeprefix(".")
        for name, module in teacher.named_modules()
        if isinstance(module, kinds)
        for key in ("weight", "bias")
    }
    return rebuild(teacher, lambda name, tensor: tensor.to(precision) if name in cast else tensor)


def map_loss(student: Tensor, teacher: Tensor, axis: int) -> Tensor:
    """Return the mean squared difference of two maps, each channel of `axis` in units of the teacher's variance."""
    student, teacher = student.float(), teacher.float()
    others = [other for other in range(teacher.dim()) if other != axis % teacher.dim()]
    var_C = teacher.var(others, correction=0)
    difference_C = (student - teacher).square().mean(others)
    return (difference_C / var_C.clamp(min=VARIANCE_FLOOR * var_C.mean() + 1e-8)).mean()


LARGEST_WEIGHT = 1000.0
"""The largest weight of the feature maps: maps of a network that differs little from its teacher say little."""


def balanced_weight(rest: float, maps: float) -> float:
    """Return the weight of feature maps in [0, `LARGEST_WEIGHT`].

    `maps` is the norm of the gradient of their loss by all weights, `rest` that of the rest of the loss: the weighted
    maps have a gradient as long as the rest has.
    """
    return min(LARGEST_WEIGHT, rest / maps) if maps > 0 else 0.0


class FeatureMaps:
    """Observer of the feature maps of a student and its teacher; `loss` uses the last forward pass of both."""

    def __init__(self, student: nn.Module, teacher: nn.Module, channels: ChannelMap, device: torch.device) -> None:
        self._positions = {
            name: None if kept is None else torch.tensor(kept, device=device) for name, kept in channels.points.items()
        }
        self._axes = {name: _channel_axis(teacher.get_submodule(name)) for name in channels.points}
        self._student: dict[str, Tensor] = {}
        self._teacher: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for model, seen in ((student, self._student), (teacher, self._teacher)):
            for name in channels.points:
                self._handles.append(model.get_submodule(name).register_forward_pre_hook(partial(_keep, seen, name)))

    def loss(self) -> Tensor:
        """Return the mean of `map_loss` over the points.

        Raises:
            ModelError: if the student's layers read another number of channels than the channel map says.
        """
        losses = []
        for name, positions in self._positions.items():
            axis, student, teacher = self._axes[name], self._student[name], self._teacher[name]
            if positions is not None:
                teacher = teacher.index_select(axis, positions)
            if student.shape != teacher.shape:
                raise ModelError(
                    f"The layer {name!r} reads {tuple(student.shape)} in the student, but the channels that stay have "
                    f"shape {tuple(teacher.shape)} in the teacher.",
                    hint="Train without feature maps: features = 0.",
                )
            losses.append(map_loss(student, teacher, axis))
        return torch.stack(losses).mean()

    def close(self) -> None:
        """Stop observing."""
        for handle in self._handles:
            handle.remove()


def _keep(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    seen[name] = inputs[0]


def _reads_plainly(module: nn.Module) -> bool:
    """True if axis 1 of the layer's weight runs over the channels that it reads, one by one."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
    )


def _channel_axis(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear) else 1
