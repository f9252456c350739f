from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from raprune.errors import UsageError
from raprune.records import Candidate, Metrics, Proposal, Stage, Trial, TrialState
from raprune.sampling.optuna_sampler import Sampler
from raprune.sampling.point import Point
from raprune.sampling.proposals import Proposals
from raprune.sampling.source import ProposalSource
from raprune.sampling.sources import Mutations
from raprune.sampling.space import RATIOS, SearchSpace
from raprune.sampling.warm_start import Earlier, EarlierRun, Identity, from_json, read, reused, to_json
from raprune.spec.budget import Budget
from raprune.spec.job import SamplerSpec, SearchSpec
from raprune.spec.toml import load_spec

SourceT = TypeVar("SourceT", bound=ProposalSource)

HERE = Identity("network", "data", "weights")
SPACE = SearchSpace(
    methods=("l1", "l2"),
    allocations=(RATIOS, "uniform"),
    blocks=(("a",), ("b", "c")),
    channels={"a": 8, "b": 16, "c": 16},
    lowest=0.1,
    highest=0.5,
    settings={"l2": {"ridge": {"low": 0.1, "high": 1.0, "default": 0.5}}},
)
SPEC = SearchSpec.model_validate({"search": {"trials": 16, "multiple_of": 1}, "methods": ["l1", "l2"]})


def trial(number: int, flops: float, accuracy: float, **changes: Any) -> Trial:
    """A trial of its own widths."""
    given: dict[str, Any] = {"method": "l1", "allocation": "uniform", "target": Budget(flops=flops)} | changes
    proposal = Proposal(number=number, **given)
    kept = {"a": tuple(range(1 + number % 8)), "b": tuple(range(8)), "c": tuple(range(4))}
    metrics = Metrics(accuracy=accuracy, loss=1.0, flops=1, params=1, flops_fraction=flops, params_fraction=flops / 2)
    return Trial(
        trial_id=proposal.trial_id,
        proposal=proposal,
        state=TrialState.COMPLETE,
        candidate=Candidate(proposal.method, kept, proposal.settings),
        metrics=metrics,
    )


def run_of(*trials: Trial, spec: SearchSpec = SPEC, identity: Identity = HERE) -> EarlierRun:
    return EarlierRun("runs/a", spec, identity, trials)


def firsts(*runs: EarlierRun, trials: int = 16) -> list[str]:
    spec = SPEC.model_copy(update={"search": SPEC.search.model_copy(update={"trials": trials})})
    return [known.trial_id for known in reused(runs, spec, SPACE, HERE).first]


def test_the_front_of_an_earlier_run_comes_first_as_far_as_it_is_in_the_range() -> None:
    run = run_of(trial(0, 0.4, 0.9), trial(1, 0.3, 0.95), trial(2, 0.2, 0.8), trial(3, 0.7, 0.99), trial(4, 0.05, 0.1))
    assert firsts(run) == ["search-00001", "search-00002"], "0 is beaten, 3 is too expensive and 4 too small"
    assert firsts(run, trials=4) == ["search-00001"], "a quarter of the trials at most"
    stopped = replace(trial(5, 0.3, 0.99), state=TrialState.STOPPED)
    finetuned = trial(6, 0.3, 0.99, stage=Stage.FINETUNE, parent="search-00001")
    on_the_way = trial(7, 0.3, 0.99, step=0)
    other = trial(8, 0.3, 0.99, method="taylor")
    assert firsts(run_of(trial(1, 0.3, 0.95), stopped, finetuned, on_the_way)) == ["search-00001"]
    assert firsts(run_of(other)) == [], "not a method of this job"
    assert firsts(run, run) == firsts(run), "each once"


def test_results_count_where_the_same_trial_would_give_them_now() -> None:
    run = run_of(trial(0, 0.4, 0.9), trial(1, 0.3, 0.95, method="taylor"), trial(2, 0.2, 0.8, allocation="global_rank"))

    def observed(run: EarlierRun, spec: SearchSpec = SPEC, now: Identity = HERE) -> list[str]:
        return [known.trial_id for known in reused([run], spec, SPACE, now).observed]

    assert observed(run) == ["search-00000"]
    assert observed(run, now=Identity("network", "data", "others")) == []
    assert observed(run, spec=SPEC.model_copy(update={"seed": 1})) == [], "the seed draws the calibration images"
    for change in ({"rungs": (0.0, 1.0)}, {"calibration_images": 32}, {"multiple_of": 4}):
        assert observed(run, spec=SPEC.model_copy(update={"search": SPEC.search.model_copy(update=change)})) == []


