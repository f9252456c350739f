from __future__ import annotations

from typing import Any

import pytest

from raprune.errors import UsageError
from raprune.methods import METHODS as ALL_METHODS
from raprune.spec.automatic import METHODS, decided, decided_as, told
from raprune.spec.job import BASELINES
from raprune.spec.recipes import Traits
from raprune.spec.toml import load_spec

WIDE, NARROW = {"a": 32, "b": 64}, {"a": 16, "b": 64}


def test_open_fields_are_decided_from_data_and_network() -> None:
    spec = decided(load_spec(), num_train=8000, widths=WIDE)
    train = spec.finalists.train
    assert (spec.methods, spec.search.multiple_of, train.epochs, train.lr) == (METHODS, 8, 0.26, 0.01)


def test_given_fields_stay_as_given() -> None:
    given: dict[str, Any] = {
        "methods": ["taylor"],
        "search.multiple_of": 2,
        "search.calibration_images": 64,
        "finalists.train.epochs": 0.0,
        "finalists.train.lr": 0.3,
    }
    asked = load_spec(None, given)
    assert decided(asked, num_train=8000, widths=WIDE) == asked
    assert told(asked, decided(asked, num_train=8000, widths=WIDE)) == {}


def test_decided_job_is_decided_no_further() -> None:
    once = decided(load_spec(), num_train=8000, widths=WIDE)
    assert decided(once, num_train=320, widths=NARROW) == once


@pytest.mark.parametrize(
    ("num_train", "budget", "epochs"),
    [(8000, 0.3, 0.26), (320, 0.6, 3.75), (100, 0.3, 20.0), (45_000, 0.5, 0.25), (1_200_000, 0.5, 0.25)],
)
def test_epochs_of_fine_tuning_follow_the_images_and_the_cut(num_train: int, budget: float, epochs: float) -> None:
    spec = decided(load_spec(None, {"budget.flops": budget}), num_train=num_train, widths=WIDE)
    assert spec.finalists.train.epochs == epochs


@pytest.mark.parametrize(("epochs", "lr"), [(1, 0.01), (2, 0.02), (79, 0.02), (100, 0.05)])
def test_learning_rate_follows_the_number_of_steps(epochs: float, lr: float) -> None:
    """63 steps an epoch."""
    spec = decided(load_spec(None, {"finalists.train.epochs": epochs}), num_train=8000, widths=WIDE)
    assert (spec.finalists.train.epochs, spec.finalists.train.lr) == (epochs, lr)


@pytest.mark.parametrize(("num_train", "images"), [(8000, 500), (320, 256), (45_000, 1024)])
def test_calibration_follows_the_number_of_images(num_train: int, images: int) -> None:
    assert decided(load_spec(), num_train=num_train, widths=WIDE).search.calibration_images == images


def test_widths_of_a_narrow_network_are_any() -> None:
    assert decided(load_spec(), num_train=8000, widths=NARROW).search.multiple_of == 1


def test_budget_of_another_cost_counts_as_the_cut() -> None:
    spec = decided(load_spec(None, {"budget.params": 0.3}), num_train=8000, widths=WIDE)
    assert spec.finalists.train.epochs == 0.26


def test_methods_taken_need_no_training_and_are_no_controls() -> None:
    for name in METHODS:
        method = ALL_METHODS[name]()
        assert method.regularize() is None and not method.has_path() and name not in BASELINES


def test_each_decision_is_told_once() -> None:
    asked = load_spec()
    decisions = told(asked, decided(asked, num_train=8000, widths=WIDE))
    assert decisions["methods"].startswith("reconstruction, taylor, activation, fpgm, l2, which need no training")
    assert decisions["fine-tuning"].startswith("0.26 epochs for each finalist")


def test_images_without_labels_leave_taylor_out_and_are_all_looked_at() -> None:
    asked = load_spec()
    found = decided(asked, num_train=8000, widths=WIDE, unlabelled=90)
    assert found.methods == tuple(name for name in METHODS if not ALL_METHODS[name].uses_labels) != METHODS
    assert found.search.calibration_images == 90
    assert "which need neither training nor labels" in told(asked, found)["methods"]
    assert decided(asked, num_train=8000, widths=WIDE, unlabelled=5000).search.calibration_images == 1024


def test_policy_of_a_recipe_is_left_out_for_floats_and_that_is_told() -> None:
    asked = load_spec(None, {"finalists.train.recipe": "transformer", "model.weights": "w.safetensors"})
    traits = Traits(has_layer_norm=True, has_depthwise=False, image_size=32, has_floats=True)
    found = decided(asked, num_train=8000, widths=WIDE, traits=traits)
    assert found.finalists.train.policy is None and found.finalists.train.mixup == 0.8
    assert (
        told(asked, found, traits)["policy"] == "none instead of the recipe's rand, which changes pixels from 0 to 255"
    )
    plain = Traits(has_layer_norm=True, has_depthwise=False, image_size=32)
    pixels = decided(asked, num_train=8000, widths=WIDE, traits=plain)
    assert pixels.finalists.train.policy == "rand" and "policy" not in told(asked, pixels, plain)


def test_resumed_job_left_open_is_the_job_that_was_decided() -> None:
    asked = load_spec(None, {"output": "run"})
    begun = decided(asked, num_train=8000, widths=WIDE)
    assert decided_as(asked, begun) == begun
    other = load_spec(None, {"output": "run", "methods": ["l2"]})
    assert decided_as(other, begun).methods == ("l2",)


def test_widths_for_onnx_runtime_are_multiples_of_eight_in_narrower_networks_too() -> None:
    spec = load_spec(None, {"latency.runtime": "onnxruntime"})
    assert decided(spec, num_train=8000, widths={"a": 16, "b": 64}).search.multiple_of == 8
    assert decided(spec, num_train=8000, widths={"a": 12, "b": 64}).search.multiple_of == 1
    assert decided(load_spec(), num_train=8000, widths={"a": 16, "b": 64}).search.multiple_of == 1


def test_step_that_follows_the_latency_stays_open_until_it_is_measured() -> None:
    asked = load_spec(None, {"search.multiple_of": "auto", "budget.latency": 0.5})
    found = decided(asked, num_train=8000, widths=WIDE)
    assert (found.search.multiple_of, found.search.step) == ("auto", 1)
    begun = found.model_copy(update={"search": found.search.model_copy(update={"multiple_of": 16})})
    assert decided_as(asked, begun).search.multiple_of == 16
    in_onnx = load_spec(None, {"latency.runtime": "onnxruntime", "budget.latency": 0.5})
    assert decided(in_onnx, num_train=8000, widths=WIDE).search.multiple_of == "auto"
    assert decided_as(in_onnx, begun).search.multiple_of == 16
    # Without a budget of latency nothing is measured.
    other = decided(load_spec(None, {"search.multiple_of": "auto"}), num_train=8000, widths=WIDE)
    assert other.search.multiple_of == 8
    with pytest.raises(UsageError, match=r"multiple_of.*a whole number of at least 1 or `auto`"):
        load_spec(None, {"search.multiple_of": "often"})
