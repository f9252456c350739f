from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from raprune.data import load_data
from raprune.data.batches import DeviceSplit
from raprune.errors import StoreError
from raprune.models.digits import DigitsNet
from raprune.spec.job import DataSpec, TrainSpec
from raprune.store.folder import Store
from raprune.training.checkpoint import StoreCheckpoints, pack, unpack
from raprune.training.epoch import Epoch
from raprune.training.loop import train
from tests.factories import SavedCheckpoints


def kill_after(number: int) -> Callable[[Epoch], None]:
    def on_epoch(epoch: Epoch) -> None:
        if epoch.number == number:
            raise InterruptedError

    return on_epoch


def digits(count: int = 150) -> DeviceSplit:
    data = load_data(DataSpec(name="digits", max_images=count), seed=0)
    return DeviceSplit.place(data.train, data.mean, data.std, "cpu", layout=torch.channels_last)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(DigitsNet(width=8), nn.Dropout(0.2))


SPEC = TrainSpec(epochs=2.5, batch_size=32)


def test_unpacked_checkpoint_has_the_packed_tensors_also_where_two_share_memory() -> None:
    weight = torch.randn(3, 4)
    tensors, progress = unpack(pack({"a": weight, "b": weight.t(), "c": weight}, {"step": 3, "history": [0.1]}))
    assert torch.equal(tensors["a"], weight) and torch.equal(tensors["b"], weight.t())
    assert progress == {"step": 3, "history": [0.1]}


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0not JSON", pack({}, {})[:-1]])
def test_unpacking_damaged_content_raises_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a checkpoint"):
        unpack(content)


