"""Optuna's Gaussian process as a sampler: it learns from widths, and a seed gives the same search."""

from __future__ import annotations

import random

import pytest

from raprune.errors import UsageError
from raprune.sampling import optuna_gp
from raprune.sampling.optuna_gp import GaussianSampler, check_installed
from raprune.sampling.proposals import Proposals
from raprune.sampling.source import Asked, Turn
from raprune.sampling.space import RATIOS
from raprune.spec.job import SamplerSpec
from tests.factories import SPACE, drive, outcome, trial_of

SPEC = SamplerSpec(trials=16, lookahead=4, sampler="gp")


def test_warm_start_teaches_by_the_widths_that_it_came_to() -> None:
    sampler = GaussianSampler(SPACE, SPEC, seed=0, num_warm=1, after=0)
    turn = Turn(number=0, rank=0, heard=0)
    warm = sampler.propose_fixed(turn, {"target": 0.2, "allocation": "uniform", "method": "l2"})
    assert (warm.allocation, dict(warm.keep_ratios)) == ("uniform", {})
    point = outcome(warm).with_recipe(warm, target=0.2)
    sampler.learn(Asked(proposal=warm, source=sampler, point=point))
    [(known, trial)] = sampler._known
    assert known.allocation == RATIOS and known.keep_ratios == SPACE.ratios_of(point.widths)
    assert set(trial.params) == {"method", "allocation", "target", "keep.0", "keep.1", "keep.2"}
    assert trial.values == list(point.objectives())


def test_gaussian_process_without_scipy_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--sampler") as caught:
        check_installed(SPEC)
    assert "raprune[gp]" in caught.value.hint
    check_installed(SPEC.model_copy(update={"sampler": "tpe"}))


@pytest.mark.nightly
def test_seed_gives_the_same_search_by_any_number_of_workers_and_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_gp, "_STARTUP", 5)
    whole = drive(Proposals(SPACE, SPEC, seed=3), workers=1, order=random.Random(0))
    assert drive(Proposals(SPACE, SPEC, seed=3), workers=4, order=random.Random(1)) == whole
    assert all(set(proposal.keep_ratios) == set(SPACE.channels) for proposal in whole[6:])
    stored = [trial_of(proposal) for proposal in whole[:11] if proposal.number != 8]
    resumed = Proposals(SPACE, SPEC, seed=3, stored=stored)
    assert drive(resumed, workers=3, order=random.Random(5)) == [whole[8], *whole[11:]]
