"""Least squares: the layers of a cut network compensate for the missing channels.

Every convolution and linear layer gets the weights W that bring its outputs closest to those of the dense network,

    min  || X W - Y ||^2  +  ridge * sum_i || x_i ||^2 || w_i - w0_i ||^2,

with X the patches that the layer reads (centred if a bias or a batch norm can represent the mean), Y the dense
network's outputs at these patches, and W0 the layer's weights before. The ridge is proximal: weights that the patches
do not determine keep their values. For a layer with few samples it is chosen: the one with the smallest error on the
even images of a fit to the odd ones, and the other way round.

He, Zhang, Sun: "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017 (arXiv 1707.06168) refit layers
in this way from front to back, and fit the sum with the shortcut at the end of a residual branch. Ours: all layers
behind the cut are refitted, including those that read only channels that stay.

Depthwise and transposed convolutions, layers that compute or share their weights, and layers that run more than once
in a forward pass or not on whole images keep their weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from raprune.channels.evaluating import evaluating
from raprune.channels.graph import KeptPositions
from raprune.channels.inputs import call
from raprune.channels.transfer import arrays_on
from raprune.methods.layer_observer import LayerObserver, structure_of
from raprune.methods.method import Batches, Cut, reestimate_batch_norm
from raprune.methods.moments import Halves, Moments, solved
from raprune.methods.patches import CHUNK, Patches

LARGEST = 2**32
"""Maximum bytes of the largest layer input or output for all images together; of more images the first are used. The
limit does not depend on the device, so that a network is refitted on the same images everywhere."""
LIVE = 4
"""Activations as large as the largest that a forward pass holds at once. Counted for ResNet-50: 3.4."""
_LOG = logging.getLogger(__name__)


def refit(model: nn.Module, batches: Batches, cut: Cut, *, asymmetric: bool = True, ridge: float = 1e-6) -> None:
    """Refit `model`, which `cut` describes, in place by least squares against the outputs of the dense network.

    Asymmetric: each layer is fitted on its inputs in the cut network, whose earlier layers are refitted already, so
    that errors do not accumulate; the last layer of a residual branch also compensates for the error of the stream
    that its output is added to. Symmetric: each layer is fitted on its inputs in the dense network, and batch norms
    are re-estimated afterwards.

    Batch norms keep the dense network's variance; their means absorb the shift of a refit. Measured: after an
    asymmetric refit, re-estimation loses one to three points of accuracy.

    Images that do not fit into `cut.room` together pass in chunks, which takes a forward pass up to each layer;
    the sums over them are the same. More images than `LARGEST` allows are left out, which is logged.
    """
    is_whole = all(len(channels) == cut.graph.by_name[name].num_channels for name, channels in cut.kept.items())
    if is_whole and not cut.identity:
        return
    with evaluating(model), evaluating(cut.dense), torch.no_grad():
        layers, images, size, largest = _layers(model, cut, [images for images, _ in batches()])
        parts = images.split(size)
        if asymmetric:
            needs = _Needs.of(layers, images, largest)
            if cut.room is None or needs.whole <= cut.room:
                _refit_front_to_back(model, cut.dense, images, parts, layers, ridge)
            else:
                chunks = images.split(needs.images_in(cut.room))
                on_host = not needs.samples_fit(cut.room)
                _say(
                    f"Refit layer by layer: {needs.images} images in {len(chunks)} chunks, because all at once need "
                    f"{needs.whole / 2**20:,.0f} MiB and {cut.room / 2**20:,.0f} MiB are free."
                )
                _refit_in_chunks(model, cut.dense, chunks, layers, ridge, on_host=on_host)
        else:
            _refit_against_dense(cut.dense, parts, layers, ridge)
    if not asymmetric:
        reestimate_batch_norm(model, batches)


def refit_bytes(dense: nn.Module, image: Tensor, images: int, *, each: float) -> int:
    """Estimate the peak memory in bytes of `refit` on `images` images like `image`, `(1, C, H, W)`.

    `each` are the bytes per image of a forward pass of `dense`. The peak is at the beginning of the pass through the
    cut network: all images are in it, and the samples of all layers wait.
    """
    with evaluating(dense), torch.no_grad():
        ran, largest = structure_of(dense, image.repeat(2, 1, 1, 1))
    images = min(images, max(1, LARGEST // largest))
    modules = dict(dense.named_modules())
    samples, part, longest = 0, 0, 1
    for name, here in ran.items():
        module = cast(nn.Conv2d | nn.Linear, modules[name])
        rows, entries = Patches.rows(module, here.output, images), module.weight[0].numel()
        samples += rows * module.weight.shape[0] * 4
        # Patches are read of every second image at a time.
        part, longest = max(part, min(CHUNK, rows * entries // 2)), max(longest, entries)
    # A layer's padded input, a part of its patches (as read and in order; float32 on GPUs), and the solved matrices.
    work = largest * images + part * (4 + 4) + 6 * longest**2 * 8
    return round(each * images) + samples + work


def _refit_front_to_back(
    model: nn.Module,
    dense: nn.Module,
    images: Tensor,
    parts: Sequence[Tensor],
    layers: Mapping[str, _Layer],
    ridge: float,
) -> None:
    """Sample the dense network's outputs, then run the cut network once and refit each layer in this pass.

    A layer is refitted when its inputs arrive, or, at the end of a residual branch, when its output is added to the
    stream.
    """
    samples = _dense_samples(dense, parts, layers, parts[0].device)
    inputs: dict[str, Tensor] = {}

    def refit_layer(name: str, x: Tensor) -> None:
        if layers[name].added:
            inputs[name] = x
        else:
            layers[name].fit(x, torch.cat(samples.pop(name)), ridge)

    def refit_branch(name: str, own: Tensor, other: Tensor) -> None:
        layer = layers[name]
        if not layer.added:
            return
        x = inputs.pop(name)
        layer.fit(x, layer.wanted_before(other, torch.cat(samples.pop(name)), x), ridge)
        # `forward` skips the hooks: for the rest of the network this is the same call.
        y = layer.module.forward(x)
        own.copy_(y if layer.norm is None else layer.norm.forward(y))

    with LayerObserver(model, list(layers), before=refit_layer, added=refit_branch):
        call(model, images)


def _refit_in_chunks(
    model: nn.Module,
    dense: nn.Module,
    chunks: Sequence[Tensor],
    layers: Mapping[str, _Layer],
    ridge: float,
    *,
    on_host: bool,
) -> None:
    """Refit as `_refit_front_to_back` does, with the activations of one chunk of images in memory at a time.

    Layers are refitted one after another, in the order of that pass; for each, every chunk passes the network up to
    the layer. The samples of the dense network are kept in the memory of the CPU if `on_host`.
    """
    device = chunks[0].device
    samples = _dense_samples(dense, chunks, layers, torch.device("cpu") if on_host else device)
    for name, layer in sorted(layers.items(), key=lambda item: item[1].turn):
        sums, first = layer.moments(), 0
        for images, of_dense in zip(chunks, samples.pop(name), strict=True):
            x, other = _arriving(model, layers, name, images)
            if x is not None:
                wanted = of_dense.to(device)
                if layer.added and other is not None:
                    wanted = layer.wanted_before(other, wanted, x, first)
                layer.add(sums, x, wanted, first)
            first += len(images)
        if sums.count > 0:
            layer.update(sums, ridge)


class _ReachedError(Exception):
    """Ends a forward pass at the layer that it is run for."""


def _arriving(
    model: nn.Module, layers: Mapping[str, _Layer], wanted: str, images: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the input of the layer `wanted`, and the tensor that its output is added to if it ends a branch.

    The network runs no further than it has to. Each is None if the network does not get there.
    """
    found: dict[str, Tensor] = {}

    def before(name: str, x: Tensor) -> None:
        if name == wanted:
            found["input"] = x
            if not layers[name].added:
                raise _ReachedError

    def added(name: str, own: Tensor, other: Tensor) -> None:
        if name == wanted:
            found["other"] = other
            raise _ReachedError

    # All layers are observed, because the first operand of a sum decides whose output it is.
    with suppress(_ReachedError), LayerObserver(model, list(layers), before=before, added=added):
        call(model, images)
    return found.get("input"), found.get("other")


