"""Tests of the trace, structure by structure: the groups of coupled channels, and the reasons of frozen channels."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.members import Group
from raprune.channels.proof import prove
from raprune.channels.trace import code_hash, structure_hash, trace
from raprune.errors import ModelError
from raprune.records import Candidate
from tests.channels.networks import CLASSES, NETWORKS, FixedView, Net, Residual, build, conv, image
from tests.channels.proved import candidates, outputs, proved

GROUPS: dict[str, list[str]] = {
    "Residual": [
        "8: stem.weight/0 stem.bias/0 stem_bn.* conv1.weight/1 conv2.weight/0 bn2.* head.weight/1",
        "6: conv1.weight/0 bn1.* conv2.weight/1",
    ],
    "ZeroPadShortcut": [
        "8: stem.weight/0 stem.bias/0 conv1.weight/1 conv2.weight/0 conv2.bias/0 head.weight/1",
        "12: conv1.weight/0 conv1.bias/0 conv2.weight/1",
    ],
    "DenseBlock": [
        "8: stem.weight/0 stem.bias/0 bn.* grow.weight/1 bn2.* grow2.weight/1 transition.weight/1",
        "4: grow.weight/0 grow.bias/0 bn2.* grow2.weight/1 transition.weight/1",
        "4: grow2.weight/0 grow2.bias/0 transition.weight/1",
        "6: transition.weight/0 transition.bias/0 head.weight/1",
    ],
    # Three groups stay equal, so a channel is one position in each of them.
    "Grouped": [
        "8: stem.weight/0 stem.bias/0 reduce.weight/1 expand.weight/0 expand.bias/0 head.weight/1",
        "2: reduce.weight/0*3 reduce.bias/0*3 grouped.weight/1",
        "4: grouped.weight/0*3 grouped.bias/0*3 expand.weight/1*3",
    ],
    "Depthwise": [
        "8: stem.weight/0 stem.bias/0 depthwise.weight/0 depthwise.bias/0 bn.* pointwise.weight/1",
        "8: pointwise.weight/0 pointwise.bias/0 head.weight/1",
    ],
    "DepthwiseMultiplier": [
        "8: stem.weight/0 stem.bias/0 depthwise.weight/0*2 depthwise.bias/0*2 pointwise.weight/1*2",
        "8: pointwise.weight/0 pointwise.bias/0 head.weight/1",
    ],
    "SqueezeExcite": [
        "8: stem.weight/0 stem.bias/0 squeeze.weight/1 excite.weight/0 excite.bias/0 head.weight/1",
        "4: squeeze.weight/0 squeeze.bias/0 excite.weight/1",
    ],
    "FlattenLinear": [
        "6: conv.weight/0 conv.bias/0 hidden.weight/1*4",
        "7: hidden.weight/0 hidden.bias/0 head.weight/1",
    ],
    "ChannelShuffle": [
        "4: stem.weight/0*2 stem.bias/0*2 branch.weight/1 branch.weight/0 branch.bias/0 last.weight/1*2",
        "6: last.weight/0 last.bias/0 head.weight/1",
    ],
    "SharedModule": ["8: stem.weight/0 stem.bias/0 again.weight/1 again.weight/0 again.bias/0 head.weight/1"],
    "SharedParameter": [
        "8: stem.weight/0 stem.bias/0 left.weight/1",
        "6: left.weight/0 left.bias/0 right.bias/0 head.weight/1",
    ],
    "LayerScale": ["8: stem.weight/0 stem.bias/0 conv.weight/1 conv.weight/0 conv.bias/0 scale/1 head.weight/1"],
    "ChannelsLastNorm": [
        "8~: stem.weight/0 stem.bias/0 norm.weight/0 norm.bias/0 up.weight/1 down.weight/0 down.bias/0 head.weight/1",
        "12: up.weight/0 up.bias/0 down.weight/1",
    ],
    "GroupNorm": [
        "4~: stem.weight/0*2 stem.bias/0*2 norm.weight/0*2 norm.bias/0*2 last.weight/1*2",
        "8: last.weight/0 last.bias/0 head.weight/1",
    ],
    "ModuleAttention": [
        "8~: embed.weight/0 embed.bias/0 norm1.weight/0 norm1.bias/0 attention.in_proj_weight/1 "
        "attention.out_proj.weight/0 attention.out_proj.bias/0 norm2.weight/0 norm2.bias/0 up.weight/1 down.weight/0 "
        "down.bias/0 head.weight/1",
        "4: attention.in_proj_weight/0*6 attention.in_proj_bias/0*6 attention.out_proj.weight/1*2",
        "12: up.weight/0 up.bias/0 down.weight/1",
        "2: attention.in_proj_weight/0*12 attention.in_proj_bias/0*12 attention.out_proj.weight/1*4",
    ],
    "WrittenAttention": [
        "8~: embed.weight/0 embed.bias/0 token/2 position/2 norm.weight/0 norm.bias/0 qkv.weight/1 proj.weight/0 "
        "proj.bias/0 head.weight/1",
    ],
    "Transformer": [
        "10~: embed.weight/0 embed.bias/0 norm.weight/0 norm.bias/0 attention.qkv.weight/1 attention.proj.weight/0 "
        "attention.proj.bias/0 head.weight/1",
        "4: attention.qkv.weight/0*9 attention.qkv.bias/0*9 attention.proj.weight/1*3",
        "3: attention.qkv.weight/0*12 attention.qkv.bias/0*12 attention.proj.weight/1*4",
    ],
    "Mixer": [
        "6: token_up.weight/0 token_up.bias/0 token_down.weight/1",
        "12: up.weight/0 up.bias/0 down.weight/1",
    ],
    "PixelShuffle": [
        "8: stem.weight/0 stem.bias/0 expand.weight/1",
        "4: expand.weight/0*4 expand.bias/0*4 last.weight/1",
        "3: last.weight/0 last.bias/0 head.weight/1",
    ],
    "Transposed": [
        "8: stem.weight/0 stem.bias/0 up.weight/0",
        "6: up.weight/1 up.bias/0 bn.* last.weight/1",
        "8: last.weight/0 last.bias/0 head.weight/1",
    ],
    "ParametricReLU": [
        "8: stem.weight/0 stem.bias/0 prelu.weight/0 conv.weight/1",
        "8: conv.weight/0 conv.bias/0 head.weight/1",
    ],
    "InPlace": [],
    "ChannelBuffer": ["8: stem.weight/0 stem.bias/0 offset/1 head.weight/1"],
    "ChannelConstant": [],
    # A cut changes the statistics over the input channels of a filter.
    "StandardisedWeight": [
        "8~: stem.weight/0 stem.bias/0 standardised.weight/1",
        "8: standardised.weight/0 standardised.bias/0 last.weight/1",
        "6: last.weight/0 last.bias/0 head.weight/1",
    ],
    "NormedWeight": [
        "8: stem.weight/0 stem.bias/0 normed.parametrizations.weight.original1/1",
        "8~: normed.parametrizations.weight.original1/0 normed.parametrizations.weight.original0/0 normed.bias/0 "
        "last.weight/1",
        "6: last.weight/0 last.bias/0 head.weight/1",
    ],
    "SpectralWeight": [
        "8: stem.weight/0 stem.bias/0 normed.parametrizations.weight.0._v/0*9 "
        "normed.parametrizations.weight.original/1",
        "8: normed.parametrizations.weight.original/0 normed.parametrizations.weight.0._u/0 normed.bias/0 "
        "last.weight/1",
        "6: last.weight/0 last.bias/0 head.weight/1",
    ],
    "FilterNorm": [
        "8~: stem.weight/0 stem.bias/0 normed.weight/1",
        "8: normed.weight/0 normed.gain/0 normed.bias/0 last.weight/1",
        "6: last.weight/0 last.bias/0 head.weight/1",
    ],
    "FrozenNorm": [
        "8: stem.weight/0 stem.bias/0 norm.* last.weight/1",
        "8: last.weight/0 last.bias/0 head.weight/1",
    ],
    "PositionTables": [
        "8: stem.weight/0 stem.bias/0 table.weight/1 position/1 last.weight/1",
        "8: last.weight/0 last.bias/0 head.weight/1",
    ],
    "SelectiveKernels": [
        "8: stem.weight/0 stem.bias/0 one.weight/1 other.weight/1",
        "8: one.weight/0 one.bias/0 other.weight/0 other.bias/0 select.weight/1 select.weight/0*2 select.bias/0*2 "
        "head.weight/1",
    ],
    "ReadStatistic": ["8: stem.weight/0 stem.bias/0 table/1 head.weight/1"],
    "Fourier": ["6: last.weight/0 last.bias/0 head.weight/1"],
    "SortedChannels": ["6: last.weight/0 last.bias/0 head.weight/1"],
    "Strided": ["6: last.weight/0 last.bias/0 head.weight/1"],
    "Padded": ["8: stem.weight/0 stem.bias/0 last.weight/1", "6: last.weight/0 last.bias/0 head.weight/1"],
    "Windows": [
        "8~: stem.weight/0 stem.bias/0 norm.weight/0 norm.bias/0 up.weight/1 down.weight/0 down.bias/0 head.weight/1",
        "12: up.weight/0 up.bias/0 down.weight/1",
    ],
    "PatchMerging": [
        "8~: stem.weight/0 stem.bias/0 norm.weight/0*4 norm.bias/0*4 reduce.weight/1*4",
        "6: reduce.weight/0 reduce.bias/0 head.weight/1",
    ],
    "SoftmaxChannels": ["6: last.weight/0 last.bias/0 head.weight/1"],
    "ManyOutputs": [
        "8: stem.weight/0 stem.bias/0 conv.weight/1 side.weight/1",
        "8: conv.weight/0 conv.bias/0 head.weight/1",
    ],
    "Unused": ["8: stem.weight/0 stem.bias/0 head.weight/1"],
    "UNet": [
        "8: stem.weight/0 stem.bias/0 down.weight/1 up.weight/1",
        "10: down.weight/0 down.bias/0 up.weight/1",
        "8: up.weight/0 up.bias/0 head.weight/1",
    ],
    "SpatialGate": ["8: stem.weight/0 stem.bias/0 gate.weight/1 head.weight/1"],
    "Unfolded": ["8: stem.weight/0 stem.bias/0 last.weight/1*9", "6: last.weight/0 last.bias/0 head.weight/1"],
    "Im2Col": ["6: last.weight/0 last.bias/0 head.weight/1"],
    "UnequalSplit": ["6: last.weight/0 last.bias/0 head.weight/1"],
    "GatedLinear": [
        "8: stem.weight/0 stem.bias/0 expand.weight/1",
        "6: expand.weight/0*2 expand.bias/0*2 last.weight/1",
        "6: last.weight/0 last.bias/0 head.weight/1",
    ],
    "Maxout": ["8: stem.weight/0 stem.bias/0 expand.weight/1", "6: last.weight/0 last.bias/0 head.weight/1"],
    "FixedSlice": ["4: partial.weight/0 partial.bias/0 last.weight/1", "6: last.weight/0 last.bias/0 head.weight/1"],
    "FixedView": ["8: stem.weight/0 stem.bias/0 squeeze.weight/1"],
    "ScaledBySize": ["8: conv.weight/0 conv.bias/0 head.weight/1"],
    "InstanceNorm": [
        "8: stem.weight/0 stem.bias/0 norm.weight/0 norm.bias/0 last.weight/1",
        "8: last.weight/0 last.bias/0 head.weight/1",
    ],
    "OneOutput": [
        "8: stem.weight/0 stem.bias/0 hidden.weight/1",
        "6: hidden.weight/0 hidden.bias/0 score.weight/1",
        "8: spread.weight/0 spread.bias/0 head.weight/1",
    ],
    "Einsum": [],
}
"""What is proved prunable: `channels: parameter/axis*positions a channel`; `~` where masking is not removing."""

FROZEN: dict[str, dict[str, str]] = {
    "ZeroPadShortcut": {"conv2": "meets fixed slots"},
    "WrittenAttention": {"qkv": "stops in its forward", "heads": "stops in its forward"},
    "Mixer": {
        "embed": "linear layer over an input whose rows carry channels",
        "token_down": "meets channels that run along another axis",
        "down": "meets a constant",
    },
    "InPlace": {"stem": "part of a constant", "conv1": "part of a constant", "conv2": "part of a constant"},
    "ChannelConstant": {"stem": "meets a constant of the shape of the channels"},
    "Fourier": {"stem": "aten._fft_r2c has no rule"},
    "SortedChannels": {"stem": "aten.sort has no rule"},
    "Strided": {"stem": "as_strided"},
    "SoftmaxChannels": {"stem": "_softmax across channels"},
    "ManyOutputs": {"side": "the network's output"},
    "SpatialGate": {"gate": "one channel stretched over many"},
    "Im2Col": {"stem": "aten.im2col has no rule"},
    "UnequalSplit": {"stem": "split into unequal parts"},
    "Maxout": {"expand": "only a statistic is taken over them"},
    "FixedSlice": {"stem": "slice at fixed positions of the channels"},
    "FixedView": {"squeeze": "stops in mixer"},
    "ScaledBySize": {"stem": "differs from the masked one"},
    "OneOutput": {"score": "all its channels are coupled"},
    "Einsum": {"stem": "bmm contracts over channels"},
}
"""Module -> part of the reason; the head, whose channels are the network's output, stays everywhere."""


