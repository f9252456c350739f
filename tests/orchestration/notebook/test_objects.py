"""How networks and data sets travel, and what is drawn anew."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

from raprune.data import load_data
from raprune.data.batches import DeviceSplit
from raprune.data.given import HELD_BYTES, give_data
from raprune.data.items import DrawnSplit
from raprune.errors import DataError
from raprune.models.given import give_model
from raprune.spec.job import DataSpec
from tests.orchestration.notebook.objects import Stripes, StripesNet, arrays, flipped, trained_net


class Tied(nn.Module):
    """Two names for one parameter, and a tensor that is in no state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.table = torch.arange(3.0)


def test_network_travels_without_its_weights_and_keeps_its_ties() -> None:
    given = give_model(Tied())
    copied = pickle.loads(pickle.dumps(given))
    assert copied.weights is None and given.weights is not None
    built = copied.build()
    assert built.two.weight is built.one.weight and not built.one.weight.any()
    assert torch.equal(built.table, torch.arange(3.0)), "what the state dict does not hold travels with the structure"


def test_class_of_a_cell_travels_by_value_and_one_of_a_module_by_reference() -> None:
    cell: dict[str, Any] = {"__name__": "__main__", "nn": nn}
    exec("class Net(nn.Module):\n    def forward(self, x):\n        return x", cell)
    given = give_model(cell["Net"]())
    assert given.reference is None and "by value, with its code" in given.travels
    named = give_model(StripesNet())
    assert named.reference == "tests.orchestration.notebook.objects:StripesNet" and "by reference" in named.travels


def test_network_behind_wrappers_is_given_as_itself() -> None:
    net = trained_net()
    assert give_model(nn.DataParallel(net)).name == "object:StripesNet"
    compiled = nn.Sequential(net)
    compiled._orig_mod = net  # as `torch.compile` names it, which takes seconds to import
    assert set(give_model(compiled).weights or {}) == set(net.state_dict())


def loaded(train: object, **fields: Any) -> Any:
    given = give_data(train, **fields.pop("given", {}))
    return load_data(DataSpec(name=given.name, **fields).holding(given), seed=0)


def test_float_images_are_taken_as_they_are_and_stay_unchanged() -> None:
    images, labels = arrays(50, seed=0)
    floats = images.astype(np.float64) / 100 - 1
    data = loaded((floats, labels))
    split = DeviceSplit.place(data.train, data.mean, data.std, "cpu")
    before = data.train.images.copy()
    for _ in range(2):
        x = torch.cat([x for x, _ in split.batches(16)]).numpy()
        assert np.array_equal(x, before) and x.dtype == np.float32
    assert np.isin(before, floats.astype(np.float32)).all()


def test_deterministic_items_are_held_and_random_ones_are_drawn_anew_by_seed() -> None:
    assert loaded(Stripes(60, seed=0)).drawn is None
    data = loaded(Stripes(60, seed=0, transform=flipped))
    assert data.augment == "none" and len(data.drawn) == data.num_train == 48

    def epoch(seed: int) -> torch.Tensor:
        empty = DeviceSplit.place(data.train, data.mean, data.std, "cpu")
        split = DrawnSplit(cloudpickle.loads(cloudpickle.dumps(data.drawn)), empty)
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([x for x, _ in split.shuffled(10, generator)])

    before = torch.get_rng_state()
    assert torch.equal(epoch(1), epoch(1)) and not torch.equal(epoch(1), epoch(2))
    assert torch.equal(before, torch.get_rng_state()), "the random numbers of the training are left alone"


def test_training_set_that_does_not_fit_is_drawn_with_a_sample_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raprune.data.given.HELD_BYTES", 20 * 12 * 12 * 4)
    assert HELD_BYTES == 2**30
    whole = loaded(Stripes(60, seed=0), resident_images=10)
    assert len(whole.train) == 10 and whole.num_train == 48 and len(whole.validation) == 12
    assert not set(whole.drawn.rows[:3]) - set(range(60))


def test_items_are_refused_in_words() -> None:
    class Odd(Stripes):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return (image[:, : 12 - index % 2], label)

    with pytest.raises(DataError, match="images differ in shape: 1x11x12 and 1x12x12"):
        loaded(Odd(20, seed=0))
    with pytest.raises(DataError, match="a label is float, not a whole number"):
        loaded([(torch.zeros(1, 4, 4), 0.5)] * 4)
    with pytest.raises(DataError, match="the label in row 1 is 5; valid are 0 to 1"):
        loaded([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 4, 4), 5)] * 4, given={"num_classes": 2})


def test_images_of_a_network_with_more_classes_than_the_data_have_its_classes() -> None:
    data = loaded(Stripes(60, seed=0), given={"num_classes": 4})
    assert data.num_classes == 4 and data.label_names == ("horizontal", "vertical", "2", "3")