def test_warm_start_that_was_stored_reads_back_equal() -> None:
    run = run_of(trial(0, 0.4, 0.9, settings={"ridge": 0.5}, method="l2"), trial(1, 0.3, 0.95))
    taken = reused([run], SPEC, SPACE, HERE)
    assert taken.first and taken.observed
    assert from_json(json.loads(json.dumps(to_json(taken)))) == taken


def test_results_in_the_file_of_an_older_version_are_read() -> None:
    """Before there were points, the file held the same fields."""
    older = {
        "run": "runs/a",
        "trial_id": "search-00003",
        "method": "l2",
        "settings": {"ridge": 0.5},
        "allocation": "uniform",
        "target": 0.4,
        "keep_ratios": {},
        "widths": {"a": 4, "b": 8, "c": 4},
        "accuracy": 0.9,
        "flops_fraction": 0.39,
        "params_fraction": 0.2,
        "latency_fraction": None,
    }
    earlier = from_json({"first": [older], "observed": []})
    [point] = earlier.first
    assert (point.trial_id, point.widths, point.objectives()) == ("search-00003", older["widths"], (1 - 0.9, 0.39))
    assert to_json(earlier) == {"first": [older | {"memory_fraction": None}], "observed": []}


def drive(earlier: Earlier | None, count: int, **spec: Any) -> tuple[Proposals, list[Proposal]]:
    sampler = SamplerSpec.model_validate({"trials": 24, "lookahead": 1, **spec})
    proposals = Proposals(SPACE, sampler, seed=0, earlier=earlier)
    done: list[Proposal] = []
    while len(done) < count and (proposal := proposals.next()) is not None:
        assert proposal.target.flops is not None
        result = Point.of(trial(proposal.number, proposal.target.flops, 0.5, method=proposal.method))
        proposals.tell(proposal.number, result)
        done.append(proposal)
    return proposals, done


def source_of(proposals: Proposals, kind: type[SourceT]) -> SourceT:
    """The search's source of that kind."""
    [found] = [source for source in proposals._sources if isinstance(source, kind)]
    return found


def test_widths_are_proposed_exactly_and_results_are_told() -> None:
    settings = {"ridge": 0.5}
    taken = reused([run_of(trial(0, 0.4, 0.9, settings=settings, method="l2"), trial(6, 0.2, 0.8))], SPEC, SPACE, HERE)
    proposals, done = drive(taken, 4)
    first, second, third, _ = done
    assert (first.method, dict(first.settings), first.allocation) == ("l2", settings, RATIOS)
    assert {name: round(ratio * SPACE.channels[name], 9) for name, ratio in first.keep_ratios.items()} == {
        "a": 1,
        "b": 8,
        "c": 4,
    }
    assert first.target.flops is not None and 0.4 <= first.target.flops < 0.4 * (1 + 1e-9)
    assert second.method == "l1" and second.keep_ratios["a"] == 7 / 8
    assert third.allocation == "uniform" and third.target.flops == 0.5, "then the warm starts of every search"
    told = [one for one in source_of(proposals, Sampler)._study.trials if one.state.is_finished()]
    assert len(told) == 2 + 1, "both results, and that of the third: widths as such are not its business"
    assert len(source_of(proposals, Mutations)._mutator) == 2 + 3, "changes of widths learn from those as well"
    assert drive(taken, 12)[1] == drive(taken, 12)[1] != drive(None, 12)[1]
    assert drive(taken, 12, warm_starts=False)[1] == drive(None, 12, warm_starts=False)[1]


def test_a_result_that_the_sampler_could_not_have_proposed_is_not_told() -> None:
    outside = trial(0, 0.4, 0.9, method="l2", settings={"ridge": 7.0})
    lacking = trial(1, 0.4, 0.9, method="l2")
    beyond = trial(2, 0.9, 0.9)
    taken = reused([run_of(outside, lacking, beyond)], SPEC, SPACE, HERE)
    assert len(taken.observed) == 3 and len(source_of(drive(taken, 0)[0], Sampler)._study.trials) == 0


def test_a_folder_in_a_job_is_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('warm_start = ["runs/a", "s3://bucket/b"]')
    assert load_spec(tmp_path / "job.toml").warm_start == (str(tmp_path / "runs/a"), "s3://bucket/b")


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"warm_start \(--warm-start\) .*not the folder of a run"):
        read([str(tmp_path)], HERE)
