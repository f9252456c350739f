"""Several processes that train one network together: gradients, buffers and batch norm across the processes."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from raprune.channels.inputs import call, tensors_in
from raprune.data.ranks import Ranks
from raprune.errors import ModelError
from raprune.spec.job import TrainSpec

IMAGES_FOR_BATCH_NORM = 32
"""Images of a process in each batch below which batch norm is synchronised, unless the job decides it.

The statistics of fewer images are so noisy that accuracy falls (Wu, He, 2018, "Group Normalization", figure 1).
"""


@contextmanager
def joined(model: nn.Module, ranks: Ranks, example: Callable[[], Tensor]) -> Iterator[nn.Module]:
    """Wrap `model` so that a backward pass gives the mean of all processes' gradients.

    `example` gives a few images `(B, C, H, W)` on the model's device; it is not called if there is only one process.
    """
    if ranks.size == 1:
        yield model
        return
    device = next(model.parameters()).device
    with warnings.catch_warnings():
        # Newer versions of PyTorch have another name for the argument, which older versions do not know.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated", category=FutureWarning)
        # Advice on speed that the user cannot follow.
        warnings.filterwarnings("ignore", message=".*Grad strides do not match bucket view strides.*")
        yield DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            # `agree_on_buffers` averages them, once per epoch.
            broadcast_buffers=False,
            # Without the search a parameter without gradient would block the second step; the search costs time.
            find_unused_parameters=_leaves_parameters_out(model, example()),
        )


def _leaves_parameters_out(model: nn.Module, x: Tensor) -> bool:
    """True if the forward pass does not read some parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    try:
        outputs = [value.float().sum() for value in tensors_in(call(model, x)) if value.requires_grad]
        gradients = torch.autograd.grad(torch.stack(outputs).sum(), parameters, allow_unused=True)
    finally:
        model.train()
    return any(gradient is None for gradient in gradients)


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Let backward passes of a `joined` network accumulate each process's own gradients within the context."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


def check_equal(model: nn.Module, ranks: Ranks, device: torch.device, *, step: int) -> None:
    """Compare the processes' networks and their numbers of trained steps, before the first step.

    Raises:
        ModelError: if the networks or steps differ.
    """
    if ranks.size == 1:
        return
    structure, weights = hashlib.sha256(str(step).encode()), hashlib.sha256()
    for name, tensor in model.state_dict().items():
        structure.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    mine = torch.tensor(list(structure.digest()[:8] + weights.digest()[:8]), dtype=torch.uint8, device=device)
    hashes = [bytes(digest.tolist()).hex() for digest in _gathered(mine, ranks)]
    for rank, other in enumerate(hashes):
        if other != hashes[0]:
            what = "structure (or number of trained steps)" if other[:16] != hashes[0][:16] else "weights"
            raise ModelError(
                f"The {ranks.size} processes of a training hold different networks: rank 0 has structure "
                f"{hashes[0][:16]} and weights {hashes[0][16:]}, rank {rank} has {other[:16]} and {other[16:]}.",
                hint=f"The networks differ in their {what}. Every process must build its network from the same "
                "candidate and the same dense weights; versions and devices of the nodes must be equal.",
            )


