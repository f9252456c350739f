"""Block-wise matching: after least squares each block of a cut network learns the dense block's outputs, no labels.

A block gets its inputs from the cut network, whose earlier blocks have been matched already, so that errors do not
accumulate. A few hundred steps of Adam on the calibration images bring its outputs closest to those of the dense
network, in mean square. Least squares brings each layer by itself as close as it can; the layers of a block together
can come closer, through the activations between them.

Li et al.: "BRECQ", ICLR 2021 (arXiv 2102.05426) reconstruct quantised networks block by block, from a second-order
argument that blocks are the best units. Ours: cut networks, all weights of a block, plain squares, and a part of the
images that decides whether the result is kept.

A block is the innermost module with one tensor in and one out that holds at least two convolutions or linear layers:
a residual block, an attention, an MLP. Layers outside of blocks keep the weights that least squares gave them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.evaluating import evaluating
from raprune.channels.graph import KeptPositions
from raprune.methods.method import Batches, Cut

BATCH = 64
LR = 1e-3
"""Peak learning rate of Adam, which falls to 0 along a cosine."""
HELD_OUT = 8
"""One image in so many judges the result: a block that does worse on them keeps its weights."""
LARGEST = 2**30
"""Maximum bytes of a block's inputs and outputs for all images; of more images the first are used."""

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class MatchedBlock:
    """A block of the dense network, in the order in which they run."""

    name: str
    layers: frozenset[str]
    """Names of the layers inside that weigh more than one position."""
    turn: int
    """Number of modules that ended before it began."""
    follows: str | None
    """The block whose output is this one's input, untouched."""
    last: str
    """The layer inside that ran last."""
    image_bytes: int
    """Bytes of input and output of one image."""


