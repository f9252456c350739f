"""Tests of ThiNet by hand, and against its sum of squares written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raprune.channels.cut import cut
from raprune.channels.trace import trace
from raprune.methods import METHODS, Cut, reestimate_batch_norm
from raprune.methods.activations import GroupReader
from raprune.methods.thinet import ThiNet
from raprune.records import Candidate
from tests.methods.by_hand import batches, line, network, part, seen_by, two_images


def test_channels_that_cancel_are_removed_together() -> None:
    model = line(2.0, -1.9, 0.5, 5.0)
    scores = ThiNet().score(model, trace(model, torch.zeros(1, 1, 1, 1)), two_images, seed=0)["0"]
    # T grows by 0.5, then -1.9, then 2, then 5: the sums are 0.5, -1.4, 0.6 and 5.6, which is the whole output.
    whole = 5.6**2
    np.testing.assert_allclose(scores[[2, 1, 3]], [0.5**2 / whole, 1.4**2 / whole, 1.0], rtol=1e-6)
    # 0.6 is less than 1.4, but scores have to keep the order.
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-12)
    assert np.argsort(scores).tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize("name", ["Residual", "Grouped", "DenseBlock", "FlattenLinear", "Transposed"])
def test_the_greedy_choice_written_out(name: str) -> None:
    model, graph = network(name)
    scores = ThiNet(positions=10_000).score(model, graph, batches, seed=0)
    seen = seen_by(model, graph)
    with torch.no_grad():
        for group in graph.groups:
            mine = [(reader, x) for reader, x in seen if reader.group == group.name]

            def error(gone: list[int], mine: list[tuple[GroupReader, Tensor]] = mine) -> float:
                total = 0.0
                for reader, x in mine:
                    positions = reader.indices[gone].reshape(-1)
                    size = x.shape[-1 if isinstance(reader.module, nn.Linear) else 1]
                    whole = part(reader, x, np.arange(size)).square().sum().item()
                    total += part(reader, x, positions).square().sum().item() / whole
                return total

            gone: list[int] = []
            highest = 0.0
            while len(gone) < group.num_channels:
                rest = [c for c in range(group.num_channels) if c not in gone]
                gone.append(min(rest, key=lambda c: error([*gone, c])))
                highest = max(highest, error(gone))
                np.testing.assert_allclose(scores[group.name][gone[-1]], highest, rtol=1e-8, atol=1e-30)
            assert np.argsort(scores[group.name]).tolist() == gone


def test_damage_is_the_error_in_the_order_of_removal() -> None:
    method = ThiNet()
    damage = method.damage({"0": np.array([0.3, 0.1, 1.0])})
    np.testing.assert_array_equal(damage["0"], [0.0, 0.1, 0.3, 1.0])


@pytest.mark.parametrize("name", ["thinet", "lasso"])
def test_the_repair_comes_closer_to_the_dense_network_than_batch_norm_alone(name: str) -> None:
    model, graph = network("Residual")
    reestimate_batch_norm(model, batches)
    method = METHODS[name]()
    scores = method.score(model, graph, batches, seed=0)
    kept = {group: tuple(sorted(np.argsort(-values)[: len(values) // 2].tolist())) for group, values in scores.items()}
    refitted, plain = (cut(model, graph, Candidate(name, kept)) for _ in range(2))
    method.repair(refitted, batches, Cut(model, graph, kept))
    reestimate_batch_norm(plain, batches)
    with torch.no_grad():
        x = torch.cat([images for images, _ in batches()])
        errors = [(network(x) - model(x)).square().sum().item() for network in (refitted, plain)]
    assert errors[0] < 0.5 * errors[1]
