"""Splits and slices whose sizes are numbers on the module: the parts lose channels apart, and the numbers follow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.records import Candidate
from tests.channels.networks import Net, conv, image
from tests.channels.proved import outputs


class ListOfSizes(Net):
    """As in MixNet, FocalNet and InceptionNeXt."""

    def __init__(self) -> None:
        super().__init__(width=8)
        self.sizes = [5, 3]
        self.one, self.other = conv(5, 4), conv(3, 4)

    def body(self, x: Tensor) -> Tensor:
        one, other = torch.split(x, self.sizes, 1)
        return torch.cat([self.one(one), self.other(other)], 1)


class NumbersOfParts(ListOfSizes):
    """As in FasterNet: a number for each part."""

    def __init__(self) -> None:
        super().__init__()
        del self.sizes
        self.dim_one, self.dim_other = 5, 3

    def body(self, x: Tensor) -> Tensor:
        one, other = x.split([self.dim_one, self.dim_other], 1)
        return torch.cat([self.one(one), self.other(other)], 1)


class WholeAndPart(NumbersOfParts):
    """As in SHViT: the second size is the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.dim_other = 8

    def body(self, x: Tensor) -> Tensor:
        one, other = x.split([self.dim_one, self.dim_other - self.dim_one], 1)
        return torch.cat([self.one(one), self.other(other)], 1)


class Slices(NumbersOfParts):
    """As in DPN."""

    def body(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x[:, : self.dim_one]), self.other(x[:, self.dim_one :])], 1)


class InTheCode(NumbersOfParts):
    """Numbers that no cut can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.dim_one = self.dim_other = 0

    def body(self, x: Tensor) -> Tensor:
        one, other = x.split([5, 3], 1)
        return torch.cat([self.one(one), self.other(other)], 1)


class Reshaped(Net):
    """As in torchvision's ViT: the number of channels is an argument of a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_dim = 8
        self.mix = nn.Linear(8, 8)

    def body(self, x: Tensor) -> Tensor:
        tokens = x.reshape(len(x), self.hidden_dim, x.shape[2] * x.shape[3]).transpose(1, 2)
        return self.mix(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class ShapeOfScale(Net):
    """As in timm's MetaFormer: a scale has the shape that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.shape, self.scale = (8, 1, 1), nn.Parameter(torch.ones(8))

    def body(self, x: Tensor) -> Tensor:
        return x * self.scale.view(self.shape)


class Reduced(Net):
    """As in PVT and SegFormer: what a layer returned is reshaped by the number of the channels that it read."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.other, self.norm = conv(8, 8, stride=2), conv(8, 8, stride=2), nn.LayerNorm(8)

    def body(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = self.pool(x).reshape(batch, channels, -1)
        x = self.other(x)
        z = x.view(batch, channels, -1)
        return self.norm((y + z).transpose(1, 2)).transpose(1, 2).unflatten(2, ((height + 1) // 2, (width + 1) // 2))


class ShapeBefore(Net):
    """As in transformers: a tuple that the function made holds the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.own_dim, self.mix = 8, nn.Linear(8, 8)

    def body(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        shape = (*tokens.shape[:-1], -1, self.own_dim)
        return self.mix(tokens.reshape(shape)).flatten(2).transpose(1, 2).unflatten(2, x.shape[2:])


class Blur(nn.Module):
    """A fixed filter of each channel, with the number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("filter", torch.ones(channels, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.filter, Tensor)
        return functional.conv2d(x, self.filter, padding=1, groups=self.channels)


class Blurred(Net):
    """As in TResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = Blur(8)

    def body(self, x: Tensor) -> Tensor:
        y: Tensor = self.blur(x)
        return y


class NormWithoutWeights(Net):
    """As in Qwen3's encoder: the shape of the norm is all that knows the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)

    def body(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.movedim(1, -1))
        return y.movedim(-1, 1)


class StackedMaps(Net):
    """As in CoaT: a convolution mixes the vectors of two maps, channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.mix = conv(8, 8), nn.Conv1d(2, 3, 1)

    def body(self, x: Tensor) -> Tensor:
        vectors = torch.stack([x.mean((2, 3)), self.other(x).mean((2, 3))], 1)
        return x + self.mix(vectors).sum(1)[:, :, None, None]


KINDS = [
    Blurred,
    NormWithoutWeights,
    StackedMaps,
    ListOfSizes,
    NumbersOfParts,
    WholeAndPart,
    Slices,
    Reshaped,
    ShapeOfScale,
    Reduced,
    ShapeBefore,
    InTheCode,
]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_with_numbers_on_the_module_follow_the_cut(kind: type[Net]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    graph = prove(model, trace(model, image()), image()).graph
    stem = sum(g.num_channels for g in graph.groups if any(m.parameter == "stem.weight" for m in g.members))
    assert stem == (0 if kind is InTheCode else 8)
    kept = {group.name: tuple(range(0, group.num_channels, 2)) for group in graph.groups}
    assert outputs(cut(model, graph, Candidate("half", kept)), image((2, 3, 12, 12))).isfinite().all()
    if kind is InTheCode:
        assert "split into unequal parts" in {frozen.reason for frozen in graph.frozen}


def test_parts_that_share_a_number_stay_equally_many() -> None:
    """The same number splits two tensors, whose channels no layer connects."""

    class Twice(NumbersOfParts):
        def __init__(self) -> None:
            super().__init__()
            self.again = conv(8, 8)

        def body(self, x: Tensor) -> Tensor:
            first, _ = x.split([self.dim_one, self.dim_other], 1)
            second, other = self.again(x).split([self.dim_one, self.dim_other], 1)
            return torch.cat([self.one(first), self.one(second), self.other(other)], 1)

    torch.manual_seed(0)
    model = Twice()
    model.head = nn.Linear(12, 5)
    graph = prove(model.eval(), trace(model, image()), image()).graph
    own = next(g for g in graph.groups if any(m.parameter == "one.weight" and m.axis == 1 for m in g.members))
    assert {m.parameter for m in own.members if m.writes} >= {"stem.weight", "again.weight"}


def test_parts_that_a_layer_returned_lose_other_channels_than_what_it_read() -> None:
    torch.manual_seed(0)
    graph = prove(Reduced().eval(), trace(Reduced(), image()), image()).graph
    assert graph.widths == {"stem": 8, "pool": 8}
    assert {edit.value for edit in graph.edits} == {1}
