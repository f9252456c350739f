"""Recipes: their fields, which one is chosen, and what wins over it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from raprune.errors import UsageError
from raprune.spec.automatic import decided, decided_as, told
from raprune.spec.job import RecipeName, SearchSpec, TrainSpec
from raprune.spec.recipes import LONG_EPOCHS, Traits, chosen, documented, recipes
from raprune.spec.toml import load_spec

WIDTHS = {"a": 32, "b": 64}
CNN = Traits(has_layer_norm=False, has_depthwise=False, image_size=32)
VIT = Traits(has_layer_norm=True, has_depthwise=False, image_size=224)


def traits(*, norm: bool = False, depthwise: bool = False, size: int = 224) -> Traits:
    return Traits(has_layer_norm=norm, has_depthwise=depthwise, image_size=size)


def job(of: Traits | None = CNN, **fields: Any) -> SearchSpec:
    """The decided job with these fields of `finalists.train`."""
    asked = load_spec(None, {"output": "run"} | {f"finalists.train.{name}": value for name, value in fields.items()})
    return decided(asked, num_train=8000, widths=WIDTHS, traits=of)


def test_recipes_have_names_of_the_job_and_fields_of_a_training() -> None:
    assert tuple(recipes()) == get_args(RecipeName)
    for name, recipe in recipes().items():
        for is_dense in (False, True):
            fields = recipe.fields_for(128, is_dense=is_dense)
            assert TrainSpec.model_validate(fields), name
        assert recipe.about and recipe.source


def test_table_of_the_documentation_is_that_of_the_recipes() -> None:
    assert documented() in (Path(__file__).parents[2] / "docs" / "training.md").read_text()


@pytest.mark.parametrize(
    ("of", "epochs", "name"),
    [
        (traits(size=32), 2.0, "short"),
        (traits(), LONG_EPOCHS - 1, "short"),
        (traits(depthwise=True), 5.0, "short"),
        (traits(norm=True), 2.0, "short-transformer"),
        (traits(norm=True, depthwise=True), LONG_EPOCHS, "transformer"),
        (traits(norm=True, size=32), 300.0, "transformer"),
        (traits(depthwise=True), LONG_EPOCHS, "mobile"),
        (traits(depthwise=True, size=32), LONG_EPOCHS, "cifar"),
        (traits(size=64), 200.0, "cifar"),
        (traits(size=65), 200.0, "cnn"),
    ],
)
def test_recipe_follows_the_network_the_images_and_the_length(of: Traits, epochs: float, name: str) -> None:
    assert chosen(of, epochs) == name
    assert job(of, epochs=epochs).finalists.train.recipe == name


def test_short_training_of_a_convolutional_network_is_that_of_earlier_versions() -> None:
    for epochs in (0.25, 2.0, 40.0):
        with_recipe, without = job(CNN, epochs=epochs, features=0.0), job(None, epochs=epochs)
        assert with_recipe.finalists.train.decided().identity() == without.finalists.train.decided().identity()
        assert with_recipe.dense.decided().identity() == without.dense.decided().identity()
        assert without.finalists.train.recipe is None


def test_given_fields_win_over_the_recipe() -> None:
    train = job(VIT, recipe="transformer", epochs=300, mixup=0.0, weight_decay=0.1, lr=0.5).finalists.train.decided()
    assert (train.mixup, train.weight_decay, train.lr) == (0.0, 0.1, 0.5)
    assert (train.optimizer, train.cutmix, train.policy) == ("adamw", 1.0, "rand")


def test_named_recipe_wins_over_the_rule() -> None:
    assert job(CNN, recipe="cnn", epochs=2).finalists.train.policy == "trivial"


def test_learning_rate_of_a_recipe_grows_with_the_batch() -> None:
    rates = [job(VIT, recipe="transformer", batch_size=size).finalists.train.lr for size in (128, 512)]
    assert rates == [1.25e-4, 5e-4]


@pytest.mark.parametrize(("epochs", "lr"), [(1, 0.01), (20, 0.02), (99, 0.05)])
def test_learning_rate_without_one_in_the_recipe_follows_the_steps(epochs: float, lr: float) -> None:
    assert job(CNN, epochs=epochs).finalists.train.lr == lr


def test_dense_training_has_a_recipe_where_the_network_is_trained_first() -> None:
    fields = {"output": "run", "model.name": "digits-net", "data.name": "digits"}
    trained = decided(load_spec(None, fields), num_train=8000, widths=WIDTHS, traits=VIT)
    assert (trained.dense.recipe, trained.dense.decided().lr) == ("short-transformer", 1e-3)
    given = decided(load_spec(None, {"output": "run"}), num_train=8000, widths=WIDTHS, traits=VIT)
    assert given.dense.recipe is None


def test_decided_recipe_is_decided_no_further_and_recorded() -> None:
    once = job(VIT, epochs=3)
    again = SearchSpec.model_validate(once.model_dump(mode="json"))
    assert decided(again, num_train=10, widths=WIDTHS, traits=CNN) == again == once
    asked = load_spec(None, {"output": "run", "finalists.train.epochs": 3})
    assert decided_as(asked, once) == once


def test_run_from_before_recipes_has_the_training_that_it_had() -> None:
    recorded = load_spec(None, {"output": "run"}).model_dump(mode="json")
    train = TrainSpec(epochs=2.0, lr=0.05).identity()
    recorded["finalists"]["train"] = train | {"cuda_graph": True}
    spec = decided(SearchSpec.model_validate(recorded), num_train=8000, widths=WIDTHS)
    assert spec.finalists.train.recipe is None
    assert spec.finalists.train.decided().identity() == train


def test_chosen_recipe_is_told_with_its_reason() -> None:
    asked = load_spec(None, {"output": "run"})
    line = told(asked, job(VIT), VIT)["recipe"]
    assert line.startswith("short-transformer, for a network with layer norm or attention and a fine-tuning below 100")
    named = load_spec(None, {"output": "run", "finalists.train.recipe": "cnn"})
    assert "recipe" not in told(named, job(VIT, recipe="cnn"), VIT)


def test_unknown_recipe_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(UsageError) as caught:
        load_spec(None, {"finalists.train.recipe": "resnet"})
    assert "finalists.train.recipe (--recipe) 'resnet': must be `short`, `short-transformer`," in caught.value.message


def test_method_that_names_its_rate_trains_by_sgd() -> None:
    by_adamw = TrainSpec(optimizer="adamw", weight_decay=0.05, layer_decay=0.8, ema=0.9)
    assert by_adamw.by_sgd() == TrainSpec(ema=0.9)
    plain = TrainSpec(weight_decay=0.05)
    assert plain.by_sgd() is plain


@pytest.mark.parametrize(
    ("is_plain", "fields", "once"),
    [
        (True, {"epochs": 2}, True),
        (True, {"epochs": 1}, False),
        (True, {"epochs": 2, "mixup": 0.1}, False),
        (True, {"epochs": 2, "features": 0.1}, False),
        (True, {"epochs": 2, "teacher_once": False}, False),
        (False, {"epochs": 2}, False),
    ],
)
def test_teacher_answers_once_where_no_image_changes(is_plain: bool, fields: dict[str, Any], once: bool) -> None:
    assert job(replace(CNN, is_plain=is_plain), **fields).finalists.train.teacher_once is once


@pytest.mark.parametrize(
    ("is_plain", "fields", "features"),
    [
        (False, {"epochs": 2}, "auto"),
        (True, {"epochs": 1}, "auto"),
        # The teacher's logits are computed once; its maps would need a pass in each step.
        (True, {"epochs": 2}, 0.0),
        (False, {"distillation": 0.0}, 0.0),
        (False, {"features": 3.0}, 3.0),
        (False, {"features": 0.0}, 0.0),
    ],
)
def test_feature_maps_of_the_dense_network_are_on_by_default(
    is_plain: bool, fields: dict[str, Any], features: float | str
) -> None:
    assert job(replace(CNN, is_plain=is_plain), **fields).finalists.train.features == features
