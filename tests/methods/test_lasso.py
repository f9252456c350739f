"""Tests of the lasso's path against coordinate descent, and of its errors against least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raprune.channels.trace import trace
from raprune.methods.lasso import Lasso, removal_order
from tests.methods.by_hand import batches, line, network, part, seen_by, two_images


def maps(channels: int, seed: int) -> np.ndarray:
    """Draw correlated contributions of both signs, `(outputs, channels)`."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(200, channels)) @ generator.normal(size=(channels, channels))
    return np.maximum(mixed + 1, 0) * generator.normal(size=channels)


def descend(gram: np.ndarray, penalty: float, beta: np.ndarray) -> np.ndarray:
    """Return the lasso's beta by cyclic coordinate descent."""
    beta, target = beta.copy(), gram.sum(axis=1)
    for _ in range(20_000):
        before = beta.copy()
        for c in range(len(beta)):
            alone = target[c] - gram[c] @ beta + gram[c, c] * beta[c]
            beta[c] = np.sign(alone) * max(abs(alone) - penalty, 0.0) / gram[c, c]
        if np.abs(beta - before).max() < 1e-12:
            break
    return beta


@pytest.mark.parametrize("seed", range(4))
def test_channels_leave_as_in_coordinate_descent(seed: int) -> None:
    z = maps(8, seed)
    gram = z.T @ z
    order = removal_order(gram)
    highest = np.abs(gram.sum(axis=1)).max()
    beta, last = np.ones(8), np.zeros(8)
    for penalty in np.geomspace(1e-4 * highest, 1.01 * highest, 300):
        beta = descend(gram, penalty, beta)
        last[beta != 0] = penalty
    assert len(set(last)) == 8, "the grid is too coarse to tell the order"
    assert np.argsort(last).tolist() == order


def test_every_channel_leaves_once_also_in_a_large_group() -> None:
    z = maps(120, 7)
    assert sorted(removal_order(z.T @ z)) == list(range(120))


def test_orthogonal_contributions_leave_by_their_energy() -> None:
    assert removal_order(np.diag([4.0, 1.0, 9.0, 0.25])) == [3, 1, 0, 2]


@pytest.mark.parametrize("name", ["Residual", "Grouped", "DenseBlock", "FlattenLinear", "Transposed"])
def test_the_score_is_the_error_of_the_least_squares_beta_of_what_remains(name: str) -> None:
    model, graph = network(name)
    scores = Lasso(positions=10_000).score(model, graph, batches, seed=0)
    seen = seen_by(model, graph)
    for group in graph.groups:
        # Readers on top of each other, each with outputs of energy 1: one beta for all of them.
        stacked = []
        with torch.no_grad():
            for reader, x in seen:
                if reader.group == group.name:
                    size = x.shape[-1 if isinstance(reader.module, nn.Linear) else 1]
                    scale = part(reader, x, np.arange(size)).norm()
                    stacked.append(torch.stack([part(reader, x, c).flatten() / scale for c in reader.indices], dim=1))
        z = torch.cat(stacked).numpy()
        order = np.argsort(scores[group.name])
        for number in range(1, len(order) + 1):
            stays = order[number:]
            beta = np.linalg.lstsq(z[:, stays], z.sum(axis=1), rcond=None)[0]
            error = ((z.sum(axis=1) - z[:, stays] @ beta) ** 2).sum()
            np.testing.assert_allclose(scores[group.name][order[number - 1]], error, rtol=1e-5, atol=1e-8)


def test_dead_and_equal_channels_cost_nothing() -> None:
    model = line(2.0, 0.0, 2.0, 5.0)
    scores = Lasso().score(model, trace(model, torch.zeros(1, 1, 1, 1)), two_images, seed=0)["0"]
    assert scores[1] == scores.min() < 1e-12
    # All four follow the same line: any one of them can do for all.
    assert np.sort(scores)[:3].max() < 1e-6
    np.testing.assert_allclose(scores.max(), 1.0, rtol=1e-6)


def test_damage_is_the_error_in_the_order_of_removal() -> None:
    damage = Lasso().damage({"0": np.array([0.3, 0.1, 1.0])})
    np.testing.assert_array_equal(damage["0"], [0.0, 0.1, 0.3, 1.0])
