"""Tests of the balanced penalty, by hand and by autograd, and of the method's path."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.methods import Kept, Network
from raprune.methods.auto_balanced import AutoBalanced, Balance, factors, weighed
from raprune.records import Candidate
from tests.channels.networks import CLASSES, build
from tests.channels.proved import proved

sizes = st.lists(st.floats(0.01, 100), min_size=2, max_size=12)


def whole(name: str) -> Network:
    """Build a new small network with nothing cut."""
    graph = proved(name)[1]
    return Network(build(name), graph, {g.name: tuple(range(g.num_channels)) for g in graph.groups})


def penalised(method: AutoBalanced, network: Network, widths: dict[str, int]) -> dict[str, Tensor]:
    """Return what the penalty adds to the gradient of each parameter."""
    balance = Balance(method, network, network.graph.widths | widths)
    parameters = dict(network.model.named_parameters())
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    balance(network.model)
    return {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


def test_lambda_of_four_filters_by_hand() -> None:
    found, stays = weighed(np.array([4.0, 1.0, 2.0, 8.0]), 2)
    np.testing.assert_allclose(found, [-1, 1 + math.log(4), 1 + math.log(2), -1 - math.log(2)], rtol=1e-15)
    assert stays == (0, 3)


@given(sizes, st.data())
def test_the_two_sums_cancel(values: list[float], data: st.DataObject) -> None:
    """alpha S_P + tau S_R = 0, where tau is within its bound."""
    width = data.draw(st.integers(1, len(values)))
    # Eleven filters that shrink at ten times the rate of one that grows: S_R stays over a thousandth of S_P.
    energies = st.lists(st.floats(0.5, 4), min_size=len(values), max_size=len(values))
    energy_O = torch.tensor(data.draw(energies))
    found, stays = weighed(np.array(values), width)
    assert len(stays) == width
    terms_O = factors(torch.from_numpy(found), energy_O.double(), 1e-3) * energy_O.double()
    assert abs(float(terms_O.sum())) <= 1e-12 * float(terms_O.abs().sum())
    goes = [index for index in range(len(values)) if index not in stays]
    assert bool((terms_O[goes] > 0).all())
    assert bool((terms_O[list(stays)] < 0).all()) or not goes


@given(st.floats(1e-9, 1e-5))
def test_lambda_is_continuous_but_for_its_jump_of_two(hair: float) -> None:
    below, _ = weighed(np.array([2.0, 1.0, 1.0 - hair]), 2)
    above, _ = weighed(np.array([2.0, 1.0, 1.0 + hair]), 2)
    assert below[2] == pytest.approx(1, abs=2 * hair)
    assert above[2] == pytest.approx(-1 - math.log(1 + hair), abs=2 * hair)
    assert below[2] - above[2] == pytest.approx(2, abs=4 * hair)


@given(sizes, st.data())
def test_smaller_filters_shrink_more_and_larger_ones_grow_more(values: list[float], data: st.DataObject) -> None:
    width = data.draw(st.integers(1, len(values)))
    found, stays = weighed(np.array(values), width)
    for one in range(len(values)):
        for other in range(len(values)):
            if values[one] < values[other]:
                # Of two that go the smaller shrinks more; of two that stay the larger grows more.
                assert found[one] >= found[other]
        assert (found[one] < 0) == (one in stays)


def test_lambda_of_equal_filters_removes_exactly_the_wanted_number() -> None:
    found, stays = weighed(np.ones(5), 2)
    assert stays == (0, 1)
    assert found.tolist() == [-1, -1, 1, 1, 1]


@pytest.mark.parametrize(("values", "width"), [([0.0, 0.0, 0.0], 1), ([0.0, 5.0, 3.0], 2), ([0.0, 5.0, 0.0], 2)])
def test_filters_of_zeros_have_a_finite_lambda(values: list[float], width: int) -> None:
    found, stays = weighed(np.array(values), width)
    assert len(stays) == width
    assert np.abs(found).max() <= 10
    energy_O = torch.tensor(values, dtype=torch.float64).square()
    assert bool(torch.isfinite(factors(torch.from_numpy(found), energy_O, 1e-3)).all())


def test_growth_has_a_bound_where_there_is_nothing_to_grow() -> None:
    found = factors(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]), 1e-3)
    np.testing.assert_allclose(found, [2e-3, -1.0], rtol=1e-6)


@pytest.mark.parametrize("width", [1, 3, 5])
def test_the_gradient_is_that_of_the_penalty(width: int) -> None:
    """Against autograd, with tau computed by the paper's formula and held constant."""
    network = whole("FlattenLinear")
    added = penalised(AutoBalanced(alpha=0.01), network, {"conv": width, "hidden": 4})
    for name, stay in (("conv", width), ("hidden", 4)):
        weight = network.model.get_parameter(f"{name}.weight").detach().double().requires_grad_()
        filters = weight.flatten(1)
        size = filters.detach().abs().sum(1)
        theta = size.sort(descending=True).values[stay - 1]
        goes = size < theta
        found = torch.where(goes, 1 + torch.log(theta / size), -1 - torch.log(size / theta))
        terms = found * filters.square().sum(1)
        tau = -0.01 * terms[goes].sum().detach() / terms[~goes].sum().detach()
        (0.01 * terms[goes].sum() + tau * terms[~goes].sum()).backward()
        torch.testing.assert_close(added[f"{name}.weight"].double(), weight.grad, rtol=1e-5, atol=1e-9)
        assert added[f"{name}.bias"].count_nonzero() == 0
    assert added["head.weight"].count_nonzero() == 0