class SlowStore(Store):
    """A store whose writes wait until a test lets them go on, or fail."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_write = threading.Event()
        self.fails = False

    def write_bytes(self, rel: str, content: bytes) -> None:
        assert self.may_write.wait(60.0)
        if self.fails:
            raise StoreError("no space left")
        super().write_bytes(rel, content)


def test_checkpoint_is_due_once_in_the_interval(tmp_path: Path) -> None:
    now = [0.0]
    checkpoints = StoreCheckpoints(Store(tmp_path), "c", every_s=60.0, clock=lambda: now[0])
    due = []
    for now[0] in (4.0, 59.0, 61.0):
        due.append(checkpoints.is_due())
    checkpoints.save(b"one")
    for now[0] in (119.0, 121.0):
        due.append(checkpoints.is_due())
    assert due == [False, False, True, False, True]


def test_checkpoint_that_is_written_slowly_does_not_hold_the_training_up(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)
    checkpoints = StoreCheckpoints(store, "c")
    checkpoints.save(b"one")
    assert not store.exists("c"), "the training continues meanwhile"
    store.may_write.set()
    checkpoints.save(b"two")
    checkpoints.wait()
    assert store.read_bytes("c") == b"two"


def test_checkpoint_that_is_being_written_is_removed_after_it(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)
    checkpoints = StoreCheckpoints(store, "c")
    checkpoints.save(b"one")
    threading.Timer(0.05, store.may_write.set).start()
    checkpoints.remove()
    assert not store.exists("c")


def test_checkpoint_that_cannot_be_written_is_an_error_of_the_next_one(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)
    store.fails = True
    store.may_write.set()
    checkpoints = StoreCheckpoints(store, "c")
    checkpoints.save(b"one")
    with pytest.raises(StoreError, match="no space left"):
        checkpoints.save(b"two")
    checkpoints.wait()


def test_training_stores_a_checkpoint_after_its_last_epoch_though_none_is_due(tmp_path: Path) -> None:
    checkpoints = StoreCheckpoints(Store(tmp_path), "c", every_s=3600.0)
    train(net(), digits(), SPEC, augment="none", seed=0, checkpoints=checkpoints)
    content = checkpoints.load()
    assert content is not None
    assert len(unpack(content)[1]["history"]) == 3


def test_store_keeps_the_last_checkpoint_until_it_is_removed(tmp_path: Path) -> None:
    checkpoints = StoreCheckpoints(Store(tmp_path), "checkpoints/finetune-00003-s1.safetensors")
    assert checkpoints.load() is None
    checkpoints.remove()
    checkpoints.save(b"one")
    checkpoints.save(b"two")
    assert checkpoints.load() == b"two"
    checkpoints.remove()
    assert checkpoints.load() is None
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9},
        {"accumulate": 2},
        {"distillation": 0.5},
        {"momentum": 0.0},
        {"precision": "float16"},
        {"optimizer": "adamw", "lr": 0.01, "ema": 0.9},
        {"optimizer": "adamw", "lr": 0.01, "layer_decay": 0.8, "schedule": "cosine", "final_lr": 0.1, "clip": 1.0},
        {"policy": "rand", "erase": 0.5, "mixup": 0.2, "cutmix": 1.0},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_training_resumed_after_any_epoch_gives_the_same_weights(changes: dict[str, float | str], after: int) -> None:
    spec, split = SPEC.model_copy(update=changes), digits()

    def trained(model: nn.Module, memory: SavedCheckpoints, stop: Callable[[Epoch], None] | None = None) -> list[Epoch]:
        return train(model, split, spec, augment="shift", seed=5, teacher=net(9), checkpoints=memory, on_epoch=stop)

    straight, killed, resumed = net(), net(), net(1)
    whole = trained(straight, SavedCheckpoints())
    memory, epochs = SavedCheckpoints(), list[int]()
    with pytest.raises(InterruptedError):
        trained(killed, memory, kill_after(after))
    assert len(memory.saved) == after

    def note(epoch: Epoch) -> None:
        epochs.append(epoch.number)

    history = trained(resumed, memory, note)
    assert epochs == list(range(after + 1, 4))
    assert [(e.number, e.loss, e.accuracy, e.lr) for e in history] == [
        (e.number, e.loss, e.accuracy, e.lr) for e in whole
    ]
    expected = straight.state_dict()
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_training_whose_teacher_answered_once_resumes_with_the_same_weights() -> None:
    spec, memory, straight, resumed = SPEC.model_copy(update={"teacher_once": True}), SavedCheckpoints(), net(), net(1)
    train(straight, digits(), spec, augment="none", seed=5, teacher=net(9))
    with pytest.raises(InterruptedError):
        train(net(), digits(), spec, augment="none", seed=5, teacher=net(9), checkpoints=memory, on_epoch=kill_after(1))
    train(resumed, digits(), spec, augment="none", seed=5, teacher=net(9), checkpoints=memory)
    assert all(
        torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_resume_with_frozen_parameters_in_another_memory_format_gives_the_same_weights() -> None:
    def build(seed: int) -> nn.Module:
        model = net(seed)
        next(model.parameters()).requires_grad_(False)
        return model

    memory, straight = SavedCheckpoints(), build(0)
    spec = SPEC.model_copy(update={"channels_last": False})
    train(straight, digits(), spec, augment="none", seed=0)
    with pytest.raises(InterruptedError):
        train(build(0), digits(), spec, augment="none", seed=0, checkpoints=memory, on_epoch=kill_after(1))
    resumed = build(4)
    train(resumed, digits(), spec, augment="none", seed=0, checkpoints=memory)
    assert all(
        torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_resume_checkpoint_of_another_training_is_ignored_with_a_warning(seed: int) -> None:
    memory, model, fresh = SavedCheckpoints(), net(), net()
    train(net(), digits(), SPEC, augment="none", seed=0, checkpoints=memory)
    other = SPEC.model_copy(update={"lr": 0.05}) if seed == 0 else SPEC
    with pytest.warns(
        UserWarning, match="starts from the beginning: its checkpoint belongs to another training"
    ) as caught:
        train(model, digits(), other, augment="none", seed=seed, checkpoints=memory)
    assert ("'lr': 0.05" if seed == 0 else "'seed'") in str(caught[0].message)
    train(fresh, digits(), other, augment="none", seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_resume_damaged_checkpoint_is_ignored_with_a_warning() -> None:
    memory = SavedCheckpoints([b"torn"])
    with pytest.warns(UserWarning, match="starts from the beginning: its checkpoint is not a checkpoint"):
        history = train(net(), digits(), SPEC, augment="none", seed=0, checkpoints=memory)
    assert len(history) == 3