def described(group: Group) -> str:
    parts = []
    for member in group.members:
        times = member.indices.shape[1]
        parts.append(f"{member.parameter}/{member.axis}" + (f"*{times}" if times > 1 else ""))
    return f"{group.num_channels}{'' if group.maskable else '~'}: " + " ".join(parts)


def spelled_out(line: str) -> str:
    """Replace `bn.*` by the parameters and buffers of a batch norm."""
    head, *parts = line.split(" ")
    vectors = ("weight", "bias", "running_mean", "running_var")
    expanded = [f"{p[:-1]}{v}/0" for p in parts if p.endswith(".*") for v in vectors]
    return " ".join([head, *sorted([p for p in parts if not p.endswith(".*")] + expanded)])


def test_every_network_has_its_expectation() -> None:
    assert set(GROUPS) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_trace_of_each_structure_gives_the_expected_groups(name: str) -> None:
    _, graph = proved(name)
    assert sorted(spelled_out(described(g)) for g in graph.groups) == sorted(spelled_out(g) for g in GROUPS[name])


@pytest.mark.parametrize("name", NETWORKS)
def test_trace_of_each_structure_names_frozen_channels_with_reason(name: str) -> None:
    _, graph = proved(name)
    expected = {**FROZEN.get(name, {}), "head": "the network's output"}
    assert {f.module for f in graph.frozen} == set(expected)
    for frozen in graph.frozen:
        assert expected[frozen.module] in frozen.reason