def test_a_layer_that_stays_whole_is_left_alone() -> None:
    added = penalised(AutoBalanced(alpha=1.0), whole("FlattenLinear"), {"conv": 2})
    assert added["conv.weight"].count_nonzero() > 0
    assert added["hidden.weight"].count_nonzero() == 0


def test_energy_moves_and_is_not_lost() -> None:
    """In 400 steps with the penalty alone P loses what R gains, except for the second-order term of a step."""
    network = whole("FlattenLinear")
    weight = network.model.get_parameter("hidden.weight")
    balance = Balance(AutoBalanced(alpha=1e-3), network, network.graph.widths | {"hidden": 3})
    stays = torch.tensor([index in balance.stays["hidden"] for index in range(7)])
    before = weight.detach().double().flatten(1).square().sum(1)
    for _ in range(400):
        weight.grad = torch.zeros_like(weight)
        balance(network.model)
        with torch.no_grad():
            weight.sub_(0.5 * weight.grad)
    after = weight.detach().double().flatten(1).square().sum(1)
    assert float(after.sum()) == pytest.approx(float(before.sum()), rel=2e-3)
    assert float(after[~stays].sum()) < 0.5 * float(before[~stays].sum())
    assert float(after[stays].sum()) > float(before[stays].sum())


def test_layers_of_one_stream_share_lambda_and_balance_themselves() -> None:
    network = whole("Residual")
    method = AutoBalanced(alpha=0.1)
    added = penalised(method, network, {"stem": 3})
    balance = Balance(method, network, network.graph.widths | {"stem": 3})
    goes = [channel for channel in range(8) if channel not in balance.stays["stem"]]
    found = weighed(method.sizes(network.model, network.graph)["stem"], 3)[0]
    for name in ("stem.weight", "conv2.weight"):
        weight = network.model.get_parameter(name).detach()
        factor = (added[name] / (2 * weight)).flatten(1)[:, 0].numpy()
        np.testing.assert_allclose(factor[goes], 0.1 * found[goes], rtol=1e-4)
        assert (factor[list(balance.stays["stem"])] < 0).all()
        # d/dt of the layer's energy.
        assert float((added[name] * weight).sum()) == pytest.approx(0, abs=1e-6)
    # The inner layer is free, and its input, which reads the stream, is not written by it.
    assert added["conv1.weight"].count_nonzero() == 0


def test_channels_of_a_grouped_convolution_take_a_filter_in_each_block() -> None:
    network = whole("Grouped")
    added = penalised(AutoBalanced(alpha=0.1), network, {"grouped": 2})
    weight = network.model.get_parameter("grouped.weight").detach()
    shrinks = (added["grouped.weight"] * weight).flatten(1).sum(1) > 0
    assert shrinks.view(3, 4).sum(1).tolist() == [2, 2, 2]


