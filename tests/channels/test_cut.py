"""Tests of the cut: it gives a smaller network of plain layers, and does not change the dense network."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from raprune.channels.cut import cut, kept_positions, slice_parameters
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.errors import RecipeError
from raprune.records import Candidate
from tests.channels.networks import NETWORKS, build, conv, image
from tests.channels.proved import candidates, outputs, proved


def half(graph: ChannelGraph) -> Candidate:
    """Keep every other channel of each group."""
    return Candidate("test", {g.name: tuple(range(0, g.num_channels, 2)) for g in graph.groups})


@pytest.mark.parametrize("name", NETWORKS)
def test_keeping_all_channels_changes_no_bit(name: str) -> None:
    model, graph = proved(name)
    whole = cut(model, graph, Candidate("test", {g.name: tuple(range(g.num_channels)) for g in graph.groups}))
    assert torch.equal(outputs(whole, image()), outputs(model, image()))
    assert torch.equal(outputs(cut(model, graph, Candidate("test", {})), image()), outputs(model, image()))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_dense_network_is_left_alone(name: str) -> None:
    _, graph = proved(name)
    model = build(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    text = repr(model)
    smaller = cut(model, graph, half(graph))
    with torch.no_grad():
        for tensor in (*smaller.parameters(), *smaller.buffers()):
            tensor.fill_(7)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert repr(model) == text
    dense = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert dense.isdisjoint(t.untyped_storage().data_ptr() for t in (*smaller.parameters(), *smaller.buffers()))
    modules = {id(module) for module in model.modules()}
    assert modules.isdisjoint(id(module) for module in smaller.modules())


def test_parameters_are_the_dense_networks_slices() -> None:
    model, graph = proved("Residual")
    smaller = cut(model, graph, Candidate("test", {"stem": (1, 4, 6), "conv1": (0, 5)}))
    dense, small = model.state_dict(), smaller.state_dict()
    stem, inner = torch.tensor([1, 4, 6]), torch.tensor([0, 5])
    assert torch.equal(small["stem.weight"], dense["stem.weight"][stem])
    assert torch.equal(small["conv1.weight"], dense["conv1.weight"][inner][:, stem])
    assert torch.equal(small["conv2.weight"], dense["conv2.weight"][stem][:, inner])
    assert torch.equal(small["bn1.running_var"], dense["bn1.running_var"][inner])
    assert torch.equal(small["head.weight"], dense["head.weight"][:, stem])
    assert torch.equal(small["head.bias"], dense["head.bias"])
    assert list(small) == list(dense)


def test_the_order_of_kept_channels_does_not_matter() -> None:
    model, graph = proved("Residual")
    one, other = (cut(model, graph, Candidate("test", {"stem": kept})) for kept in ((1, 4, 6), (6, 1, 4)))
    assert torch.equal(outputs(one, image()), outputs(other, image()))


class AllKinds(nn.Module):
    """A network with a layer of every kind whose size attributes a cut must fix."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = conv(8, 16, groups=8)
        self.grouped = conv(16, 8, groups=2)
        self.gn = nn.GroupNorm(2, 8)
        self.prelu = nn.PReLU(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.instance = nn.InstanceNorm2d(6, affine=True)
        self.linear1 = nn.Linear(6, 10)
        self.ln = nn.LayerNorm(10)
        self.bn1 = nn.BatchNorm1d(10, affine=False)
        self.linear2 = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.bn(self.stem(x)))
        x = self.prelu(self.gn(self.grouped(x)))
        x = self.instance(self.up(x)).amax((2, 3))
        logits: torch.Tensor = self.linear2(self.bn1(self.ln(self.linear1(x))))
        return logits


