from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import optuna
import pytest

from raprune.errors import StoreError
from raprune.records import Proposal, Stage
from raprune.sampling import optuna_sampler
from raprune.sampling.proposals import Proposals
from raprune.sampling.space import RATIOS, SearchSpace, make_blocks
from raprune.spec.budget import Budget
from raprune.spec.job import SamplerSpec
from tests.factories import SPACE, drive, flops_of, outcome, trial_of


@pytest.mark.parametrize("sampler", ["mixed", "tpe", "nsga2", "random"])
def test_a_seed_gives_the_same_search_for_any_number_of_workers_and_any_order_of_completion(sampler: str) -> None:
    spec = SamplerSpec.model_validate({"trials": 48, "sampler": sampler, "lookahead": 6})
    alone = drive(Proposals(SPACE, spec, seed=3), workers=1, order=random.Random(0))
    for workers, shuffle in ((4, 1), (6, 2), (20, 3)):
        assert drive(Proposals(SPACE, spec, seed=3), workers=workers, order=random.Random(shuffle)) == alone
    assert drive(Proposals(SPACE, spec, seed=4), workers=1, order=random.Random(0)) != alone


def test_the_sampler_learns_from_the_results() -> None:
    spec = SamplerSpec(trials=48, lookahead=6)
    proposals = Proposals(SPACE, spec, seed=0)
    drive(proposals, workers=1, order=random.Random(0))
    random_ones = Proposals(SPACE, spec.model_copy(update={"sampler": "random"}), seed=0)
    drive(random_ones, workers=1, order=random.Random(0))

    def longest_name_share(p: Proposals) -> float:
        late = list(p.proposals.values())[24:]
        return sum(q.method == "random" for q in late) / len(late)

    assert longest_name_share(proposals) > longest_name_share(random_ones)


def test_the_lookahead_is_all_that_runs_ahead_of_the_results() -> None:
    proposals = Proposals(SPACE, SamplerSpec(trials=20, lookahead=5), seed=0)
    first = [proposals.next() for _ in range(5)]
    assert all(first) and proposals.next() is None
    proposals.tell(1, outcome(proposals.proposals["search-00001"]))
    assert proposals.next() is None, "result 0 is still out"
    proposals.tell(0, outcome(proposals.proposals["search-00000"]))
    assert proposals.next() is not None and proposals.next() is not None and proposals.next() is None


def test_every_proposal_is_within_the_space() -> None:
    proposals = Proposals(SPACE, SamplerSpec(trials=60, sampler="tpe"), seed=0)
    for proposal in drive(proposals, workers=2, order=random.Random(0)):
        assert 0.1 <= flops_of(proposal) <= 0.3 and proposal.target.params is None
        assert set(proposal.keep_ratios) == (set("abcd") if proposal.allocation == RATIOS else set())
        assert all(0.05 <= ratio <= 1.0 for ratio in proposal.keep_ratios.values())
        assert proposal.keep_ratios.get("b") == proposal.keep_ratios.get("c")
        if proposal.method == "l1":
            assert 0.5 <= float(proposal.settings["power"]) <= 2.0
            assert isinstance(proposal.settings["steps"], int)
        else:
            assert not proposal.settings


def test_the_first_proposals_take_every_method_and_cover_the_range() -> None:
    proposals = Proposals(SPACE, SamplerSpec(trials=64), seed=0)
    done = drive(proposals, workers=1, order=random.Random(0))
    assert {(p.method, p.allocation) for p in done[:6]} == {
        (m, a) for m in SPACE.methods for a in ("uniform", "global_rank")
    }
    targets = [flops_of(p) for p in done[:6]]
    assert targets[0] == 0.3
    # Evenly on a logarithmic scale from 0.1 to 0.3: no gap above a third of the range, its ends included.
    places = sorted([0.0, *(math.log(t / 0.1) / math.log(3) for t in targets)])
    assert max(b - a for a, b in pairwise(places)) < 0.34
    targets = sorted(flops_of(p) for p in done[16:])
    assert max(b - a for a, b in zip([0.1, *targets], [*targets, 0.3], strict=True)) < 0.04, "a fifth of the range"


def test_a_budget_of_parameters_is_sampled_in_their_place() -> None:
    space = SearchSpace(methods=("l1",), allocations=("uniform",), blocks=(), lowest=0.2, highest=0.5, target="params")
    proposal = Proposals(space, SamplerSpec(trials=4), seed=0).next()
    assert proposal is not None and proposal.target == Budget(params=0.5)
    space = replace(space, target="flops", limits=Budget(params=0.4))
    proposal = Proposals(space, SamplerSpec(trials=4), seed=0).next()
    assert proposal is not None and proposal.target == Budget(flops=0.5, params=0.4)