@pytest.mark.parametrize("name", NETWORKS)
def test_prove_each_structure_passes(name: str) -> None:
    model, graph = proved(name)
    proof = prove(model, graph, image(), seed=7)
    assert proof.graph == graph
    assert proof.permutation_error < 1e-12
    assert proof.cut_error < 1e-12
    assert proof.candidates >= (1 if graph.groups else 0)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"WrittenAttention", "FixedView", "ScaledBySize"}))
def test_prove_each_structure_freezes_nothing_that_the_trace_knows(name: str) -> None:
    """The trace is right by itself, except where only Python code knows a size."""
    model = build(name)
    assert prove(model, trace(model, image()), image()).frozen == {}


def test_groups_partition_what_is_written() -> None:
    """Every channel that a layer writes is in exactly one group or is reported frozen; heads are a second way to go."""
    for name in set(NETWORKS) - {"ModuleAttention", "Transformer", "WrittenAttention"}:
        model = build(name)
        graph = trace(model, image())
        written: dict[tuple[str, int], np.ndarray] = {}
        for group in graph.groups:
            for member in (m for m in group.members if m.writes):
                times = written.setdefault(
                    (member.parameter, member.axis), np.zeros(graph.shapes[member.parameter][member.axis], dtype=int)
                )
                np.add.at(times, member.indices.reshape(-1), 1)
        for (parameter, _), times in written.items():
            assert times.max() == 1, parameter
            module = parameter.rpartition(".")[0]
            frozen = sum(f.num_channels for f in graph.frozen if f.module == module)
            assert (times == 0).sum() == frozen, parameter