def test_cut_size_attributes_match_the_parameters() -> None:
    torch.manual_seed(0)
    model = AllKinds().eval()
    graph = trace(model, image())
    assert {"stem", "grouped", "up", "linear1"} == set(graph.widths)
    kept = {"stem": (0, 3), "grouped": (1,), "up": (0, 4, 5), "linear1": (2, 3, 8, 9)}
    smaller = cut(model, graph, Candidate("test", kept))
    assert (smaller.stem.in_channels, smaller.stem.out_channels) == (3, 4)
    assert smaller.bn.num_features == 4
    assert (smaller.depthwise.in_channels, smaller.depthwise.out_channels, smaller.depthwise.groups) == (4, 8, 4)
    assert (smaller.grouped.in_channels, smaller.grouped.out_channels, smaller.grouped.groups) == (8, 2, 2)
    assert smaller.gn.num_channels == 2
    assert smaller.prelu.num_parameters == 2
    assert (smaller.up.in_channels, smaller.up.out_channels) == (2, 3)
    assert smaller.instance.num_features == 3
    assert (smaller.linear1.in_features, smaller.linear1.out_features) == (3, 4)
    assert smaller.ln.normalized_shape == (4,)
    assert smaller.bn1.num_features == 4
    assert (smaller.linear2.in_features, smaller.linear2.out_features) == (4, 5)
    assert smaller(image()).shape == (1, 5)


def test_cut_layers_built_from_their_repr_take_the_cut_weights() -> None:
    """A layer that is built from the `repr` of a cut layer takes the cut weights."""
    torch.manual_seed(0)
    model = AllKinds().eval()
    graph = trace(model, image())
    smaller = cut(model, graph, half(graph))
    for name, layer in smaller.named_children():
        again = eval(repr(layer), {**vars(nn)})
        again.load_state_dict(layer.state_dict(), strict=True)
        assert repr(again) == repr(layer), name


@pytest.mark.parametrize("name", NETWORKS)
def test_cut_to_one_channel_in_every_group_runs(name: str) -> None:
    model, graph = proved(name)
    smaller = cut(model, graph, Candidate("test", {g.name: (g.num_channels - 1,) for g in graph.groups}))
    assert outputs(smaller, image()).shape == outputs(model, image()).shape
    assert torch.isfinite(outputs(smaller, image())).all()


@pytest.mark.parametrize("name", ["Residual", "FlattenLinear", "DepthwiseMultiplier", "WrittenAttention", "DenseBlock"])
def test_a_cut_network_can_be_traced_and_cut_again(name: str) -> None:
    model, graph = proved(name)
    smaller = cut(model, graph, half(graph))
    again = prove(smaller, trace(smaller, image()), image()).graph
    assert again.widths == {name: len(kept) for name, kept in half(graph).kept.items()}
    smallest = cut(smaller, again, half(again))
    at_once = {g.name: tuple(range(0, g.num_channels, 4)) for g in graph.groups}
    assert torch.equal(outputs(smallest, image()), outputs(cut(model, graph, Candidate("test", at_once)), image()))


def test_groups_of_one_channel_are_a_depthwise_convolution() -> None:
    model, graph = proved("Grouped")
    smaller = cut(model, graph, Candidate("test", {"reduce": (1,), "grouped": (0, 1, 3)}))
    assert str(smaller.get_submodule("grouped")).startswith("Conv2d(3, 9, kernel_size=(3, 3)")
    proof = prove(smaller, trace(smaller, image()), image())
    assert proof.frozen == {}
    assert proof.graph.widths == {"stem": 8, "reduce": 3}


