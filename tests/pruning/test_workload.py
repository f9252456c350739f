from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from raprune.channels.trace import trace
from raprune.data import load_data
from raprune.data.batches import DeviceSplit
from raprune.data.host import HostSplit
from raprune.data.residence import DeviceMemory
from raprune.errors import ModelError
from raprune.models import build_model, load_weights
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import build_workload, train_dense
from raprune.records import Proposal
from raprune.spec.budget import Budget
from raprune.spec.job import DataSpec, DenseTrainSpec, ModelSpec, SearchSpec
from raprune.training.evaluate import evaluate
from tests.pretend_cuda import pretend_cuda

SLACK = 4096
"""Bytes of labels, and of the figures that normalise images."""

SHARED = Path(os.environ.get("RAPRUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def small(**fields: object) -> SearchSpec:
    return SearchSpec.model_validate(
        {
            "model": {"name": "digits-net", "arguments": {"width": 8}},
            "data": {"name": "digits", "max_images": 300},
            "dense": {"epochs": 4, "batch_size": 32},
        }
        | fields
    )


def test_an_untrained_workload_depends_on_the_seed_alone() -> None:
    spec = small()
    data = load_data(spec.data, seed=0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_workload(spec, data=data, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = build_workload(spec, data=data, device="cpu")
    other = build_workload(small(seed=1), data=data, device="cpu")
    assert first.weights_hash == again.weights_hash != other.weights_hash
    assert not first.model.training


def test_splits_and_the_example_input() -> None:
    spec = small()
    data = load_data(spec.data, seed=0)
    workload = build_workload(spec, data=data, device="cpu")
    assert workload.test is not None
    assert (len(workload.training), len(workload.validation), len(workload.test)) == (240, 60, 300)
    x, _ = next(workload.training.batches(1))
    assert torch.equal(workload.example_input(), x)
    assert workload.example_input().shape == (1, 1, 8, 8)
    assert workload.training.layout == torch.channels_last
    assert workload.augment == "shift"


def test_pruner_and_candidate_place_calibration_validation_and_weights_alone() -> None:
    spec = small(search={"calibration_images": 32})
    data = load_data(spec.data, seed=0)
    on_cpu = build_workload(spec, data=data, device="cpu")
    graph = trace(on_cpu.model, on_cpu.example_input())
    weights = sum(tensor.nbytes for tensor in on_cpu.model.state_dict().values())
    calibration = 32 * data.train.images[0].nbytes
    with pretend_cuda() as card:
        pruner = Pruner(build_workload(spec, data=data, device="cuda:0"), graph, spec)
        assert card.used <= calibration + weights + SLACK
        result = pruner.prune(Proposal(number=0, method="l2", allocation="uniform", target=Budget(flops=0.5)))
        candidate = sum(tensor.nbytes for tensor in result.model.state_dict().values())
        assert card.used <= calibration + data.validation.images.nbytes + weights + candidate + SLACK
    assert data.train.images.nbytes > 3 * SLACK, "the training split would be seen"


def test_sample_draws_the_images_that_the_placed_split_would_draw() -> None:
    spec = small()
    workload = build_workload(spec, data=load_data(spec.data, seed=0), device="cpu")
    drawn = workload.sample(50, torch.Generator().manual_seed(7))
    whole = workload.place(workload.data.train)
    expected = whole.take(50, torch.Generator().manual_seed(7))
    assert torch.equal(drawn.images, expected.images) and torch.equal(drawn.labels, expected.labels)
    assert torch.equal(workload.sample(9999, torch.Generator()).images, whole.images)


def test_training_split_that_does_not_fit_stays_off_the_card_and_nothing_waits_for_its_batches() -> None:
    spec = small(data={"name": "digits", "max_images": 1200})
    data = load_data(spec.data, seed=0)
    with pretend_cuda(memory=data.train.images.nbytes) as card:
        split = build_workload(spec, data=data, device="cuda:0").training
        assert isinstance(split, HostSplit)
        card.peak = used = card.used
        with card.counted() as counts:
            count = sum(len(y) for _, y in split.shuffled(32, torch.Generator()))
        assert count == len(data.train)
        # Images and labels of each batch, and what was drawn for the epoch.
        assert (counts.copies, counts.num_waits) == (2 * 30 + 1, 0)
        assert card.peak - used < data.train.images.nbytes / 2


def test_training_split_that_does_not_fit_gives_the_same_weights_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small(dense={"epochs": 1, "batch_size": 32})
    data = load_data(spec.data, seed=0)
    resident, other = (build_workload(spec, data=data, device="cpu") for _ in range(2))
    train_dense(resident, spec)
    size = data.train.images.nbytes
    tight = DeviceMemory(free=size, total=10 * size)
    monkeypatch.setattr("raprune.pruning.workload.device_memory", lambda device: tight)
    assert isinstance(other.training, HostSplit)
    assert isinstance(other.validation, DeviceSplit)
    train_dense(other, spec)
    assert other.weights_hash == resident.weights_hash


def test_processes_that_share_a_card_share_the_images_of_the_host() -> None:
    spec = small()
    data = load_data(spec.data, seed=0)
    with pretend_cuda() as card:
        alone = build_workload(spec, data=data, device="cuda:0")
        first, second = (build_workload(spec, data=data, device="cuda:0", card_share=0.5) for _ in range(2))
        used = card.used
        held = [split for sharer in (first, second) for split in (sharer.training, sharer.validation)]
        assert card.used - used < SLACK
        assert all(isinstance(split, HostSplit) for split in held)
        assert {split.images.untyped_storage().data_ptr() for split in held if isinstance(split, HostSplit)} == {
            split.images.ctypes.data for split in (data.train, data.validation)
        }
        expected = evaluate(alone.model, alone.validation, task=alone.task, batch_size=64)
        assert evaluate(first.model, first.validation, task=first.task, batch_size=64) == expected
        assert card.used - used > data.validation.images.nbytes


def test_weights_travel_as_arrays_that_nobody_writes_to() -> None:
    spec = small()
    data = load_data(spec.data, seed=0)
    workload = build_workload(spec, data=data, device="cpu")
    train_dense(workload, spec)
    arrays = workload.weights()
    for array in arrays.values():
        array.flags.writeable = False
    copy = build_workload(spec, data=data, device="cpu", weights=arrays)
    assert copy.weights_hash == workload.weights_hash
    train_dense(copy, spec)
    assert workload.weights_hash != copy.weights_hash
    assert build_workload(spec, data=data, device="cpu", weights=arrays).weights_hash == workload.weights_hash


def test_weights_come_from_the_file_of_the_spec(tmp_path: Path) -> None:
    spec = small()
    data = load_data(spec.data, seed=0)
    workload = build_workload(spec, data=data, device="cpu")
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(workload.model.state_dict(), path)
    other = small(seed=9, model={"name": "digits-net", "arguments": {"width": 8}, "weights": str(path)})
    assert build_workload(other, data=data, device="cpu").weights_hash == workload.weights_hash


def test_a_network_that_does_not_run_on_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_bad_nets.py").write_text(
        "from torch import nn\n"
        "def small():\n    return nn.Sequential(nn.Conv2d(1, 4, 9), nn.Flatten(), nn.Linear(4, 10))\n"
        "def classes():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = load_data(DataSpec(name="digits", max_images=300), seed=0)
    for function, words in (("small", "does not run on images of 1x8x8"), ("classes", r"gives \(1, 7\) for one image")):
        with pytest.raises(ModelError, match=words):
            build_workload(SearchSpec(model=ModelSpec(name=f"my_bad_nets:{function}")), data=data, device="cpu")


def test_bundled_network_comes_trained_and_others_do_not() -> None:
    """99.20 % of 2,500 test images, as `jobs/make_mnist_sample.py` said when it trained the network."""
    spec = SearchSpec()
    workload = build_workload(spec, data=load_data(spec.data, seed=0), device="cpu")
    assert workload.test is not None
    assert evaluate(workload.model, workload.test).accuracy == pytest.approx(0.9920, abs=0.0007)
    assert SearchSpec(data=DataSpec(name="digits")).weights is None
    assert SearchSpec(model=ModelSpec(name="lenet5")).weights is None
    assert SearchSpec(model=ModelSpec(arguments={"num_classes": 10})).weights is None
    assert SearchSpec(model=ModelSpec(weights="mine.safetensors")).weights == "mine.safetensors"


def test_the_digits_net_reaches_what_the_readme_promises() -> None:
    spec = SearchSpec(model=ModelSpec(name="digits-net"), data=DataSpec(name="digits"), dense=DenseTrainSpec(epochs=20))
    workload = build_workload(spec, data=load_data(spec.data, seed=0), device="cpu")
    train_dense(workload, spec)
    assert workload.test is not None
    assert evaluate(workload.model, workload.test).accuracy >= 0.98


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the CIFAR-10 files: set RAPRUNE_DATA ({SHARED} is not there)")
def test_loader_normalisation_and_network_reproduce_a_published_checkpoint() -> None:
    test = SHARED / "cifar10-test.parquet"
    data = load_data(DataSpec(name="parquet", train=str(test), test=str(test), max_images=2000), seed=0)
    assert data.test is not None
    split = DeviceSplit.place(data.test, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "cpu")
    model = build_model(ModelSpec(name="cifar-resnet20"), num_classes=10, image_shape=data.image_shape)
    load_weights(model, str(SHARED / "resnet20-cifar10.safetensors"))
    # 81.03 % on all 10,000 images.
    assert evaluate(model, split).accuracy == pytest.approx(0.8103, abs=0.02)
    assert np.bincount(data.test.labels).tolist() == [200] * 10
