"""Tests of the contributions of channels, against the layers themselves on one channel at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raprune.methods.activations import readers
from raprune.methods.contribution import contributions, merged
from tests.methods.by_hand import batches, channel_axis, network, part, seen_by

NETWORKS = ("Residual", "Grouped", "DenseBlock", "FlattenLinear", "WrittenAttention", "Transposed")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_matrix_is_that_of_the_parts_channel_by_channel(name: str) -> None:
    model, graph = network(name)
    found = contributions(model, graph, batches, positions=10_000)
    by_hand = seen_by(model, graph)
    assert len(found) == len(by_hand) > 0
    for one, (reader, x) in zip(found, by_hand, strict=True):
        with torch.no_grad():
            parts = torch.stack([part(reader, x, positions).flatten() for positions in reader.indices])
            whole = part(reader, x, np.arange(x.shape[channel_axis(reader.module, x)]))
        gram = (parts @ parts.T).numpy()
        np.testing.assert_allclose(one.gram, gram, atol=1e-12 * np.abs(gram).max())
        np.testing.assert_allclose(one.energy, whole.square().sum().item(), rtol=1e-10, atol=1e-20)


def test_a_grouped_convolution_reads_a_channel_in_each_of_its_groups() -> None:
    model, graph = network("Grouped")
    found = [reader for reader in readers(model, graph) if reader.group == "reduce"]
    assert [reader.module for reader in found] == [model.get_submodule("grouped")]
    assert found[0].indices.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_some_positions_stand_for_all() -> None:
    """The positions are drawn by a fixed seed; the estimate is right on average."""
    model, graph = network("Residual")
    few, again = (contributions(model, graph, batches, positions=16) for _ in range(2))
    every = contributions(model, graph, batches, positions=64)
    for one, same, all_of_them in zip(few, again, every, strict=True):
        assert np.array_equal(one.gram, same.gram)
        if isinstance(one.reader.module, nn.Conv2d):
            assert not np.array_equal(one.gram, all_of_them.gram)
            assert 0.5 < 4 * np.trace(one.gram) / np.trace(all_of_them.gram) < 2


def test_merged_readers_are_added_as_fractions_of_their_layers_energies() -> None:
    model, graph = network("Residual")
    found = contributions(model, graph, batches, positions=10_000)
    mine = [one for one in found if one.reader.group == "stem"]
    assert len(mine) == 2
    np.testing.assert_allclose(merged(graph, found)["stem"], sum(one.gram / one.energy for one in mine))


def test_without_readers_all_channels_count_alike() -> None:
    _, graph = network("Residual")
    total = merged(graph, [])
    np.testing.assert_allclose(total["conv1"], np.eye(6) / 6)


def test_the_model_stays_as_it_was() -> None:
    model, graph = network("Residual")
    model.train()
    contributions(model, graph, batches, positions=4)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