def test_modes_and_gradient_flags_stay() -> None:
    _, graph = proved("Residual")
    model = build("Residual").train()
    model.get_submodule("bn1").eval()
    for parameter in model.get_submodule("conv1").parameters():
        parameter.requires_grad_(False)
    smaller = cut(model, graph, half(graph))
    assert [m.training for m in smaller.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in smaller.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(isinstance(p, nn.Parameter) and p.grad is None and p.is_leaf for p in smaller.parameters())


def test_a_cut_network_trains_by_itself() -> None:
    model, graph = proved("Residual")
    smaller = cut(model, graph, half(graph)).train()
    smaller(image((4, 3, 8, 8))).sum().backward()
    assert all(p.grad is not None for p in smaller.parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    _, graph = proved("Residual")
    smaller = cut(build("Residual").to(dtype), graph, half(graph))
    assert {p.dtype for p in smaller.parameters()} == {dtype}
    assert smaller(image().to(dtype)).dtype == dtype


def test_buffers_that_are_no_channels_stay() -> None:
    model = build("Residual")
    model.get_buffer("bn1.num_batches_tracked").fill_(11)
    model.register_buffer("seen", torch.arange(3), persistent=False)
    graph = trace(model, image())
    smaller = cut(model, graph, half(graph))
    assert smaller.get_buffer("bn1.num_batches_tracked").item() == 11
    assert smaller.get_buffer("seen").tolist() == [0, 1, 2]
    assert "seen" not in smaller.state_dict()


def test_shared_things_stay_shared() -> None:
    model, graph = proved("SharedParameter")
    smaller = cut(model, graph, half(graph))
    assert smaller.get_parameter("left.weight") is smaller.get_parameter("right.weight")
    model, graph = proved("SharedModule")
    assert sum(1 for _ in cut(model, graph, half(graph)).parameters()) == sum(1 for _ in model.parameters())


def test_hooks_and_attributes_come_along() -> None:
    model = build("Residual")
    model.note = {"names": ["a", "b"]}  # type: ignore[assignment]  # an attribute of the user's own
    seen: list[int] = []
    model.get_submodule("stem").register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    graph = trace(model, image())
    smaller = cut(model, graph, half(graph))
    seen.clear()
    smaller(image())
    assert seen == [4]
    assert smaller.note == {"names": ["a", "b"]}
    assert smaller.note is not model.note


def test_a_cut_network_is_copied_and_pickled_like_any_other() -> None:
    model, graph = proved("Residual")
    smaller = cut(model, graph, half(graph))
    for again in (copy.deepcopy(smaller), pickle.loads(pickle.dumps(smaller))):
        assert torch.equal(outputs(again, image()), outputs(smaller, image()))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"nowhere": (0,)}, "names the group 'nowhere'"),
        ({"conv1": ()}, r"'conv1' has channels 0 to 5; the candidate keeps \[\]"),
        ({"conv1": (0, 6)}, r"'conv1' has channels 0 to 5; the candidate keeps \[0, 6\]"),
        ({"conv1": (-1, 2)}, r"channels 0 to 5; the candidate keeps \[-1, 2\]"),
    ],
)
def test_cut_candidate_that_does_not_fit_is_refused(kept: dict[str, tuple[int, ...]], message: str) -> None:
    model, graph = proved("Residual")
    with pytest.raises(RecipeError, match=message) as caught:
        cut(model, graph, Candidate("test", kept))
    assert caught.value.hint


def test_slice_parameters_recipe_that_does_not_fit_is_refused() -> None:
    model, graph = proved("Residual")
    positions = kept_positions(graph, half(graph).kept)
    with pytest.raises(RecipeError, match=r"slices 'stem_bn\.\w+', which this network does not have"):
        slice_parameters(build("Grouped"), positions)
    wide = {"conv1.weight": {0: positions["conv1.weight"][0] + 6}}
    with pytest.raises(RecipeError, match=r"position 10 of axis 0 of 'conv1\.weight', of shape \(6, 8, 3, 3\)"):
        slice_parameters(model, wide)


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_kept_positions_of_any_candidate_are_ascending_and_complete(data: st.DataObject) -> None:
    _, graph = proved(data.draw(st.sampled_from(["Grouped", "DenseBlock", "ChannelShuffle", "FlattenLinear"])))
    candidate = data.draw(candidates(graph))
    positions = kept_positions(graph, candidate.kept)
    expected: dict[tuple[str, int], set[int]] = {}
    for group in graph.groups:
        for member in group.members:
            gone = set(range(group.num_channels)) - set(candidate.kept[group.name])
            lost = {int(p) for c in gone for p in member.indices[c]}
            if lost:
                expected.setdefault((member.parameter, member.axis), set()).update(lost)
    found = {(name, axis): p for name, axes in positions.items() for axis, p in axes.items()}
    assert set(found) == set(expected)
    for (name, axis), stay in found.items():
        assert stay.tolist() == sorted(set(range(graph.shapes[name][axis])) - expected[name, axis])