def test_positions_of_a_padded_shortcut() -> None:
    _, graph = proved("ZeroPadShortcut")
    members = {(m.parameter, m.axis): m.indices[:, 0].tolist() for m in graph.by_name["stem"].members}
    assert members["stem.weight", 0] == list(range(8))
    assert members["conv2.weight", 0] == members["head.weight", 1] == list(range(2, 10))
    assert [f.num_channels for f in graph.frozen if f.module == "conv2"] == [4]


def test_positions_after_a_flatten() -> None:
    _, graph = proved("FlattenLinear")
    flat = next(m for m in graph.by_name["conv"].members if m.parameter == "hidden.weight")
    assert flat.indices.tolist() == [[4 * c + p for p in range(4)] for c in range(6)]


def test_positions_after_a_channel_shuffle() -> None:
    _, graph = proved("ChannelShuffle")
    members = {(m.parameter, m.axis): m.indices.tolist() for m in graph.by_name["stem"].members}
    assert members["stem.weight", 0] == [[c, c + 4] for c in range(4)]
    assert members["last.weight", 1] == [[2 * c, 2 * c + 1] for c in range(4)]


def test_unused_parameters_are_noted() -> None:
    assert any("forgotten" in note for note in trace(build("Unused"), image()).notes)
    assert trace(build("Residual"), image()).notes == ()


