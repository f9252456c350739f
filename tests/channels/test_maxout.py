"""Tests of maxout units behind a network's own layers, which are copied, cut and pickled with the network."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from raprune.channels.cut import rebuild
from raprune.channels.maxout import insert, inserted, units


class Chain(nn.Module):
    """Convolution, batch norm, in-place ReLU, linear: six channels; the last layer reads `seen` channels."""

    def __init__(self, seen: int = 6) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.head = nn.Linear(seen, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.relu(self.bn(self.conv(x))).mean((2, 3)))
        return logits


def images() -> Tensor:
    return torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def by_hand(model: Chain, x: Tensor, candidates: int) -> Tensor:
    z = model.bn(model.conv(x))
    parts = [z[:, first : first + candidates].amax(1) for first in range(0, 6, candidates)]
    logits: Tensor = model.head(torch.stack(parts, 1).relu().mean((2, 3)))
    return logits


@pytest.mark.parametrize("candidates", [2, 3, 6])
def test_maxout_output_is_the_largest_of_adjacent_channels(candidates: int) -> None:
    model = Chain(6 // candidates).eval()
    expected = by_hand(model, images(), candidates)
    insert(model, {"bn": candidates})
    assert torch.equal(model(images()), expected)


def test_maxout_behind_a_linear_layer_uses_the_last_axis() -> None:
    layer = nn.Linear(3, 4)
    network = nn.Sequential(layer)
    x = torch.randn(2, 7, 3)
    expected = torch.stack([layer(x)[..., :2].amax(-1), layer(x)[..., 2:].amax(-1)], -1)
    insert(network, {"0": 2})
    assert torch.equal(network(x), expected)


def test_units_and_candidates_are_two_axes() -> None:
    split, axis = units(nn.Conv2d(1, 6, 1), torch.arange(6.0).view(1, 6, 1, 1), 2)
    assert axis == 2
    assert split[0, :, :, 0, 0].tolist() == [[0, 1], [2, 3], [4, 5]]
    split, axis = units(nn.Linear(1, 6), torch.arange(6.0).view(1, 1, 6), 3)
    assert axis == 3
    assert split[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_gradients_go_to_the_winner_alone() -> None:
    """The gradient is right even if an in-place ReLU follows the maximum."""
    model = Chain(3)
    insert(model, {"bn": 2})
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        seen["z"] = output

    model.bn.register_forward_hook(keep, prepend=True)
    model(images()).sum().backward()
    z, gradient = seen["z"].unflatten(1, (3, 2)), seen["z"].grad
    assert gradient is not None
    loses = z < z.amax(2, keepdim=True)
    assert (gradient.unflatten(1, (3, 2))[loses] == 0).all()
    assert (gradient != 0).any()


def test_the_state_dict_and_the_class_stay() -> None:
    model, plain = Chain(3), Chain(3)
    insert(model, {"bn": 2})
    assert list(model.state_dict()) == list(plain.state_dict())
    assert repr(model) == repr(plain)


def test_maxout_inserted_again_replaces_and_one_candidate_removes() -> None:
    model = Chain(2).eval()
    expected = by_hand(model, images(), 3)
    insert(model, {"bn": 2})
    insert(model, {"bn": 3})
    assert inserted(model) == {"bn": 3}
    assert torch.equal(model(images()), expected)
    insert(model, {"bn": 1})
    assert inserted(model) == {}
    assert not model.bn._forward_hooks


def test_maxout_inserted_keeps_other_hooks() -> None:
    model, calls = Chain(6), []
    model.bn.register_forward_hook(lambda module, inputs, output: calls.append(1))
    insert(model, {"bn": 2})
    insert(model, {"bn": 1})
    model(images())
    assert calls == [1]


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "rebuild": lambda model: rebuild(model, lambda name, tensor: tensor.clone()),
}


@pytest.mark.parametrize("kind", COPIES)
def test_maxout_copied_network_has_its_own_units(kind: str) -> None:
    model = Chain(3).eval()
    insert(model, {"bn": 2})
    copied = COPIES[kind](model)
    assert inserted(copied) == {"bn": 2}
    assert torch.equal(copied(images()), model(images()))
    insert(copied, {"bn": 1})
    assert inserted(model) == {"bn": 2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": 2}, "'norm', which this network does not have"),
        ({"bn": 4}, "4 candidates behind 'bn', which has 6 channels"),
        ({"bn": 0}, "0 candidates behind 'bn'"),
    ],
)
def test_maxout_invalid_candidates_are_refused_before_any_change(wrong: dict[str, int], message: str) -> None:
    model = Chain()
    with pytest.raises(ValueError, match=message):
        insert(model, {"conv": 2, **wrong})
    assert inserted(model) == {}