def _dense_samples(
    dense: nn.Module, parts: Sequence[Tensor], layers: Mapping[str, _Layer], place: torch.device
) -> dict[str, list[Tensor]]:
    """Return for each layer and part of the images the outputs that it should have at its patches, on `place`.

    At the end of a residual branch these are the sums that the layer's output is a part of.
    """
    samples: dict[str, list[Tensor]] = {name: [] for name in layers}
    first = 0

    def sample(name: str, y: Tensor) -> None:
        samples[name].append(layers[name].wanted_of(y, first).to(place))

    def sample_output(name: str, x: Tensor, y: Tensor) -> None:
        if not layers[name].added:
            sample(name, y)

    def sample_sum(name: str, own: Tensor, other: Tensor) -> None:
        if layers[name].added:
            sample(name, own + other)

    with LayerObserver(dense, list(layers), after=sample_output, added=sample_sum):
        for images in parts:
            dense(images)
            first += len(images)
    return samples


def _refit_against_dense(dense: nn.Module, parts: Sequence[Tensor], layers: Mapping[str, _Layer], ridge: float) -> None:
    sums = {name: layer.moments() for name, layer in layers.items()}
    first = 0

    def add(name: str, x: Tensor, y: Tensor) -> None:
        layer = layers[name]
        layer.add(sums[name], layer.staying_inputs(x), layer.wanted_of(y, first), first)

    with LayerObserver(dense, list(layers), after=add):
        for images in parts:
            dense(images)
            first += len(images)
    for name, layer in layers.items():
        layer.update(sums[name], ridge)