@pytest.mark.parametrize("name", [name for name in NETWORKS if GROUPS[name]])
@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_cut_network_equals_the_masked_one(name: str, data: st.DataObject) -> None:
    _, graph = proved(name)
    model = build(name).double()
    x = image().double()
    free = graph.without({g.name: "not maskable" for g in graph.groups if not g.maskable})
    candidate = data.draw(candidates(free))
    masked = build(name).double()
    with torch.no_grad():
        state = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
        for group in free.groups:
            gone = sorted(set(range(group.num_channels)) - set(candidate.kept[group.name]))
            for member in group.members:
                state[member.parameter].index_fill_(member.axis, torch.from_numpy(member.indices[gone].reshape(-1)), 0)
    torch.testing.assert_close(outputs(cut(model, free, candidate), x), outputs(masked, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in NETWORKS if GROUPS[name]])
def test_a_permutation_of_channels_leaves_the_outputs(name: str) -> None:
    _, graph = proved(name)
    model, x = build(name).double(), image().double()
    before = outputs(model, x)
    rng = np.random.default_rng(3)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for group in graph.groups:
            order = rng.permutation(group.num_channels)
            for member in group.members:
                tensor = state[member.parameter]
                moved = tensor.index_select(member.axis, torch.from_numpy(member.indices[order].reshape(-1)))
                tensor.index_copy_(member.axis, torch.from_numpy(member.indices.reshape(-1)), moved)
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_survives_json(name: str) -> None:
    model, graph = proved(name)
    again = ChannelGraph.from_json(json.loads(json.dumps(graph.to_json())))
    assert again.to_json() == graph.to_json()
    assert (again.factors, again.flops, again.params) == (graph.factors, graph.flops, graph.params)
    assert (again.shapes, again.frozen, again.notes) == (graph.shapes, graph.frozen, graph.notes)
    for one, other in zip(graph.groups, again.groups, strict=True):
        assert (one.name, one.num_channels, one.maskable) == (other.name, other.num_channels, other.maskable)
        for left, right in zip(one.members, other.members, strict=True):
            assert (left.parameter, left.axis, left.writes) == (right.parameter, right.axis, right.writes)
            np.testing.assert_array_equal(left.indices, right.indices)
    kept = {g.name: tuple(range(0, g.num_channels, 2)) for g in graph.groups}
    one_cut, other_cut = (cut(model, g, Candidate("test", kept)) for g in (graph, again))
    assert torch.equal(outputs(one_cut, image()), outputs(other_cut, image()))


