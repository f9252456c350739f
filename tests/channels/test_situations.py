"""Tests of the proof in other situations, of its arithmetic, and of inputs that are not one image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.inputs import NetworkInputs, call
from raprune.channels.proof import Proof, prove
from raprune.channels.trace import trace
from raprune.errors import ModelError
from raprune.records import Candidate
from tests.channels.networks import Net, conv, image


def proof_of(model: nn.Module, inputs: NetworkInputs | None = None) -> Proof:
    inputs = image() if inputs is None else inputs
    model.eval()
    return prove(model, trace(model, inputs), inputs)


class Branched(Net):
    """One of two convolutions, which the image decides."""

    def __init__(self, second: Callable[[Tensor, bool], bool]) -> None:
        super().__init__()
        self.second = second
        self.one, self.other, self.free, self.last = conv(8, 8), conv(8, 8), conv(8, 6), conv(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = self.other(y) if self.second(x, self.training) else self.one(y)
        logits: Tensor = self.head(self.last(functional.relu(self.free(y))).mean((2, 3)))
        return logits


def by_value(x: Tensor, _: bool) -> bool:
    return bool(x.mean() > 1)


def by_size(x: Tensor, _: bool) -> bool:
    return x.shape[-1] > 8


def by_batch(x: Tensor, _: bool) -> bool:
    return len(x) > 1


def by_mode(_: Tensor, training: bool) -> bool:
    return training


@pytest.mark.parametrize(
    ("second", "situation"),
    [
        (by_value, "values"),
        (by_size, "with an image of 12 x 12"),
        (by_batch, "with a batch of two"),
        (by_mode, "in training mode"),
    ],
)
def test_proof_branch_that_the_example_does_not_take_freezes_its_channels(
    second: Callable[[Tensor, bool], bool], situation: str
) -> None:
    proof = proof_of(Branched(second))
    assert set(proof.frozen) == {"stem", "one"}
    assert all(situation in reason for reason in proof.frozen.values())
    assert set(proof.graph.widths) == {"free", "last"}


class ScaledBranch(Net):
    """A residual branch whose factor follows the width, beside a norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.conv = norm, conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x)) * x.shape[1] ** -0.5


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 8), nn.BatchNorm2d(8)], ids=lambda norm: type(norm).__name__)
def test_proof_factor_that_follows_the_width_beside_a_norm_is_frozen(norm: nn.Module) -> None:
    assert set(proof_of(ScaledBranch(norm)).frozen) == {"stem"}


class Quantised(Net):
    """A range in two buffers, which the network checks."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(-4.0))
        self.register_buffer("high", torch.tensor(4.0))

    def body(self, x: Tensor) -> Tensor:
        assert bool(self.low + 2 < self.high), "the range is empty"
        return x.clamp(self.low, self.high)


def test_proof_buffers_that_are_settings_keep_their_values() -> None:
    assert set(proof_of(Quantised()).graph.widths) == {"stem"}


class SingleFloats(Net):
    """A network whose code asks for float32."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.plain = nn.Linear(4, 8), torch.ones(1, 4)

    def body(self, x: Tensor) -> Tensor:
        waves = torch.arange(4).float()[None].cos() + torch.linspace(0, 1, 4)[None]
        return x.float() + (self.table(waves) + self.table(self.plain))[..., None, None]


def test_proof_network_that_asks_for_float32_is_proved() -> None:
    proof = proof_of(SingleFloats())
    assert set(proof.graph.widths) == {"stem"}
    assert proof.cut_error < 1e-12


class ChannelNoise(Net):
    """Noise of the activations' shape, and dropout in training."""

    def body(self, x: Tensor) -> Tensor:
        return functional.dropout(x + torch.randn_like(x), 0.5, self.training)


def test_proof_noise_of_each_channel_is_no_failure() -> None:
    assert proof_of(ChannelNoise()).frozen == {}


class Empty(Net):
    """A detector that finds nothing in noise."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.stem(x).flatten()
        return scores[scores > 1e9]


class Silent(Net):
    """A network whose code fails on tensors of other values."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32, "images must be float32"
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "message"), [(Empty(), "no tensor with values"), (Silent(), "images must be float32")]
)
def test_proof_network_without_a_reference_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        proof_of(model)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = conv(3, 8), conv(1, 8), nn.Linear(8, 5)

    def forward(self, colours: Tensor, depth: Tensor) -> Tensor:
        logits: Tensor = self.head((self.left(colours) + self.right(depth)).relu().mean((2, 3)))
        return logits


class ListOfImages(Net):
    def forward(self, images: list[Tensor]) -> list[Tensor]:  # type: ignore[override]  # a detector's signature
        return [super(ListOfImages, self).forward(one[None]) for one in images]


class Diffusion(Net):
    """An image and the number of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(1, 8), conv(8, 8)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:  # type: ignore[override]  # two inputs
        return self.last((self.stem(x) + self.embed(step[:, None].to(x.dtype))[..., None, None]).relu())


class Tokens(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Embedding(9, 6), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5))


class Answer:
    """An output that is an object of the user's own class."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Objects(Net):
    def forward(self, x: Tensor) -> Answer:  # type: ignore[override]  # an object
        return Answer(super().forward(x))


DEPTH = torch.ones(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("model", "inputs", "group"),
    [
        (TwoInputs(), (image(), DEPTH), "left"),
        (TwoInputs(), {"colours": image(), "depth": DEPTH}, "left"),
        (ListOfImages(), [image()[0], image()[0]], "stem"),
        (Diffusion(), (image(), torch.tensor([7])), "stem"),
        (Tokens(), torch.tensor([[1, 2, 8]]), "1"),
        (Objects(), image(), "stem"),
    ],
    ids=["tuple", "dict", "list", "image and step", "tokens", "object"],
)
def test_trace_inputs_and_outputs_of_other_kinds_are_proved_and_cut(
    model: nn.Module, inputs: NetworkInputs, group: str
) -> None:
    proof = proof_of(model, inputs)
    assert proof.frozen == {}
    smaller = cut(model, proof.graph, Candidate("half", {group: (0, 2, 3)}))
    call(smaller, inputs)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


def test_trace_input_without_a_tensor_is_refused() -> None:
    with pytest.raises(ModelError, match="no tensor"):
        trace(Net(), {})