@pytest.mark.parametrize("sampler", ["mixed", "tpe", "nsga2", "random"])
@pytest.mark.parametrize(("kept", "missing"), [(17, (11, 14)), (26, (23,))])
def test_a_resumed_search_runs_what_is_missing_and_goes_on_as_if_never_stopped(
    sampler: str, kept: int, missing: tuple[int, ...]
) -> None:
    spec = SamplerSpec.model_validate({"trials": 40, "lookahead": 4, "sampler": sampler})
    whole = drive(Proposals(SPACE, spec, seed=1), workers=1, order=random.Random(0))
    stored = [trial_of(p) for p in whole[:kept] if p.number not in missing]
    resumed = Proposals(SPACE, spec, seed=1, stored=stored)
    again = drive(resumed, workers=3, order=random.Random(5))
    assert again == [*(whole[number] for number in missing), *whole[kept:]]
    assert [point.trial_id for point in resumed.points] == [p.trial_id for p in whole]


@pytest.mark.parametrize("sampler", ["mixed", "tpe"])
def test_search_whose_sampler_forgets_results_is_resumed_as_if_never_stopped(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TPE forgets half of its results again and again, also while proposals of its own are under way."""
    monkeypatch.setattr(optuna_sampler, "_KNOWN", 4)
    studies: list[optuna.Study] = []
    make = optuna_sampler._new_study

    def counted() -> optuna.Study:
        studies.append(make())
        return studies[-1]

    monkeypatch.setattr(optuna_sampler, "_new_study", counted)
    spec = SamplerSpec.model_validate({"trials": 70, "lookahead": 7, "sampler": sampler})
    whole = drive(Proposals(SPACE, spec, seed=1), workers=1, order=random.Random(0))
    assert len(studies) > 3 and all(len(study.trials) <= 2 * 4 + 7 for study in studies)
    for kept in (33, 52):
        resumed = Proposals(SPACE, spec, seed=1, stored=[trial_of(proposal) for proposal in whole[:kept]])
        assert drive(resumed, workers=3, order=random.Random(5)) == whole[kept:]


@pytest.mark.parametrize("sampler", ["mixed", "tpe", "nsga2", "random"])
def test_a_stored_proposal_that_differs_in_the_last_digit_is_taken_as_it_is(sampler: str) -> None:
    """Another kind of CPU computes other last digits."""
    spec = SamplerSpec.model_validate({"trials": 40, "lookahead": 4, "sampler": sampler})
    whole = drive(Proposals(SPACE, spec, seed=1), workers=1, order=random.Random(0))
    other = [
        replace(
            proposal,
            target=Budget(flops=math.nextafter(flops_of(proposal), math.inf)),
            keep_ratios={name: math.nextafter(ratio, 0.0) for name, ratio in proposal.keep_ratios.items()},
        )
        for proposal in whole[:25]
    ]
    resumed = Proposals(SPACE, spec, seed=1, stored=[trial_of(proposal) for proposal in other])
    again = drive(resumed, workers=2, order=random.Random(0))
    assert [proposal.number for proposal in again] == list(range(25, 40))
    assert list(resumed.proposals.values())[:25] == other, "the store is the truth"
    assert [(p.method, p.allocation) for p in again] == [(p.method, p.allocation) for p in whole[25:]]


def test_a_store_of_another_search_is_refused() -> None:
    spec = SamplerSpec(trials=10)
    whole = drive(Proposals(SPACE, spec, seed=1), workers=1, order=random.Random(0))
    with pytest.raises(StoreError, match="search-00000: the run's store has seed"):
        Proposals(SPACE, spec, seed=2, stored=[trial_of(p) for p in whole]).next()


def test_a_stopped_search_ends_when_its_running_trials_do() -> None:
    proposals = Proposals(SPACE, SamplerSpec(trials=30), seed=1)
    running = [proposals.next(), proposals.next()]
    proposals.stop()
    assert proposals.next() is None and not proposals.over and proposals.total == 2
    for proposal in running:
        assert proposal is not None
        proposals.tell(proposal.number, outcome(proposal))
    assert proposals.over


def test_a_search_whose_finalists_were_chosen_proposes_nothing_more() -> None:
    spec = SamplerSpec(trials=30)
    whole = drive(Proposals(SPACE, spec, seed=1), workers=1, order=random.Random(0))[:12]
    finalist = Proposal(
        number=0,
        method="l1",
        allocation="uniform",
        target=Budget(flops=0.3),
        stage=Stage.FINETUNE,
        parent="search-00000",
    )
    proposals = Proposals(SPACE, spec, seed=1, stored=[trial_of(p) for p in [*whole, finalist]])
    assert proposals.next() is None and proposals.over and len(proposals.points) == 12


def test_blocks_are_contiguous_and_at_most_so_many() -> None:
    names = [f"g{i}" for i in range(75)]
    blocks = make_blocks(names)
    assert len(blocks) == 32 and [n for block in blocks for n in block] == names
    assert {len(block) for block in blocks} == {2, 3}
    assert make_blocks(names[:3]) == (("g0",), ("g1",), ("g2",))
    assert make_blocks([]) == ()


WITH_BASELINES = replace(
    SPACE,
    methods=("l2",),
    baselines=("random", "l1"),
    fixed={"l2": {"ridge": 0.5}},
    settings={"l2": SPACE.settings["l1"]},
)


def test_baselines_are_one_in_four_and_no_part_of_what_the_sampler_chooses_among() -> None:
    done = drive(Proposals(WITH_BASELINES, SamplerSpec(trials=40), seed=0), workers=3, order=random.Random(0))
    baselines, others = done[::4], [p for p in done if p.number % 4]
    assert [p.method for p in baselines] == ["random", "l1"] * 5, "a quarter of the trials"
    assert [p.target.flops for p in baselines[:4]] == [0.3] * 4
    assert {p.allocation for p in baselines} == {"uniform", "global_rank"}
    assert all(p.method == "l2" and p.settings["ridge"] == 0.5 for p in others)
    assert not any(p.settings for p in baselines)


@pytest.mark.parametrize(("trials", "baselines"), [(1, 0), (2, 1), (3, 2), (12, 3)])
def test_few_trials_leave_one_for_the_method_that_was_asked_for(trials: int, baselines: int) -> None:
    done = drive(Proposals(WITH_BASELINES, SamplerSpec(trials=trials), seed=0), workers=1, order=random.Random(0))
    assert sum(p.method != "l2" for p in done) == baselines


def test_a_method_is_first_tried_as_its_paper_sets_it() -> None:
    done = drive(Proposals(WITH_BASELINES, SamplerSpec(trials=60), seed=0), workers=1, order=random.Random(0))
    own = [p for p in done if p.number % 4]
    assert all(dict(p.settings) == {"ridge": 0.5, "power": 1.0, "steps": 3} for p in own[:6])
    assert len({p.settings["power"] for p in own[6:]}) > 5
    *_, only = drive(Proposals(WITH_BASELINES, SamplerSpec(trials=3), seed=0), workers=1, order=random.Random(0))
    assert dict(only.settings) == {"ridge": 0.5, "power": 1.0, "steps": 3}, "also where there is room for one alone"


def test_without_warm_starts_the_sampler_begins() -> None:
    spec = SamplerSpec(trials=40, warm_starts=False, sampler="tpe")
    own = [
        p for p in drive(Proposals(WITH_BASELINES, spec, seed=0), workers=1, order=random.Random(0)) if p.method == "l2"
    ]
    assert len({p.settings["power"] for p in own[:6]}) == 6 and len(own) == 30


def test_a_search_that_its_time_ends_is_not_all_baselines_and_random_draws() -> None:
    """It may be asked for any number of trials: what a few of these do must not depend on how many there could be."""
    few = drive_some(Proposals(WITH_BASELINES, SamplerSpec(trials=5000), seed=0), 40)
    assert sum(p.method != "l2" for p in few) == 10
    assert few[1].allocation != RATIOS, "its own warm starts come early"
    late = [p for p in few[26:] if p.method == "l2"]
    assert {p.allocation for p in late} >= {RATIOS}


def drive_some(proposals: Proposals, count: int) -> list[Proposal]:
    done: list[Proposal] = []
    while len(done) < count and (proposal := proposals.next()) is not None:
        proposals.tell(proposal.number, outcome(proposal))
        done.append(proposal)
    return done


def test_a_search_with_baselines_is_resumed_where_it_was() -> None:
    spec = SamplerSpec(trials=24, lookahead=4)
    whole = drive(Proposals(WITH_BASELINES, spec, seed=5), workers=1, order=random.Random(0))
    on_the_way = trial_of(replace(whole[7], step=1))
    stored = [*(trial_of(p) for p in whole[:9]), on_the_way]
    rest = drive(Proposals(WITH_BASELINES, spec, seed=5, stored=stored), workers=2, order=random.Random(1))
    assert rest == whole[9:]