def test_tracing_changes_nothing() -> None:
    model = build("Residual").train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    graph = trace(model, image())
    prove(model, graph, image())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_tracing_does_not_import_the_compiler() -> None:
    """Importing the compiler takes 5 to 10 seconds, the trace itself milliseconds."""
    code = (
        "import sys, torch; from torch import nn\n"
        "from raprune.channels.trace import trace; from raprune.channels.proof import prove\n"
        "model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), torch.ones(1, 3, 8, 8)\n"
        "prove(model, trace(model, x), x)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_an_input_that_does_not_fit_is_told() -> None:
    with pytest.raises(ModelError, match=r"\(1, 4, 8, 8\)"):
        trace(build("Residual"), image((1, 4, 8, 8)))


class Strides(Net):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv = conv(8, 8, stride=stride)

    def body(self, x: Tensor) -> Tensor:
        return self.conv(x)


class OtherResidual(Residual):
    def body(self, x: Tensor) -> Tensor:
        return super().body(x) * 2


def architecture(model: nn.Module, shape: tuple[int, ...] = (1, 3, 8, 8)) -> str:
    return trace(model, image(shape)).architecture


def test_architecture_of_equal_structure_ignores_the_weights() -> None:
    one, other = Residual(), Residual()
    assert not torch.equal(one.stem.weight, other.stem.weight)
    assert architecture(one) == architecture(other)
    assert architecture(one).startswith(structure_hash(one, (3, 8, 8)))
    assert architecture(one, (1, 3, 16, 16)) != architecture(one)
    assert architecture(Strides(1)) != architecture(Strides(2))
    assert architecture(OtherResidual()) != architecture(one)
    assert architecture(FixedView()) != architecture(one)


USERS_MODULE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.one(x)
        x = FORWARD
        return self.head(x.mean((2, 3)))
"""


@pytest.fixture
def users_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], nn.Module]:
    """Write the user's module with this code, and build its network."""
    monkeypatch.syspath_prepend(str(tmp_path))
    # A file that is written again within a second would else be read from its compiled copy.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(forward: str, *, comment: str = "") -> nn.Module:
        (tmp_path / "users_network.py").write_text(comment + USERS_MODULE.replace("FORWARD", forward))
        monkeypatch.delitem(sys.modules, "users_network", raising=False)
        importlib.invalidate_caches()
        network: nn.Module = importlib.import_module("users_network").Mine()
        return network

    return make


def test_architecture_of_a_module_with_a_changed_comment_is_the_same(users_network: Callable[..., nn.Module]) -> None:
    before = users_network("self.two(x)")
    architectures = {architecture(before)}
    codes = {code_hash(before, (3, 8, 8))}
    after = users_network("self.two(x)", comment="# Another comment.\n")
    architectures.add(architecture(after))
    codes.add(code_hash(after, (3, 8, 8)))
    assert len(architectures) == 1
    assert len(codes) == 2, "the cache of traces still tells the two apart"


def test_architecture_of_a_module_with_another_graph_differs(users_network: Callable[..., nn.Module]) -> None:
    """The same layers and shapes: only the code of `forward` says that the channels are coupled."""
    plain, residual = users_network("self.two(x)"), users_network("x + self.two(x)")
    assert structure_hash(plain, (3, 8, 8)) == structure_hash(residual, (3, 8, 8))
    assert architecture(plain) != architecture(residual)


class Setting(Net):
    """A module whose behaviour depends on an attribute that its `extra_repr` does not name."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled

    def body(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True).expand(-1, 8, -1, -1) if self.pooled else x


def test_structure_hash_of_other_settings_differs() -> None:
    one, other = Setting(pooled=True), Setting(pooled=False)
    assert repr(one) == repr(other)
    assert structure_hash(one, (3, 8, 8)) != structure_hash(other, (3, 8, 8))
    trained = Setting(pooled=True).eval()
    assert structure_hash(one, (3, 8, 8)) == structure_hash(trained, (3, 8, 8))


def test_trace_without_removable_channels_gives_no_groups() -> None:
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)), image())
    assert graph.groups == ()
    assert [f.reason for f in graph.frozen] == ["the network's output"]
