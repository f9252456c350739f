"""How long a search will take, from measured speeds and the size of the job."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raprune.data import load_data
from raprune.pruning.pace import measure_pace
from raprune.pruning.workload import build_workload
from raprune.report.summary import forecast_told
from raprune.results.forecast import WORKERS_START_S, Pace, Plan, forecast
from raprune.results.stages import FINETUNE, LATENCY, PHASES, REPORT, SCORES, SEARCH, TEST
from raprune.spec.job import SearchSpec

PACE = Pace(forward_s=0.001, step_s=0.003)
PLAN = Plan(
    workers=2,
    train_images=10_000,
    validation_images=1_000,
    test_images=2_000,
    calibration_images=500,
    trials=40,
    fraction=0.2,
    refits=0.5,
    scored=2,
    finetunings=8,
    finetuning_epochs=5.0,
)


def test_forecast_has_the_stages_with_work_in_their_order() -> None:
    assert list(forecast(PACE, PLAN)) == [SCORES, SEARCH, FINETUNE, TEST, LATENCY, REPORT]
    assert next(iter(forecast(PACE, replace(PLAN, phase_epochs=20.0)))) == PHASES


def test_forecast_of_a_small_job_equals_the_one_by_hand() -> None:
    seconds = forecast(PACE, PLAN)
    # A quarter of the time stays: networks of 20 % of the FLOPs take 40 %.
    # 4 rounds of 5 epochs; the cut network is trained, the dense one is its teacher.
    assert seconds[FINETUNE] == pytest.approx(4 * 5 * 10_000 * (0.001 + 0.4 * 0.002))
    # 20 rounds: 500 images half by refit (3 passes of both networks), half by one pass; 1,000 are evaluated.
    trial = 0.05 + 500 * (0.5 * 3 * 1.4e-3 + 0.5 * 0.4e-3) + 1_000 * 0.4e-3
    assert seconds[SEARCH] == pytest.approx(WORKERS_START_S + 20 * trial)


def test_forecast_of_twice_the_work_is_longer_and_of_twice_the_workers_shorter() -> None:
    assert forecast(PACE, replace(PLAN, trials=80))[SEARCH] > forecast(PACE, PLAN)[SEARCH]
    faster = forecast(PACE, replace(PLAN, workers=4))
    assert all(faster[name] < forecast(PACE, PLAN)[name] for name in (SCORES, SEARCH, FINETUNE))
    slow = Pace(forward_s=0.01, step_s=0.03)
    assert sum(forecast(slow, PLAN).values()) > 5 * sum(forecast(PACE, PLAN).values())


def test_scores_of_other_settings_take_their_time_in_the_search() -> None:
    seconds = forecast(PACE, replace(PLAN, rescored=1))
    again = 500 * 3 * 0.001
    assert seconds[SEARCH] == pytest.approx(forecast(PACE, PLAN)[SEARCH] + again)


def test_forecast_of_finished_work_is_empty() -> None:
    left = forecast(PACE, replace(PLAN, trials=0, finetunings=0, scored=0))
    assert SCORES not in left and SEARCH not in left and FINETUNE not in left


def test_forecast_with_a_time_limit_is_bounded() -> None:
    assert forecast(PACE, replace(PLAN, trials=10_000, limit_s=30.0))[SEARCH] == WORKERS_START_S + 30


def test_forecast_in_words_names_its_longest_stage() -> None:
    text = forecast_told({SCORES: 40.0, SEARCH: 65.0, FINETUNE: 240.0, REPORT: 4.0})
    assert text == "This will take about 6 min: fine-tuning 4 min, trials 65 s, scores 40 s."


def test_pace_is_measured_and_leaves_the_network_unchanged() -> None:
    spec = SearchSpec.model_validate({"model": {"name": "digits-net"}, "data": {"name": "digits", "max_images": 200}})
    workload = build_workload(spec, data=load_data(spec.data, seed=0), device="cpu")
    before = {name: tensor.clone() for name, tensor in workload.model.state_dict().items()}
    pace = measure_pace(workload, spec)
    assert 0 < pace.forward_s < 1 and 0 < pace.step_s < 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in workload.model.state_dict().items())
    assert not workload.model.training and all(p.grad is None for p in workload.model.parameters())
