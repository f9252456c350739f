"""Random networks: each is proved, frozen or refused, and none is wrong against masking by hooks."""

from __future__ import annotations

import os
import warnings

import pytest
from hypothesis import HealthCheck, given, settings

from tests.channels.random_check import checked
from tests.channels.random_networks import Step, programs

COUNT = int(os.environ.get("RAPRUNE_RANDOM_NETWORKS", "60"))
"""Number of networks; `jobs/benchmarks/random_networks.py` runs thousands."""


@pytest.mark.nightly
@settings(max_examples=COUNT, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_random_network_of_any_program_is_proved_frozen_or_refused(program: tuple[Step, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, on unusual layers
        assert checked(program) in ("proved", "frozen", "refused")


def test_random_network_with_sizes_for_wide_heads_only_is_cut_to_widths_that_run() -> None:
    """The code divides a width by its number of heads, which gives 0 for narrow cuts: the heads stay."""
    program = (Step("attention", 11, 5, 9), Step("attention", 11, 5, 9))
    assert checked(program) == "proved"
