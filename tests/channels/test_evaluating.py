"""Test of evaluation mode for a while."""

from __future__ import annotations

import pytest
from torch import nn

from raprune.channels.evaluating import evaluating


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_restores_the_mode_of_every_module(fails: bool) -> None:
    """A frozen batch norm in a network that trains stays frozen, whether or not the work within succeeds."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    model[1].eval()
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [module.training for module in model.modules()] == [True, True, False, True]
