"""The state of a training: what a checkpoint of it stores, and how it is restored."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from raprune.data.ranks import Ranks
from raprune.spec.job import TrainSpec
from raprune.training import distributed
from raprune.training.checkpoint import pack, unpack
from raprune.training.epoch import Epoch
from raprune.training.optimiser import Rates

_STATE = ("momentum_buffer", "step", "exp_avg", "exp_avg_sq")
"""Tensors that an optimiser keeps for each parameter: the first one SGD, the others AdamW."""

_STORED_AS = {"momentum_buffer": "momentum"}
"""Name in a checkpoint of such a tensor, where it differs."""


class TrainingState:
    """The state of a training, which a checkpoint stores: weights, optimiser, average, generator, step and history."""

    def __init__(
        self, model: nn.Module, spec: TrainSpec, seed: int, scaler: torch.amp.GradScaler, *, of: Mapping[str, Any]
    ) -> None:
        self.step = 0
        self.features: float | None = None
        """Weight of the feature maps; None until it is known."""
        self.before: list[Epoch] = []
        self.history: list[Epoch] = []
        self.generator = torch.Generator().manual_seed(seed)
        self._model = model
        self._scaler = scaler
        self._of = of
        self._rates = Rates(model, spec)
        self._optimizer = self._rates.optimizer
        self.forget_gradients()
        self._average = Average(model, spec.ema) if spec.ema > 0 else None

    def unscale(self) -> None:
        """Give the gradients their own size, if the loss was scaled."""
        self._scaler.unscale_(self._optimizer)

    @property
    def scales(self) -> bool:
        """True if the loss is scaled."""
        return self._scaler.is_enabled()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        self._rates.set(lr)

    def update(self) -> None:
        """Change the weights by their gradients."""
        # Without a scale this is the optimiser's step; with one, a step whose gradients overflowed is left out.
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.forget_gradients()

    def forget_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def end_step(self) -> None:
        if self._average is not None:
            self._average.add(self._model, self.step)
        self.step += 1

    def end_epoch(self, epoch: Epoch, ranks: Ranks) -> None:
        self.history.append(epoch)
        buffers = dict(self._model.named_buffers())
        distributed.agree_on_buffers(self._model, buffers, ranks)
        if self._average is not None:
            averaged = {name: value for name, value in self._average.values.items() if name in buffers}
            distributed.agree_on_buffers(self._model, averaged, ranks)

    def finish(self) -> None:
        if self._average is not None and self.step > 0:
            self._average.copy_to(self._model)

    def content(self) -> bytes:
        tensors = {f"model/{name}": tensor for name, tensor in self._model.state_dict().items()}
        for name, parameter in self._model.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"{_STORED_AS.get(key, key)}/{name}"] = value
        if self._average is not None:
            tensors |= {f"average/{name}": value for name, value in self._average.values.items()}
        tensors["generator"] = self.generator.get_state()
        history = [asdict(epoch) for epoch in self.history]
        scale = self._scaler.state_dict()
        before = [asdict(epoch) for epoch in self.before]
        progress = {"of": self._of, "step": self.step, "history": history, "scale": scale, "features": self.features}
        return pack(tensors, progress | ({"before": before} if before else {}))

    def resume(self, content: bytes | None) -> None:
        """Resume from a checkpoint; ignore a damaged checkpoint, or one of another training, with a warning."""
        if content is None:
            return
        try:
            tensors, progress = unpack(content)
        except ValueError as error:
            warnings.warn(f"The training starts from the beginning: its checkpoint is {error}.", stacklevel=3)
            return
        others = {name: value for name, value in progress["of"].items() if value != self._of.get(name)}
        if others:
            mine = {name: self._of.get(name) for name in others}
            warnings.warn(
                f"The training starts from the beginning: its checkpoint belongs to another training, with {others} "
                f"instead of {mine}.",
                stacklevel=3,
            )
            return
        self.step = progress["step"]
        self.features = progress.get("features")
        self.history = [Epoch(**epoch) for epoch in progress["history"]]
        self.before = [Epoch(**epoch) for epoch in progress.get("before", [])]
        self.generator.set_state(tensors["generator"])
        if progress.get("scale"):
            self._scaler.load_state_dict(progress["scale"])
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        self._model.load_state_dict(parts["model"])
        for name, parameter in self._model.named_parameters():
            for key in _STATE:
                stored = parts[_STORED_AS.get(key, key)]
                if name in stored:
                    self._optimizer.state[parameter][key] = _alike(stored[name], parameter, is_count=key == "step")
        if self._average is not None:
            for name, value in self._average.values.items():
                value.copy_(parts["average"][name])


def epochs_in(content: bytes) -> list[Epoch]:
    """Return the epochs of the training of a checkpoint, without those of trainings before it."""
    _, progress = unpack(content)
    return [Epoch(**epoch) for epoch in progress["history"]]


def _alike(stored: Tensor, parameter: nn.Parameter, *, is_count: bool) -> Tensor:
    """Return a tensor of the optimiser as it keeps it: on the device and in the memory format of `parameter`."""
    return stored.to(parameter.device) if is_count else torch.empty_like(parameter).copy_(stored)


class Average:
    """The exponential moving average of a network's weights and floating-point buffers.

    Polyak, Juditsky (1992). The decay of the first steps is smaller, `(1 + step) / (10 + step)`; otherwise the average
    would contain the initial weights for a long time.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.values = {name: tensor.detach().clone() for name, tensor in _floats(model)}
        self._decay = decay

    @torch.no_grad()
    def add(self, model: nn.Module, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [tensor.detach() for _, tensor in _floats(model)], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        for name, tensor in _floats(model):
            tensor.copy_(self.values[name])


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point())
