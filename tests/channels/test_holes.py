"""Tests of networks with unusual parts: each is proved, frozen with a reason, or refused in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.nn import functional
from torchvision.ops import DeformConv2d, roi_align

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.cost.flops import measured
from raprune.errors import ModelError
from raprune.records import Candidate
from tests.channels.networks import Net, build, conv, image
from tests.channels.proved import outputs


def proved_graph(model: nn.Module) -> ChannelGraph:
    return prove(model.eval(), trace(model, image()), image()).graph


def halved(model: nn.Module, graph: ChannelGraph) -> nn.Module:
    kept = {group.name: tuple(range(0, group.num_channels, 2)) for group in graph.groups}
    return cut(model, graph, Candidate("half", kept))


class ReplacedBuffer(Net):
    """A buffer that forward() replaces, so that the old one is freed during the trace."""

    grid: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("grid", torch.zeros(1, 1), persistent=False)

    def body(self, x: Tensor) -> Tensor:
        self.grid = torch.linspace(0, 1, x.shape[3], dtype=x.dtype)[:, None]
        return self.down(functional.relu(self.up(x.permute(0, 2, 3, 1)) + self.grid)).permute(0, 3, 1, 2)


def test_trace_buffer_that_forward_replaces_leaves_its_name_to_no_other_tensor() -> None:
    for _ in range(12):  # which tensor gets the freed address is chance
        assert set(trace(ReplacedBuffer().eval(), image()).widths) == {"stem", "up", "down"}


class HeldBySelf(Net):
    """A function and a hook that hold the network, or one of its modules, in their closures."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = conv(8, 6), conv(6, 8)
        seen: dict[str, Tensor] = {}
        self.seen = seen
        self.inner = lambda x: self.other(functional.relu(self.one(x)))

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen["stem"] = output

        self.stem.register_forward_hook(keep)

    def body(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.seen["stem"]


def test_cut_closures_hold_the_cut_network_and_not_the_dense_one() -> None:
    model = HeldBySelf()
    graph = proved_graph(model)
    assert set(graph.widths) == {"stem", "one"}
    smaller = halved(model, graph)
    outputs(model, image())
    kept = model.seen["stem"]
    outputs(smaller, image())
    assert model.seen["stem"] is kept
    assert smaller.seen["stem"].shape[1] == 4  # type: ignore[index]  # a HeldBySelf has it


def test_cut_graph_module_is_proved_and_keeps_its_code() -> None:
    dense = build("Residual")
    model = torch.fx.symbolic_trace(dense)
    graph = proved_graph(model)
    assert graph.widths == trace(dense, image()).widths
    assert outputs(halved(model, graph), image()).equal(outputs(halved(dense, graph), image()))


class Scripted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.free = conv(8, 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.script is deprecated, but exported networks hold such modules
            self.fixed = torch.jit.script(nn.Sequential(conv(8, 8), nn.ReLU()))
        self.last = conv(8, 6)
        self.head = nn.Linear(6, 5)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.fixed(functional.relu(self.free(x))))


def test_trace_scripted_module_stays_whole_and_the_rest_is_cut() -> None:
    model = Scripted()
    graph = proved_graph(model)
    assert set(graph.widths) == {"stem", "last"}
    assert outputs(halved(model, graph), image()).shape == (5,)


class Group(Net):
    """A convolution or transposed convolution in groups, between two others."""

    def __init__(self, groups: int, *, bias: bool) -> None:
        super().__init__(width=6)
        self.up = nn.ConvTranspose2d(8, 16, 2, 2, groups=groups, bias=bias)
        self.last = conv(16, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.up(functional.relu(x))))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("groups", "widths"), [(4, {"stem": 2, "up": 4, "last": 6}), (8, {"stem": 8, "last": 6})])
def test_trace_transposed_convolution_in_groups_is_cut(groups: int, widths: dict[str, int], bias: bool) -> None:
    model = Group(groups, bias=bias)
    graph = proved_graph(model)
    assert graph.widths == widths
    assert outputs(halved(model, graph), image()).shape == (5,)


class PixelNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.GroupNorm(4, 8), conv(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x.mean((2, 3), keepdim=True)))


def test_trace_group_norm_over_one_pixel_stays_whatever_the_seed() -> None:
    graph = trace(PixelNorm().eval(), image())
    assert set(graph.widths) == {"last"}
    assert any("one pixel" in frozen.reason for frozen in graph.frozen)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(5))


def compiled() -> nn.Module:
    model = Net()
    model._compiled_call_impl = model._call_impl  # as model.compile() sets it
    return model


def exported() -> nn.Module:
    model: nn.Module = torch.export.export(Net().eval(), (image(),)).module()
    return model


