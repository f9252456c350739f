"""What every method must do. A new one is held to it the moment it has its line in METHODS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raprune.errors import UsageError
from raprune.methods import METHODS, Cut, method_named
from raprune.tracing import ChannelGraph
from tests.tracing.networks import build
from tests.tracing.proved import proved

NETWORKS = ("Residual", "Grouped", "DenseBlock", "FlattenLinear", "WrittenAttention", "Transposed")


class Counted:
    """Two seeded calibration batches, and how often they were asked for."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.data = [
            (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator))
            for _ in range(2)
        ]
        self.calls = 0

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.calls += 1
        yield from self.data


def scores_of(method: str, network: str, *, seed: int = 0) -> tuple[dict[str, np.ndarray], ChannelGraph]:
    model, graph = proved(network)
    return method_named(method)().score(model, graph, Counted(), seed=seed), graph


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_one_finite_score_a_channel(method: str, network: str) -> None:
    scores, graph = scores_of(method, network)
    assert list(scores) == [group.name for group in graph.groups]
    for group in graph.groups:
        assert scores[group.name].shape == (group.num_channels,)
        assert scores[group.name].dtype == np.float64
        assert np.isfinite(scores[group.name]).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_scores(method: str) -> None:
    one, other = (scores_of(method, "Residual", seed=5)[0] for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_gives_other_scores_only_where_it_says_so(method: str) -> None:
    one, other = (scores_of(method, "Residual", seed=seed)[0] for seed in (5, 6))
    same = all(np.array_equal(one[name], other[name]) for name in one)
    assert same is not METHODS[method].seeded


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_scoring_leaves_the_model_the_batches_and_the_generator(method: str, training: bool) -> None:
    _, graph = proved("Residual")
    model, batches = build("Residual").train(training), Counted()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    data = [(x.clone(), y.clone()) for x, y in batches.data]
    generator = torch.get_rng_state()
    method_named(method)().score(model, graph, batches, seed=0)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training is training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    for (x, y), (before_x, before_y) in zip(batches.data, data, strict=True):
        assert torch.equal(x, before_x)
        assert torch.equal(y, before_y)


@pytest.mark.parametrize("method", METHODS)
def test_a_data_free_method_never_asks_for_batches(method: str) -> None:
    model, graph = proved("Residual")
    batches = Counted()
    method_named(method)().score(model, graph, batches, seed=0)
    assert (batches.calls == 0) is METHODS[method].data_free


@pytest.mark.parametrize("method", METHODS)
def test_a_repair_mends_in_place_and_keeps_the_shapes(method: str) -> None:
    model, batches = build("Residual"), Counted()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    method_named(method)().repair(model, batches, Cut(build("Residual"), proved("Residual")[1], {}))
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_any_dtype(method: str) -> None:
    _, graph = proved("Residual")
    model: nn.Module = build("Residual").to(torch.bfloat16)
    batches = Counted()
    batches.data = [(x.to(torch.bfloat16), y) for x, y in batches.data]
    scores = method_named(method)().score(model, graph, batches, seed=0)
    assert all(np.isfinite(values).all() for values in scores.values())


@pytest.mark.parametrize("method", METHODS)
def test_what_the_user_reads_of_a_method(method: str) -> None:
    kind = METHODS[method]
    assert kind.title
    with pytest.raises(FrozenInstanceError):
        kind().title = "other"  # type: ignore[misc]  # that it cannot be set is the test
    for field in fields(kind):
        search = field.metadata.get("search")
        assert search is None or set(search) in ({"low", "high"}, {"low", "high", "log"}, {"choices"}), field.name


def test_an_unknown_method_is_told_with_the_valid_names() -> None:
    with pytest.raises(UsageError, match="--methods l3: no such method") as caught:
        method_named("l3")
    assert all(name in str(caught.value) for name in METHODS)
