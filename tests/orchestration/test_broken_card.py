"""Searches in which a worker's device breaks, or a trial makes no progress."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from raprune.orchestration.coordinator import Coordinator
from raprune.orchestration.workers import trials as workers
from raprune.orchestration.workers.device import works
from raprune.records import TrialState
from raprune.store.files import UnreachableStoreError
from raprune.store.folder import Store
from raprune.training.evaluate import evaluate
from tests.factories import small_search
from tests.orchestration.in_process import BROKEN, in_process
from tests.orchestration.whole_search import facts, run

HANGING = "tests.orchestration.broken_card:Hanging"


EVALUATE = "raprune.pruning.prune.evaluate"


def test_search_with_workers_on_broken_devices_finds_what_it_finds_without(
    finished: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker, and the first one that replaces it, have a CUDA error on each candidate; another a canary that
    fails after an error of any kind.
    """
    canary = iter([False])
    strange = iter([ValueError("nonsense")])
    monkeypatch.setattr(workers, "works", lambda device: next(canary, True))

    def evaluate_on_device(*args: Any, **kwargs: Any) -> Any:
        if os.environ.get(BROKEN) == "yes":
            raise RuntimeError("CUDA error: unspecified launch failure")
        for error in strange:
            raise error
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(EVALUATE, evaluate_on_device)
    spec = small_search(tmp_path / "run")
    with in_process(broken=(1, 3)) as executor:
        run(spec)
    assert executor.workers_ended == 3
    trials = Store(spec.output).trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert facts(trials) == facts(finished.trials())


@pytest.mark.parametrize("elsewhere", [True, False])
def test_worker_that_alone_cannot_reach_the_store_is_replaced_and_any_other_outage_ends_the_run(
    finished: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    def evaluate_on_node(*args: Any, **kwargs: Any) -> Any:
        if os.environ.get(BROKEN) == "yes":
            raise UnreachableStoreError("s3://bucket/run: cannot write (tried 30 times): connection refused.")
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(EVALUATE, evaluate_on_node)
    monkeypatch.setattr(Coordinator, "reaches_store", lambda self: elsewhere)
    spec = small_search(tmp_path / "run")
    with in_process(broken=(1, 3)) as executor:
        if not elsewhere:
            with pytest.raises(UnreachableStoreError, match="connection refused"):
                run(spec)
            return
        run(spec)
    assert executor.workers_ended == 2
    trials = Store(spec.output).trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert facts(trials) == facts(finished.trials())


def test_candidate_out_of_gpu_memory_is_tried_once_more_with_half_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def evaluate_in_little_memory(*args: Any, batch_size: int, **kwargs: Any) -> Any:
        sizes.append(batch_size)
        if len(sizes) in (1, 3, 4):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return evaluate(*args, batch_size=batch_size, **kwargs)

    monkeypatch.setattr(EVALUATE, evaluate_in_little_memory)
    search = {"trials": 3, "lookahead": 4, "calibration_images": 64, "eval_batch_size": 512}
    spec = small_search(tmp_path / "run", search=search, finalists={"count": 0}, resources={"workers": 1})
    with in_process() as executor:
        run(spec)
    assert sizes == [512, 256, 512, 256, 512] and executor.workers_ended == 0
    first, second, third = Store(spec.output).trials()
    assert (first.state, second.state, third.state) == (TrialState.COMPLETE, TrialState.FAILED, TrialState.COMPLETE)
    assert (second.error or "").startswith("OutOfMemoryError: CUDA out of memory")


def test_canary_on_a_device_without_a_context_to_break_is_alive() -> None:
    assert works(torch.device("cpu"))


@pytest.mark.ray
@pytest.mark.nightly
def test_worker_on_a_broken_card_ends_again_and_again_and_loses_no_trial(ray_cluster: None, tmp_path: Path) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    model = {"name": "tests.orchestration.broken_card:build", "arguments": {"cards": str(cards)}}
    search = {"trials": 8, "lookahead": 4, "calibration_images": 64}
    spec = small_search(tmp_path / "run", model=model, search=search, finalists={"count": 0})
    run(spec)
    trials = Store(spec.output).trials()
    assert len(trials) == 8 and {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert list(cards.glob("broken-*")), "a worker was on the broken card"


@pytest.mark.ray
@pytest.mark.nightly
def test_trial_that_hangs_fails_by_the_time_limit_and_the_search_ends(ray_cluster: None, tmp_path: Path) -> None:
    mark = tmp_path / "hangs"
    # Far more than any other trial takes, on a busy machine too.
    resources = {"workers": 2, "trial_timeout_s": 20.0}
    settings = {HANGING: {"mark": str(mark)}}
    search = {"trials": 4, "lookahead": 4, "calibration_images": 64}
    spec = small_search(
        tmp_path / "run",
        methods=[HANGING],
        settings=settings,
        resources=resources,
        search=search,
        finalists={"count": 0},
    )
    run(spec)
    failed = [trial for trial in Store(spec.output).trials() if trial.state is not TrialState.COMPLETE]
    assert [trial.proposal.method for trial in failed] == [HANGING] and mark.exists()
    assert "over resources.trial_timeout_s (20)" in (failed[0].error or "")