def test_a_depthwise_filter_goes_with_its_channel() -> None:
    network = whole("Depthwise")
    added = penalised(AutoBalanced(alpha=0.1), network, {"stem": 3})
    shrinks = [
        (added[n] * network.model.get_parameter(n)).flatten(1).sum(1) > 0 for n in ("stem.weight", "depthwise.weight")
    ]
    assert torch.equal(*shrinks)
    assert int(shrinks[0].sum()) == 5


def test_filters_of_a_transposed_convolution_run_along_its_second_axis() -> None:
    network = whole("Transposed")
    added = penalised(AutoBalanced(alpha=0.1), network, {"up": 2})
    shrinks = (added["up.weight"] * network.model.get_parameter("up.weight")).movedim(1, 0).flatten(1).sum(1) > 0
    assert int(shrinks.sum()) == 4


def scaled_residual() -> Network:
    """Build Residual with random scales and variances of its batch norms."""
    network = whole("Residual")
    generator = torch.Generator().manual_seed(3)
    for module in network.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.weight.data.uniform_(-1, 2, generator=generator)
            module.running_var.uniform_(0.1, 3, generator=generator)
    return network


def test_scales_of_batch_norms_are_acted_on_where_asked() -> None:
    network = scaled_residual()
    conv = penalised(AutoBalanced(alpha=0.1, target="conv"), network, {"stem": 3, "conv1": 2})
    assert all(conv[f"{norm}.weight"].count_nonzero() == 0 for norm in ("stem_bn", "bn1", "bn2"))
    both = penalised(AutoBalanced(alpha=0.1, target="conv+gamma"), network, {"stem": 3, "conv1": 2})
    assert torch.equal(both["conv1.weight"], conv["conv1.weight"])
    found = weighed(AutoBalanced(target="conv").sizes(network.model, network.graph)["conv1"], 2)[0]
    gamma = network.model.get_parameter("bn1.weight").detach().double()
    by_hand = 2 * factors(torch.from_numpy(found), gamma.square(), 0.1) * gamma
    torch.testing.assert_close(both["bn1.weight"].double(), by_hand, rtol=1e-5, atol=1e-9)
    assert all(both[f"{norm}.weight"].count_nonzero() == 8 for norm in ("stem_bn", "bn2"))
    assert all(both[f"{norm}.bias"].count_nonzero() == 0 for norm in ("stem_bn", "bn1", "bn2"))


def test_folded_sizes_are_those_of_the_filters_times_their_norms_scales() -> None:
    network = scaled_residual()
    model = network.model
    total = torch.zeros(8, dtype=torch.float64)
    for conv, norm in (("stem", "stem_bn"), ("conv2", "bn2")):
        variance = model.get_buffer(f"{norm}.running_var")
        scale = model.get_parameter(f"{norm}.weight").abs() / (variance + 1e-5).sqrt()
        size = (model.get_parameter(f"{conv}.weight").flatten(1).abs().sum(1) * scale).detach().double()
        total += size / size.norm()
    found = AutoBalanced(target="bn_folded").sizes(model, network.graph)["stem"]
    np.testing.assert_allclose(found, total.numpy(), rtol=1e-6)
    assert not np.allclose(found, AutoBalanced(target="conv").sizes(model, network.graph)["stem"])


def test_lambda_stays_for_the_phase_unless_it_is_refreshed() -> None:
    network = whole("FlattenLinear")
    widths = network.graph.widths | {"conv": 2}
    fixed, fresh = Balance(AutoBalanced(), network, widths), Balance(AutoBalanced(refresh=2), network, widths)
    before = fixed.stays["conv"]
    goes = next(channel for channel in range(6) if channel not in before)
    with torch.no_grad():
        network.model.get_parameter("conv.weight")[goes] *= 100
    for _ in range(2):
        fixed(network.model)
        fresh(network.model)
    assert fixed.stays["conv"] == fresh.stays["conv"] == before
    fixed(network.model)
    fresh(network.model)
    assert fixed.stays["conv"] == before
    assert goes in fresh.stays["conv"]