def prepared() -> nn.Module:
    """As `torch.ao.quantization.prepare_qat` leaves a network, whose own call warns that it is deprecated."""
    model = Net()
    model.stem.register_module("rounded", FakeQuantize())
    return model


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lazy, "is lazy"),
        (compiled, "network is compiled"),
        (exported, "exported program"),
        (prepared, "prepared for quantisation: 'stem.rounded'"),
    ],
)
def test_trace_network_without_parameters_or_with_fixed_code_is_refused(
    network: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        trace(network(), image())


def test_cut_network_without_parameters_is_copied() -> None:
    model = nn.Sequential(nn.Flatten())
    assert outputs(cut(model, proved_graph(model), Candidate("all", {})), image()).equal(image().flatten())


class ParameterAsInput(nn.Module):
    """A network that hands a parameter to a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.randn(1, 4)), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.token) + x.mean()
        return logits


def test_measured_parameter_as_the_input_of_a_layer_is_counted() -> None:
    model = ParameterAsInput()
    assert measured(model, image()) == (2 * 4 * 5, 4 + 4 * 5 + 5)
    assert all(parameter.requires_grad for parameter in model.parameters())


class Resampled(Net):
    """A map that is sampled at places of a grid, pooled over regions, and convolved with offsets."""

    def __init__(self) -> None:
        super().__init__(width=6)
        self.offset, self.bend, self.last = conv(8, 18), DeformConv2d(8, 8, 3, padding=1), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        turn = torch.eye(2, 3)[None].to(x).repeat(len(x), 1, 1)
        grid = functional.affine_grid(turn, [len(x), 1, 6, 6], align_corners=False)
        x = functional.grid_sample(x, grid, align_corners=False)
        x = functional.relu(self.bend(x, self.offset(x)))
        box = x.new_tensor([[0.0, 0.0, 4.0, 4.0]])
        return self.last(roi_align(x, [box] * len(x), 3))


class Shrunk(Net):
    """Pooling at random places, and pixels that become channels and pixels again."""

    def __init__(self) -> None:
        super().__init__(width=6)
        self.narrow, self.last = conv(32, 8, 1), conv(2, 6)

    def body(self, x: Tensor) -> Tensor:
        x = functional.fractional_max_pool2d(x, 2, output_size=(4, 4))
        return self.last(functional.pixel_shuffle(self.narrow(functional.pixel_unshuffle(x, 2)), 2))


class Recurrent(Net):
    """A recurrent layer over the columns of the image."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU], *, bidirectional: bool) -> None:
        super().__init__(width=8 if bidirectional else 4)
        self.rows = layer(8, 4, num_layers=2, batch_first=True, bidirectional=bidirectional)

    def body(self, x: Tensor) -> Tensor:
        y: Tensor = self.rows(functional.relu(x).mean(2).transpose(1, 2))[0]
        return y.transpose(1, 2)[..., None]


class Signals(nn.Module):
    """Convolutions over one or three axes, with norms, pooling and resizing."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.mode = {1: "linear", 3: "trilinear"}[axes]
        kind = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
        pool, norm = {1: nn.MaxPool1d, 3: nn.MaxPool3d}[axes], {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[axes]
        self.stem = nn.Sequential(kind(2, 8, 3, padding=1), norm(8), nn.ReLU(), pool(2))
        self.wide, self.head = kind(8, 6, 3, padding=1, groups=2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(self.wide(self.stem(x)), scale_factor=2.0, mode=self.mode)
        logits: Tensor = self.head(x.flatten(2).mean(2))
        return logits


@pytest.mark.parametrize(
    ("model", "shape", "widths"),
    [
        (Resampled(), (1, 3, 8, 8), {"stem": 8, "bend": 8, "last": 6}),
        (Shrunk(), (1, 3, 8, 8), {"stem": 8, "narrow": 2, "last": 6}),
        (Recurrent(nn.LSTM, bidirectional=True), (1, 3, 8, 8), {"stem": 8}),
        (Recurrent(nn.GRU, bidirectional=False), (1, 3, 8, 8), {"stem": 8}),
        (Signals(1), (1, 2, 16), {"stem.0": 4, "wide": 3}),
        (Signals(3), (1, 2, 4, 8, 8), {"stem.0": 4, "wide": 3}),
    ],
    ids=["sampled", "shuffled", "LSTM", "GRU", "1d", "3d"],
)
def test_trace_layers_of_other_kinds_are_cut(model: nn.Module, shape: tuple[int, ...], widths: dict[str, int]) -> None:
    x = image(shape)
    graph = prove(model.eval(), trace(model, x), x).graph
    assert graph.widths == widths
    assert outputs(halved(model, graph), x).shape == (5,)
