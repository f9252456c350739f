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

A layer that runs several times in a forward pass, such as a head that runs once for each map, has one problem for all
of its runs: their second moments add up, because the weights are the same. All of its inputs must have arrived before
it is refitted, so that it takes a pass of its own, at the place of its first run.

In attention, the queries and keys of heads that lost widths are not fitted to the dense network's queries and keys of
the widths that stay, but to the ones of this number of widths that give its products best (`query_key.py`).

Depthwise and transposed convolutions, layers that compute or share their weights, and layers that do not run on whole
images, or whose runs have different batch norms, keep their weights.
"""

from __future__ import annotations

import logging
from collections import Counter
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
from raprune.channels.multihead import projections_called
from raprune.channels.transfer import arrays_on
from raprune.methods.layer_observer import LayerObserver, structure_of
from raprune.methods.method import Batches, Cut, reestimate_batch_norm
from raprune.methods.patches import CHUNK, Patches
from raprune.methods.query_key import match_products
from raprune.methods.refitted_layer import RefittedLayer, drawn_patches

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
    with evaluating(model), evaluating(cut.dense), projections_called(model, cut.dense), torch.no_grad():
        layers, images, size, largest = _layers(model, cut, [images for images, _ in batches()])
        parts = images.split(size)
        for name, mix in match_products(model, parts, cut).items():
            if name.removesuffix(".weight") in layers:
                layers[name.removesuffix(".weight")].mix = mix
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
        rows = sum(Patches.rows(module, output, images) for output in here.outputs)
        entries = module.weight[0].numel()
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
    layers: Mapping[str, RefittedLayer],
    ridge: float,
) -> None:
    """Sample the dense network's outputs, then run the cut network and refit its layers in this pass.

    A layer that runs several times takes a pass of its own, between passes for the layers before and behind it.
    """
    samples = _dense_samples(dense, parts, layers, parts[0].device)
    for names in _passes(layers):
        joined = {name: [[torch.cat(of_run)] for of_run in samples.pop(name)] for name in names}
        if len(layers[names[0]].patches) > 1:
            _refit_layer(model, [images], layers, names[0], joined[names[0]], ridge)
        else:
            _refit_in_one_pass(model, images, layers, {name: joined[name][0][0] for name in names}, ridge)


def _passes(layers: Mapping[str, RefittedLayer]) -> list[list[str]]:
    """Return the names of the layers that are refitted in one pass each, in the order in which they are due."""
    passes: list[list[str]] = []
    for name, layer in sorted(layers.items(), key=lambda item: item[1].turn):
        runs_once = len(layer.patches) == 1
        if passes and runs_once and len(layers[passes[-1][0]].patches) == 1:
            passes[-1].append(name)
        else:
            passes.append([name])
    return passes


def _refit_in_one_pass(
    model: nn.Module, images: Tensor, layers: Mapping[str, RefittedLayer], samples: dict[str, Tensor], ridge: float
) -> None:
    """Run the cut network once and refit the layers of `samples`, each of which runs once, in this pass.

    A layer is refitted when its inputs arrive, or, at the end of a residual branch, when its output is added to the
    stream.
    """
    inputs: dict[str, Tensor] = {}

    def refit_layer(name: str, x: Tensor) -> None:
        if name not in samples:
            return
        if layers[name].added:
            inputs[name] = x
        else:
            layers[name].fit(x, samples.pop(name), ridge)

    def refit_branch(name: str, own: Tensor, other: Tensor) -> None:
        layer = layers[name]
        if not layer.added or name not in samples:
            return
        x = inputs.pop(name)
        layer.fit(x, layer.wanted_before(other, samples.pop(name), x), ridge)
        # `forward` skips the hooks: for the rest of the network this is the same call.
        y = layer.module.forward(x)
        own.copy_(y if layer.norm is None else layer.norm.forward(y))

    with LayerObserver(model, list(layers), before=refit_layer, added=refit_branch):
        call(model, images)


def _refit_in_chunks(
    model: nn.Module,
    dense: nn.Module,
    chunks: Sequence[Tensor],
    layers: Mapping[str, RefittedLayer],
    ridge: float,
    *,
    on_host: bool,
) -> None:
    """Refit as `_refit_front_to_back` does, with the activations of one chunk of images in memory at a time.

    Layers are refitted one after another, in the order of that pass; for each, every chunk passes the network up to
    the layer. The samples of the dense network are kept in the memory of the CPU if `on_host`.
    """
    place = torch.device("cpu") if on_host else chunks[0].device
    samples = _dense_samples(dense, chunks, layers, place)
    for name in sorted(layers, key=lambda name: layers[name].turn):
        _refit_layer(model, chunks, layers, name, samples.pop(name), ridge)


def _refit_layer(
    model: nn.Module,
    chunks: Sequence[Tensor],
    layers: Mapping[str, RefittedLayer],
    name: str,
    samples: Sequence[Sequence[Tensor]],
    ridge: float,
) -> None:
    """Refit one layer on the inputs of all its runs; `samples` has a tensor for each run and each of `chunks`."""
    layer = layers[name]
    sums, first = layer.moments(), 0
    for number, images in enumerate(chunks):
        arrived, other = _arriving(model, layers, name, images)
        for run, x in enumerate(arrived):
            wanted = samples[run][number].to(images.device)
            if layer.added and other is not None:
                wanted = layer.wanted_before(other, wanted, x, first)
            layer.add(sums, x, wanted, first, run)
        first += len(images)
    if sums.count > 0:
        layer.update(sums, ridge)


class _ReachedError(Exception):
    """Ends a forward pass at the layer that it is run for."""


def _arriving(
    model: nn.Module, layers: Mapping[str, RefittedLayer], wanted: str, images: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """Return the inputs of all runs of the layer `wanted`, and the tensor that its output is added to, or None.

    The network runs no further than it has to. Runs that it does not get to are missing, and so is that tensor.
    """
    inputs: list[Tensor] = []
    others: list[Tensor] = []
    runs = len(layers[wanted].patches)

    def before(name: str, x: Tensor) -> None:
        if name == wanted:
            is_last = len(inputs) == runs - 1
            # The network goes on after the other runs, and may change their inputs in place.
            inputs.append(x if is_last else x.clone())
            if is_last and not layers[name].added:
                raise _ReachedError

    def added(name: str, own: Tensor, other: Tensor) -> None:
        if name == wanted and layers[name].added:
            others.append(other)
            raise _ReachedError

    # All layers are observed, because the first operand of a sum decides whose output it is.
    with suppress(_ReachedError), LayerObserver(model, list(layers), before=before, added=added):
        call(model, images)
    return inputs, others[0] if others else None


def _dense_samples(
    dense: nn.Module, parts: Sequence[Tensor], layers: Mapping[str, RefittedLayer], place: torch.device
) -> dict[str, list[list[Tensor]]]:
    """Return for each layer, run and part of the images the outputs that the layer should have at its patches.

    They are on `place`. At the end of a residual branch they are the sums that the layer's output is a part of.
    """
    samples: dict[str, list[list[Tensor]]] = {name: [[] for _ in layer.patches] for name, layer in layers.items()}
    first = 0
    runs: Counter[str] = Counter()

    def sample(name: str, y: Tensor) -> None:
        samples[name][runs[name]].append(layers[name].wanted_of(y, first, runs[name]).to(place))
        runs[name] += 1

    def sample_output(name: str, x: Tensor, y: Tensor) -> None:
        if not layers[name].added:
            sample(name, y)

    def sample_sum(name: str, own: Tensor, other: Tensor) -> None:
        if layers[name].added:
            sample(name, own + other)

    with LayerObserver(dense, list(layers), after=sample_output, added=sample_sum):
        for images in parts:
            runs.clear()
            dense(images)
            first += len(images)
    return samples


def _refit_against_dense(
    dense: nn.Module, parts: Sequence[Tensor], layers: Mapping[str, RefittedLayer], ridge: float
) -> None:
    sums = {name: layer.moments() for name, layer in layers.items()}
    first = 0
    runs: Counter[str] = Counter()

    def add(name: str, x: Tensor, y: Tensor) -> None:
        layer, run = layers[name], runs[name]
        layer.add(sums[name], layer.staying_inputs(x), layer.wanted_of(y, first, run), first, run)
        runs[name] += 1

    with LayerObserver(dense, list(layers), after=add):
        for images in parts:
            runs.clear()
            dense(images)
            first += len(images)
    for name, layer in layers.items():
        layer.update(sums[name], ridge)


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
    def of(cls, layers: Mapping[str, RefittedLayer], images: Tensor, largest: int) -> _Needs:
        """Return the needs for `layers` on `images`; `largest` are the bytes of the largest activation of an image."""
        size = images.element_size()
        runs = [(patches, len(layer.outputs)) for layer in layers.values() for patches in layer.patches]
        samples = sum(patches.chosen.numel() * outputs * size for patches, outputs in runs)
        products = max((patches.needed_bytes for patches, _ in runs), default=0)
        targets = max((patches.chosen.shape[1] * outputs * 8 for patches, outputs in runs), default=0)
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


def _layers(model: nn.Module, cut: Cut, parts: list[Tensor]) -> tuple[dict[str, RefittedLayer], Tensor, int, int]:
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
    layers: dict[str, RefittedLayer] = {}
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
        patches = drawn_patches(module, here.outputs, len(images), seed)
        # Layers before the first missing channel have the same outputs as in the dense network.
        is_behind = is_behind or len(inputs) != shape[1]
        if not is_behind:
            continue
        factors = stays.gain(f"{name}.weight")
        gain = None if factors is None else torch.from_numpy(factors).to(images.device)
        layers[name] = RefittedLayer(module, norm, here.added, inputs, outputs, patches, here.turn, gain)
    return layers, images, len(parts[0]), largest
