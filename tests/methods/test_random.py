"""Tests of the random baseline."""

from __future__ import annotations

import numpy as np

from raprune.methods import METHODS
from tests.channels.proved import proved


def test_random_scores_are_uniform_and_follow_the_seed() -> None:
    model, graph = proved("DenseBlock")
    drawn = [METHODS["random"]().score(model, graph, lambda: iter(()), seed=seed) for seed in range(200)]
    values = np.stack([np.concatenate(list(scores.values())) for scores in drawn])
    assert len(np.unique(values)) == values.size
    assert ((values >= 0) & (values < 1)).all()
    # 200 draws of 22 channels: the mean of each channel within five standard errors.
    assert np.abs(values.mean(0) - 0.5).max() < 5 / np.sqrt(12 * 200)