@dataclass
class _Layer:
    """A layer of the cut network that is refitted, and its place in the network."""

    module: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None
    """The batch norm that takes the layer's output, if any."""
    added: bool
    """True if the output of the layer, or of its batch norm, is added to a tensor: the end of a residual branch."""
    inputs: Tensor
    """Positions on the dense layer's input axis (of each group) that stay."""
    outputs: Tensor
    """Outputs of the dense layer that stay."""
    patches: Patches
    turn: int
    """Place in the order in which the layers are refitted."""
    gain: Tensor | None = None
    """Factor of each output that stays, where a cut changes the scale of queries."""

    def wanted_of(self, y: Tensor, first: int) -> Tensor:
        """Return the outputs `(N, M)` that the layer should have at its patches, from the dense layer's output `y`."""
        wanted = self.patches.of_output(y, first)[:, self.outputs]
        return wanted if self.gain is None else wanted * self.gain.to(wanted.dtype)

    @property
    def _centred(self) -> bool:
        return self.module.bias is not None or self.norm is not None

    def fit(self, x: Tensor, wanted: Tensor, ridge: float) -> None:
        """Refit on all inputs at once; `wanted` are the target outputs at the patches, shape `(N, M)`."""
        sums = self.moments()
        self.add(sums, x, wanted)
        self.update(sums, ridge)

    def moments(self) -> Halves:
        return Halves()

    def add(self, halves: Halves, x: Tensor, wanted: Tensor, first: int = 0) -> None:
        dtype = self.patches.dtype
        weight = self._weight().to(dtype)
        wanted_by_image = wanted.unflatten(0, (len(x), -1))
        for offset in range(min(2, len(x))):
            sums, targets = halves.parts[(first + offset) % 2], wanted_by_image[offset::2].flatten(0, 1)
            for part, read in self.patches.of_input(x[offset::2], first + offset, step=2):
                now = read @ weight
                if self.module.bias is not None:
                    now += self.module.bias.to(dtype).reshape(len(weight), 1, -1)
                sums.add(read, targets[part].to(dtype).unflatten(1, (len(weight), -1)).transpose(0, 1) - now)

    def update(self, halves: Halves, ridge: float) -> None:
        def system(sums: Moments) -> tuple[Tensor, Tensor]:
            return sums.gram(centred=self._centred), sums.cross(centred=self._centred)

        sums = halves.whole
        gram, cross = system(sums)
        change = solved(gram, cross, halves.ridge_for(gram.shape[-1], ridge, system))
        self.module.weight.copy_((self._weight() + change).mT.reshape(self.module.weight.shape))
        if self._centred:
            mean_x, mean_r = sums.means
            self._shift((mean_r - (mean_x[:, None, :] @ change)[:, 0]).reshape(-1))

    def wanted_before(self, other: Tensor, total: Tensor, x: Tensor, first: int = 0) -> Tensor:
        """Return the outputs, `(N, M)`, for which the end of a branch adds up to `total` with the stream `other`."""
        return self.before_norm(total.double() - self.patches.of_output(other, first).double(), x, first)

    def before_norm(self, y: Tensor, x: Tensor, first: int = 0) -> Tensor:
        """Return the outputs of the layer, `(N, M)`, for which its batch norm gives `y`.

        For a channel whose scale in the batch norm is nearly 0, return the present output, because it has no effect.
        """
        if self.norm is None:
            return y
        mean, variance = cast(Tensor, self.norm.running_mean), cast(Tensor, self.norm.running_var)
        scale = (variance.double() + self.norm.eps).rsqrt()
        offset = -mean.double() * scale
        if self.norm.affine:
            scale, offset = scale * self.norm.weight.double(), offset * self.norm.weight.double() + self.norm.bias
        cut_off = scale.abs() <= 1e-3 * scale.abs().max()
        now = self.patches.of_output(self.module.forward(x), first).double() if cut_off.any() else y
        return torch.where(cut_off, now, (y - offset) / torch.where(cut_off, 1.0, scale))

    def staying_inputs(self, x: Tensor) -> Tensor:
        """Return the part of the dense layer's input that the cut layer gets."""
        axis = x.dim() - 1 if isinstance(self.module, nn.Linear) else 1
        starts = torch.arange(self.patches.groups, device=x.device)[:, None] * (x.shape[axis] // self.patches.groups)
        return x.index_select(axis, (starts + self.inputs).reshape(-1))

    def _weight(self) -> Tensor:
        """Return the weights, shape `(G, P, M)`, float64."""
        return self.module.weight.double().unflatten(0, (self.patches.groups, -1)).flatten(2).mT

    def _shift(self, shift: Tensor) -> None:
        if self.norm is not None:
            cast(Tensor, self.norm.running_mean).sub_(shift)
        else:
            cast(Tensor, self.module.bias).add_(shift)


@dataclass(frozen=True)
class _Needs:
    """The memory that a refit needs, in bytes."""

    images: int
    samples: int
    """Samples of the dense network's outputs, for all layers."""
    products: int
    """Patches and Gram matrices of the layer that needs most, and the images."""
    an_image: int
    """Activations of one image, and the outputs at its patches that a layer is fitted to."""

    @classmethod
    def of(cls, layers: Mapping[str, _Layer], images: Tensor, largest: int) -> _Needs:
        """Return the needs for `layers` on `images`; `largest` are the bytes of the largest activation of an image."""
        size = images.element_size()
        samples = sum(layer.patches.chosen.numel() * len(layer.outputs) * size for layer in layers.values())
        products = max((layer.patches.needed_bytes for layer in layers.values()), default=0)
        targets = max((layer.patches.chosen.shape[1] * len(layer.outputs) * 8 for layer in layers.values()), default=0)
        return cls(len(images), samples, products + images.numel() * size, LIVE * (largest + targets))

    @property
    def whole(self) -> int:
        """Bytes for all images at once."""
        return self.samples + self.products + self.images * self.an_image

    def samples_fit(self, room: int) -> bool:
        """True if the samples take at most half of `room` bytes."""
        return 2 * self.samples <= room

    def images_in(self, room: int) -> int:
        """Return the number of images of a chunk for `room` bytes, at least 1."""
        samples = self.samples if self.samples_fit(room) else 0
        return max(1, (room - samples - self.products) // self.an_image)


@cache
def _say(message: str) -> None:
    """Log the message once in this process: every candidate may need the same."""
    _LOG.warning(message)


def _layers(model: nn.Module, cut: Cut, parts: list[Tensor]) -> tuple[dict[str, _Layer], Tensor, int, int]:
    """Return the layers behind the first cut in the order in which they run, and the images that `LARGEST` allows.

    Then the size of a batch of `parts`, and the bytes of a layer's largest input or output for one image.
    """
    ran, largest = structure_of(cut.dense, parts[0][:2])
    images = torch.cat(parts)
    most = max(1, LARGEST // largest)
    if len(images) > most:
        _say(
            f"Refit: {most} of {len(images)} calibration images are used, the others are left out: the largest layer "
            f"has {largest / 2**20:.1f} MiB an image, of at most {LARGEST / 2**30:.0f} GiB for all images."
        )
        images = images[:most]
    modules, dense = dict(model.named_modules()), dict(cut.dense.named_modules())
    stays = KeptPositions(cut.graph, cut.kept)
    sliced = set(stays.sliced)
    layers: dict[str, _Layer] = {}
    is_behind = False
    for seed, (name, here) in enumerate(ran.items()):
        if name not in modules:
            # Inside a block that is gone: all layers behind it read other inputs than in the dense network.
            is_behind = True
            continue
        module = cast(nn.Conv2d | nn.Linear, modules[name])
        shape = cast(Tensor, dense[name].weight).shape
        outputs, inputs = (
            arrays_on(images.device, [stays.of(f"{name}.weight", axis)])[0]
            if (f"{name}.weight", axis) in sliced
            else torch.arange(shape[axis], device=images.device)
            for axis in (0, 1)
        )
        norm = None if here.norm is None else cast(nn.BatchNorm2d, modules[here.norm])
        patches = Patches.drawn(module, here.output, len(images), seed)
        # Layers before the first missing channel have the same outputs as in the dense network.
        is_behind = is_behind or len(inputs) != shape[1]
        if not is_behind:
            continue
        factors = stays.gain(f"{name}.weight")
        gain = None if factors is None else torch.from_numpy(factors).to(images.device)
        layers[name] = _Layer(module, norm, here.added, inputs, outputs, patches, here.turn, gain)
    return layers, images, len(parts[0]), largest
