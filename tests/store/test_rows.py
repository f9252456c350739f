"""The Parquet mapping of a trial: the row holds all of the trial."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raprune.records import Candidate, Metrics, Proposal, Stage, Trial, TrialState
from raprune.spec.budget import Budget
from raprune.store.rows import SCHEMA, from_row, to_row

names = st.text(min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, width=64)
fractions = st.floats(0.0, 1.0, exclude_min=True)
counts = st.integers(0, 2**62)
settings = st.dictionaries(names, st.booleans() | st.integers(-(2**40), 2**40) | numbers | names, max_size=3)


# All FLOPs beside another limit are the same as no limit of FLOPs.
targets = st.builds(Budget, flops=fractions) | st.builds(
    Budget, flops=st.none() | fractions.filter(lambda f: f < 1.0), params=fractions, latency=st.none() | fractions
)


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    proposal = Proposal(
        number=draw(st.integers(0, 10**6)),
        method=draw(names),
        allocation=draw(names),
        target=draw(targets),
        settings=draw(settings),
        keep_ratios=draw(st.dictionaries(names, fractions, max_size=3)),
        seed=draw(counts),
        stage=draw(st.sampled_from(Stage)),
        parent=draw(st.none() | names),
        rung=draw(st.integers(0, 3)),
        repeat=draw(st.integers(0, 3)),
        cuts=draw(st.integers(1, 5)),
    )
    kept = st.sets(st.integers(0, 4096), max_size=6).map(lambda c: tuple(sorted(c)))
    candidates = st.builds(
        Candidate,
        st.just(proposal.method),
        st.dictionaries(names, kept, max_size=3),
        st.just(proposal.settings) | settings,
    )
    metrics = st.builds(
        Metrics,
        accuracy=numbers,
        loss=numbers,
        flops=counts,
        params=counts,
        flops_fraction=fractions,
        params_fraction=fractions,
    )
    return Trial(
        trial_id=proposal.trial_id,
        proposal=proposal,
        state=draw(st.sampled_from(TrialState)),
        candidate=draw(st.none() | candidates),
        metrics=draw(st.none() | metrics),
        accuracy_after_cut=draw(st.none() | numbers),
        accuracy_after_repair=draw(st.none() | numbers),
        epochs=draw(numbers),
        error=draw(st.none() | st.text()),
        seconds=draw(numbers),
        gpu_seconds=draw(numbers),
        started_at=draw(numbers),
        worker=draw(st.text()),
    )


@given(trials())
def test_row_of_any_trial_gives_back_the_trial(trial: Trial) -> None:
    assert list(to_row(trial)) == SCHEMA.names
    assert from_row(to_row(trial)) == trial