def match_blocks(model: nn.Module, batches: Batches, cut: Cut, *, steps: int) -> None:
    """Let the blocks of `model`, which `cut` describes, learn the dense network's outputs, in place, front to back.

    `steps` is the number of steps for each block. The same images and steps give the same weights on one machine.
    """
    images = torch.cat([images for images, _ in batches()])
    modules = dict(model.named_modules())
    with evaluating(model), evaluating(cut.dense):
        blocks = [block for block in blocks_of(cut.dense, images[:2]) if block.name in modules]
        if not blocks or len(images) < HELD_OUT:
            return
        room = LARGEST if cut.room is None else min(LARGEST, cut.room // 2)
        images = images[: max(HELD_OUT, room // max(block.image_bytes for block in blocks))]
        channels = _kept_outputs(blocks, cut)
        inputs, targets = Passing(model, images), Passing(cut.dense, images)
        for block in blocks:
            x, y = inputs.at(block), targets.through(block)
            kept = channels[block.name]
            wanted = y if kept is None else kept.of(y)
            _match(modules[block.name], x, wanted, steps=steps, seed=zlib.crc32(block.name.encode()))
            inputs.through(block)


def blocks_of(model: nn.Module, images: Tensor) -> list[MatchedBlock]:
    """Return the blocks of `model` in the order in which they run; `images` has shape `(2, C, H, W)`."""
    calls: dict[str, list[_Call]] = {}
    order: list[str] = []
    with evaluating(model), torch.no_grad(), _watched(model, calls, order):
        model(images)
    weighing = {name for name in order if isinstance(model.get_submodule(name), _LAYERS) and calls[name][0].weighs}
    once = {
        name: call
        for name, (call, *others) in calls.items()
        if not others and call.is_plain and call.batch == len(images)
    }
    inside = {name: frozenset(layer for layer in weighing if _is_inside(layer, name)) for name in once}
    able = {name for name in once if len(inside[name]) > 1}
    innermost = {name for name in able if not any(inside[other] < inside[name] for other in able)}
    # Of modules around the same layers the outermost has the sum with the shortcut.
    chosen = [name for name in innermost if not any(_is_inside(name, other) for other in innermost - {name})]
    blocks: list[MatchedBlock] = []
    for name in sorted(chosen, key=lambda name: once[name].turn):
        call = once[name]
        before = next((block.name for block in blocks if call.follows(once[block.name])), None)
        last = max(inside[name], key=order.index)
        bytes_ = sum(tensor.numel() * tensor.element_size() for tensor in (call.input, call.output)) // len(images)
        blocks.append(MatchedBlock(name, inside[name], call.turn, before, last, bytes_))
    return blocks


@dataclass(frozen=True)
class _Call:
    """A call of a module: its only input and output, where it has one of each."""

    input: Any
    output: Any
    turn: int
    versions: tuple[int, int] = (0, 0)
    """Number of changes in place that the input had had at the beginning, and the output at the end."""

    @property
    def is_plain(self) -> bool:
        return all(isinstance(value, Tensor) and value.is_floating_point() for value in (self.input, self.output))

    @property
    def batch(self) -> int:
        return len(self.input) if self.input.dim() > 1 else 0

    def follows(self, other: _Call) -> bool:
        """True if the input is the output of the other call, untouched."""
        return self.input is other.output and self.versions[0] == other.versions[1]

    @property
    def weighs(self) -> bool:
        """True if the layer weighs more than one position of an image, as that of a squeeze-and-excitation does not."""
        return self.is_plain and (self.input.dim() <= 3 or self.input[0, 0].numel() > 1)


@contextmanager
def _watched(model: nn.Module, calls: dict[str, list[_Call]], order: list[str]) -> Iterator[None]:
    """Note every call of every module within the context, and the names in the order in which they end."""
    began: dict[str, tuple[int, int]] = {}

    def begin(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            began[name] = len(order), getattr(inputs[0], "_version", 0) if inputs else 0

        return hook

    def end(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> None:
            only = inputs[0] if len(inputs) == 1 and not keywords else None
            turn, version = began[name]
            call = _Call(only, output, turn, (version, getattr(output, "_version", 0)))
            calls.setdefault(name, []).append(call)
            order.append(name)

        return hook

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(begin(name)))
        handles.append(module.register_forward_hook(end(name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_inside(name: str, outer: str) -> bool:
    return outer == "" or name.startswith(f"{outer}.")


@dataclass(frozen=True)
class _Channels:
    """Channels of a dense block's output that the cut block has."""

    axis: int
    size: int
    """Number of channels of the dense layer that ends the block."""
    positions: Tensor

    def of(self, y: Tensor) -> Tensor:
        """Return the channels of an output; all of an output that has others than the layer, as after a `cat`."""
        return y if y.shape[self.axis] != self.size else y.index_select(self.axis, self.positions.to(y.device))


def _kept_outputs(blocks: Sequence[MatchedBlock], cut: Cut) -> dict[str, _Channels | None]:
    """Return the channels of each block's outputs that stay; None: all.

    They are those of the layer inside that ran last: what it is added to has the same channels.
    """
    stays = KeptPositions(cut.graph, cut.kept)
    sliced = set(stays.sliced)
    found: dict[str, _Channels | None] = {}
    for block in blocks:
        layer, parameter = cut.dense.get_submodule(block.last), f"{block.last}.weight"
        outputs = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
        found[block.name] = None
        if (parameter, outputs) in sliced:
            axis = -1 if isinstance(layer, nn.Linear) else 1
            size = cut.graph.shapes[parameter][outputs]
            found[block.name] = _Channels(axis, size, torch.from_numpy(stays.of(parameter, outputs)))
    return found


class _ReachedError(Exception):
    """Ends a forward pass at the block that it is run for."""


class Passing:
    """Images on their way through a network, from block to block; a block that follows another one begins there."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self._model, self._images = model, images
        self._input: tuple[str, Tensor] | None = None
        self._output: tuple[str, Tensor] | None = None

    def at(self, block: MatchedBlock) -> Tensor:
        """Return the inputs of the block, of all images."""
        if self._input is None or self._input[0] != block.name:
            known = self._output is not None and self._output[0] == block.follows
            self._input = block.name, self._output[1] if known and self._output else self._arriving(block.name)
        return self._input[1]

    def through(self, block: MatchedBlock) -> Tensor:
        """Return the outputs of the block, of all images."""
        module = self._model.get_submodule(block.name)
        with torch.no_grad():
            self._output = block.name, torch.cat([module(x.clone()) for x in self.at(block).split(BATCH)])
        return self._output[1]

    def _arriving(self, name: str) -> Tensor:
        found: list[Tensor] = []

        def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.append(inputs[0].clone())
            raise _ReachedError

        handle = self._model.get_submodule(name).register_forward_pre_hook(stop)
        try:
            with torch.no_grad():
                for images in self._images.split(BATCH):
                    with suppress(_ReachedError):
                        self._model(images)
        finally:
            handle.remove()
        return torch.cat(found)


def _match(module: nn.Module, x: Tensor, wanted: Tensor, *, steps: int, seed: int) -> None:
    """Train a block, in place, for the outputs `wanted` of the inputs `x`, if that pays on the images held out."""
    with torch.no_grad():
        now = module(x[:1].clone())
    if now.shape[1:] != wanted.shape[1:]:
        return
    parameters = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    before = [parameter.detach().clone() for parameter in parameters]
    needed_grad = [parameter.requires_grad for parameter in parameters]
    held_out = torch.arange(len(x), device=x.device) % HELD_OUT == HELD_OUT - 1
    judged, learned = held_out.nonzero()[:, 0], (~held_out).nonzero()[:, 0]
    error = _error(module, x, wanted, judged)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters, lr=LR)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            drawn = learned[torch.randint(len(learned), (min(BATCH, len(learned)),), generator=generator).to(x.device)]
            loss = functional.mse_loss(module(x[drawn]), wanted[drawn])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for parameter, flag in zip(parameters, needed_grad, strict=True):
        parameter.grad = None
        parameter.requires_grad_(flag)
    # Also if it is not a number.
    if not bool(_error(module, x, wanted, judged) < error):
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def _error(module: nn.Module, x: Tensor, wanted: Tensor, places: Tensor) -> Tensor:
    """Return the summed squared error of a block on some of the images."""
    with torch.no_grad():
        parts = [(module(x[some]) - wanted[some]).square().sum() for some in cast(Any, places.split(BATCH))]
    return torch.stack(parts).sum()