def agree_on_buffers(model: nn.Module, buffers: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Make `buffers`, named as the buffers of `model`, equal in all processes, in place.

    Running statistics of batch norm become the mean over the processes, which have seen different images; all other
    buffers get the value of rank 0.
    """
    if ranks.size == 1:
        return
    running = {
        f"{name}.{kind}".removeprefix(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for kind in ("running_mean", "running_var")
    }
    averaged = [buffer for name, buffer in buffers.items() if name in running]
    if averaged:
        flat = torch.cat([buffer.reshape(-1) for buffer in averaged])
        dist.all_reduce(flat)
        flat /= ranks.size
        for buffer, mean in zip(averaged, flat.split([buffer.numel() for buffer in averaged]), strict=True):
            buffer.copy_(mean.view_as(buffer))
    for name, buffer in buffers.items():
        if name not in running:
            dist.broadcast(buffer, 0)


def agree_on_weights(model: nn.Module, ranks: Ranks) -> None:
    """Give all processes the parameters and buffers of rank 0, in place."""
    if ranks.size == 1:
        return
    for tensor in model.state_dict().values():
        whole = tensor.contiguous()
        dist.broadcast(whole, 0)
        tensor.copy_(whole)


def total(values: Tensor, ranks: Ranks) -> Tensor:
    """Sum `values` over the processes, in place, and return them."""
    if ranks.size > 1:
        dist.all_reduce(values)
    return values


def synchronises(spec: TrainSpec, ranks: Ranks) -> bool:
    """True if a training by `ranks` computes the statistics of batch norm over the batches of all processes."""
    if spec.sync_batch_norm is not None:
        return spec.sync_batch_norm
    return ranks.size > 1 and spec.batch_size < IMAGES_FOR_BATCH_NORM * ranks.size


@contextmanager
def synchronised(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Compute the statistics of batch norm over the batches of all processes within the context.

    The layers stay the same objects, with their names and hooks; only their class changes within the context.
    """
    layers = [module for module in model.modules() if type(module) in _KINDS] if ranks.size > 1 else []
    kinds = [type(layer) for layer in layers]
    for layer in layers:
        on_cpu = next(model.parameters()).device.type == "cpu"
        layer.__class__ = _SynchronisedBatchNorm if on_cpu else nn.SyncBatchNorm
        # The constructor of nn.SyncBatchNorm sets this attribute.
        layer.__dict__["process_group"] = None
    try:
        yield
    finally:
        for layer, kind in zip(layers, kinds, strict=True):
            layer.__class__ = kind
            del layer.__dict__["process_group"]


_KINDS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes, for the CPU, where nn.SyncBatchNorm refuses to work."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Check nothing: the layer's own class has checked its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, var, count = _NormaliseTogether.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * (count / (count - 1)), momentum)
        return y


class _NormaliseTogether(torch.autograd.Function):
    """The function `(x - mean) / sqrt(var + eps) * weight + bias`, with mean and variance over all processes' images.

    Ioffe, Szegedy (2015), "Batch Normalization", section 3. It also returns the statistics and their count, which have
    no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        axes = [0, *range(2, x.dim())]
        var_C, mean_C = torch.var_mean(_wide(x), axes, correction=0)
        mine = torch.cat([mean_C, var_C, mean_C.new_tensor([x.numel() / x.shape[1]])])
        ranks = Ranks(dist.get_rank(), dist.get_world_size())
        all_RC = torch.stack(_gathered(mine, ranks))
        means_RC, vars_RC, counts_R1 = all_RC.split([len(mean_C), len(mean_C), 1], dim=1)
        count = counts_R1.sum()
        mean_C = (means_RC * counts_R1).sum(0) / count
        # Chan, Golub, LeVeque (1979): the formula avoids a difference of large squares.
        var_C = ((vars_RC + (means_RC - mean_C) ** 2) * counts_R1).sum(0) / count
        scale_C = (var_C + eps).rsqrt()
        y = (_wide(x) - _on_channels(mean_C, x)) * _on_channels(scale_C, x)
        if weight is not None:
            y = y * _on_channels(weight, x)
        if bias is not None:
            y = y + _on_channels(bias, x)
        ctx.save_for_backward(x, weight, mean_C, scale_C, count)
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return y.to(x.dtype), mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean_C, scale_C, count = ctx.saved_tensors
        axes = [0, *range(2, x.dim())]
        gradient = _wide(gradients[0])
        normal = (_wide(x) - _on_channels(mean_C, x)) * _on_channels(scale_C, x)
        mine = torch.cat([gradient.sum(axes), (gradient * normal).sum(axes)])
        # The gradients of weight and bias are averaged together with those of all other parameters.
        bias_gradient, weight_gradient = mine.clone().chunk(2)
        dist.all_reduce(mine)
        mean_gradient_C, mean_product_C = (mine / count).chunk(2)
        if weight is not None:
            scale_C = scale_C * weight
        inner = gradient - _on_channels(mean_gradient_C, x) - normal * _on_channels(mean_product_C, x)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return (
            (inner * _on_channels(scale_C, x)).to(x.dtype),
            weight_gradient if needs_weight else None,
            bias_gradient if needs_bias else None,
            None,
        )


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _on_channels(values_C: Tensor, x: Tensor) -> Tensor:
    return values_C.view(1, -1, *[1] * (x.dim() - 2))


def _gathered(mine: Tensor, ranks: Ranks) -> list[Tensor]:
    gathered = [torch.empty_like(mine) for _ in range(ranks.size)]
    dist.all_gather(gathered, mine)
    return gathered