@dataclass
class SmallServices:
    """Services that train a few steps on noise; `phases` records (epochs, has penalty, is distilled) per training."""

    seed: int = 0
    phases: list[tuple[float, bool, bool]] = field(default_factory=list)

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        raise AssertionError("the path needs no calibration images")

    def training(self) -> Iterable[tuple[Tensor, Tensor]]:
        raise AssertionError("the path reads no images itself")

    def allowed(self, num_channels: int) -> list[int]:
        return list(range(1, num_channels + 1))

    def metric(self, model: nn.Module, images: int | None = None) -> float:
        raise AssertionError("the path is not led by accuracy")

    def train(self, model, epochs, *, lr=None, regularize=None, distil=False) -> None:  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(self.seed + len(self.phases))
        self.phases.append((epochs, regularize is not None, distil))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        model.train()
        for _ in range(4):
            x, y = torch.randn(8, 3, 8, 8, generator=generator), torch.randint(CLASSES, (8,), generator=generator)
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            if regularize is not None:
                regularize(model)
            optimizer.step()
        model.eval()

    def cut(self, network: Network, kept: Kept) -> Network:
        left = {n: tuple(c[i] for i in kept[n]) if n in kept else tuple(c) for n, c in network.kept.items()}
        return Network(cut(network.model, network.graph, Candidate("test", kept)), network.graph.after(kept), left)


def shapes(graph: ChannelGraph, widths: dict[str, int]) -> dict[str, int]:
    return {group.name: widths.get(group.name, group.num_channels) for group in graph.groups}


@pytest.mark.parametrize("name", ["Residual", "Grouped", "FlattenLinear"])
def test_the_path_is_nested_and_ends_at_the_widths(name: str) -> None:
    dense = whole(name)
    state = {key: value.clone() for key, value in dense.model.state_dict().items()}
    widths = {group.name: 1 for group in dense.graph.groups[:2]}
    services = SmallServices()
    method = AutoBalanced(alpha=0.01, steps=3, epochs=0.5, last_epochs=2, distil=True)
    path = list(method.path(dense, widths, services))
    assert [step.epochs for step in path] == [1.0, 1.5, 3.5]
    assert services.phases == [(0.5, True, False)] * 3 + [(2, False, True)]
    assert path[-1].network.graph.widths == shapes(dense.graph, widths)
    before = dense.kept
    for number, step in enumerate(path, start=1):
        for group in dense.graph.groups:
            kept = step.network.kept[group.name]
            assert set(kept) <= set(before[group.name])
            assert len(kept) == step.network.graph.widths[group.name]
            target = widths.get(group.name, group.num_channels)
            assert len(kept) == round(group.num_channels * (target / group.num_channels) ** (number / 3))
        before = step.network.kept
        assert not step.network.model.training
        with torch.no_grad():
            step.network.model(torch.randn(2, 3, 8, 8))
    assert all(torch.equal(value, state[key]) for key, value in dense.model.state_dict().items())


def test_a_path_without_a_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="steps 0: at least 1 is needed"):
        AutoBalanced(steps=0)


def test_every_step_is_a_network_of_its_own() -> None:
    path = list(AutoBalanced(steps=2).path(whole("FlattenLinear"), {"conv": 2, "hidden": 3}, SmallServices()))
    first, last = (step.network.model for step in path)
    assert not {id(p) for p in first.parameters()} & {id(p) for p in last.parameters()}


def test_the_same_seed_gives_the_same_path() -> None:
    def end(seed: int) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
        *_, last = AutoBalanced(alpha=0.01).path(whole("Residual"), {"stem": 4, "conv1": 2}, SmallServices(seed))
        return {name: tuple(kept) for name, kept in last.network.kept.items()}, last.network.model.state_dict()

    (kept, one), (kept_again, again), (_, other) = end(1), end(1), end(2)
    assert kept == kept_again
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_more_alpha_leaves_less_in_what_is_cut() -> None:
    """With the penalty in training, filters have lost their energy when they are cut."""

    def left(alpha: float) -> float:
        network = whole("FlattenLinear")
        balance = Balance(AutoBalanced(alpha=alpha), network, network.graph.widths | {"conv": 2})
        SmallServices().train(network.model, 1, regularize=balance)
        goes = [channel for channel in range(6) if channel not in balance.stays["conv"]]
        return float(network.model.get_parameter("conv.weight").detach()[goes].square().sum())

    assert left(1.0) < left(0.1) < left(0.0)
