"""Two processes over gloo against one; all scenarios run in the same pair, because starting Python takes long."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import set_forkserver_preload
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional

from raprune.data import load_data
from raprune.data.batches import DeviceSplit
from raprune.data.ranks import ALONE, Ranks
from raprune.errors import ModelError
from raprune.models.cifar_resnet import CifarResNet
from raprune.models.digits import DigitsNet
from raprune.spec.job import DataSpec, TrainSpec
from raprune.training.distributed import synchronised, synchronises
from raprune.training.epoch import Epoch
from raprune.training.loop import train

IMAGES = 63
"""Two processes get 31 and 32 of them."""


class Plain(nn.Module):
    """A network from `(B, 1, 8, 8)` to ten logits, without batch norm, and with a parameter that nothing reads."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(16 * 16, 10)
        self.unread = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        logits: Tensor = self.linear(self.dropout(x.flatten(1)))
        return logits


def digits(dtype: torch.dtype = torch.float32) -> DeviceSplit:
    data = load_data(DataSpec(name="digits"), seed=0)
    split = DeviceSplit.place(data.train, data.mean, data.std, "cpu", dtype=dtype, layout=torch.channels_last)
    return DeviceSplit(split.images[:IMAGES], split.labels[:IMAGES], split.mean, split.scale, split.layout)


def digits_for(model: nn.Module) -> DeviceSplit:
    return digits(next(model.parameters()).dtype)


def plain() -> nn.Module:
    return Plain()


def resnet() -> nn.Module:
    # In float32 the rounding errors of a deep network on small images grow within a few steps.
    return CifarResNet(20, in_channels=1).double()


def digits_net() -> nn.Module:
    return DigitsNet(width=8).double()


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build()


@dataclass
class Memory:
    """Checkpoints in memory."""

    content: bytes | None = None
    saved: list[bytes] = field(default_factory=list)

    def load(self) -> bytes | None:
        return self.content

    def is_due(self) -> bool:
        return True

    def save(self, content: bytes) -> None:
        self.content = content
        self.saved.append(content)


# A batch is the whole split, so that an epoch's loss is a step's loss.
TWENTY = TrainSpec(epochs=20, batch_size=IMAGES, lr=0.02, sync_batch_norm=True)
CASES: dict[str, tuple[Callable[[], nn.Module], TrainSpec]] = {
    "without batch norm": (plain, TWENTY),
    "resnet-20, batch norm synchronised": (resnet, TWENTY),
    "digits-net, batch norm synchronised": (digits_net, TWENTY),
    "in parts": (plain, TWENTY.model_copy(update={"epochs": 5, "accumulate": 3})),
    "average of the weights": (resnet, TWENTY.model_copy(update={"epochs": 6, "ema": 0.9})),
    "several batches, one of three images": (plain, TWENTY.model_copy(update={"epochs": 2, "batch_size": 20})),
}


TWO = TrainSpec(epochs=2, batch_size=21, lr=0.02, sync_batch_norm=True)


def run_case(name: str, ranks: Ranks) -> dict[str, Tensor]:
    build, spec = CASES[name]
    model = seeded(build)
    history = train(model, digits_for(model), spec, augment="shift-flip", seed=0, ranks=ranks)
    losses = {"losses": torch.tensor([[e.loss, e.accuracy] for e in history], dtype=torch.float64)}
    return losses | {f"model/{key}": value for key, value in model.state_dict().items()}


def first_step(ranks: Ranks, model: nn.Module) -> dict[str, Tensor]:
    """Return a process's images, dropout and gradients of one step."""
    found: dict[str, Tensor] = {}
    model.register_forward_pre_hook(lambda _, inputs: found.update(images=inputs[0].clone()))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(
                lambda _, inputs, output: found.update(dropped=(output == 0) & (inputs[0] > 0))
            )

    def look(trained: nn.Module) -> None:
        for name, parameter in trained.named_parameters():
            if parameter.grad is not None:
                found[f"gradient/{name}"] = parameter.grad.clone()

    spec = TrainSpec(epochs=1, batch_size=IMAGES)
    train(model, digits(), spec, augment="shift-flip", seed=0, ranks=ranks, regularize=look)
    return found


def _stop(epoch: Epoch) -> None:
    raise InterruptedError


def _process(rank: int, folder: str) -> None:
    """Run every scenario in one of two processes, and write the results."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=120)
    )
    ranks = Ranks(rank, 2)
    out: dict[str, object] = {name: run_case(name, ranks) for name in CASES}
    out["first step"] = first_step(ranks, seeded(plain))
    out["dropout"] = first_step(ranks, seeded(lambda: Plain(0.5)))
    # Other weights on rank 1, then another network.
    for name, model in (("weights", seeded(plain, rank)), ("structure", Plain() if rank else DigitsNet())):
        try:
            train(model, digits(), TrainSpec(epochs=1), augment="none", seed=0, ranks=ranks)
        except ModelError as error:
            out[name] = str(error)
    memory, split = Memory(), digits(torch.float64)
    try:
        train(seeded(resnet), split, TWO, augment="shift", seed=0, ranks=ranks, checkpoints=memory, on_epoch=_stop)
    except InterruptedError:
        out["stopped"] = True
    out["saves"] = len(memory.saved)
    out["checkpoint"] = torch.frombuffer(bytearray(memory.content or b"\0"), dtype=torch.uint8)
    # Each process has its own batch norm: the running statistics are averaged, also those of the moving average.
    spec = TrainSpec(epochs=2, batch_size=20, ema=0.5)
    model = seeded(digits_net)
    train(model, digits_for(model), spec, augment="none", seed=0, ranks=ranks)
    out["own batch norm"] = dict(model.state_dict())
    torch.save(out, f"{folder}/rank-{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("gloo")
    # Both are forked from one process that has imported what they need.
    set_forkserver_preload([__name__])
    start_processes(_process, (str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(Path(folder) / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(name: str, both: list[dict[str, dict[str, Tensor]]]) -> None:
    alone = run_case(name, ALONE)
    first, second = both[0][name], both[1][name]
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.allclose(first["losses"][:, 0], alone["losses"][:, 0], atol=1e-4, rtol=0)
    assert torch.allclose(first["losses"][:, 1], alone["losses"][:, 1], atol=1.5 / IMAGES, rtol=0)
    assert alone["losses"][-1, 0] < alone["losses"][0, 0]
    for key, value in alone.items():
        if key.startswith("model/"):
            assert torch.allclose(first[key].double(), value.double(), atol=2e-3, rtol=1e-3), key


def test_each_sees_its_part_of_the_images_and_both_the_batchs_gradient(
    both: list[dict[str, dict[str, Tensor]]],
) -> None:
    alone = first_step(ALONE, seeded(plain))
    first, second = (process["first step"] for process in both)
    assert [len(first["images"]), len(second["images"])] == [31, 32]
    assert torch.equal(torch.cat([first["images"], second["images"]]), alone["images"])
    gradients = [key for key in alone if key.startswith("gradient/")]
    assert "gradient/conv1.weight" in gradients and "gradient/unread" not in gradients
    for key in gradients:
        assert torch.equal(first[key], second[key])
        assert torch.allclose(first[key], alone[key], atol=1e-6)


def test_each_drops_other_units(both: list[dict[str, dict[str, Tensor]]]) -> None:
    first, second = (process["dropout"]["dropped"][:31] for process in both)
    assert 0.3 < (first == second).float().mean() < 0.95


def test_different_networks_are_refused_by_all(both: list[dict[str, str]]) -> None:
    for process in both:
        assert "hold different networks" in process["weights"] and "rank 0" in process["weights"]
        assert "hold different networks" in process["structure"]
    assert both[0]["weights"] == both[1]["weights"]
    hashes = both[0]["weights"].split("structure ")[1].split()
    assert hashes[0] in both[0]["weights"].split("rank 1")[1], "the structure is the same"


def test_rank_0_alone_saves_and_any_number_of_processes_resumes(both: list[dict[str, Tensor]]) -> None:
    assert [process["saves"] for process in both] == [1, 0]
    assert all("stopped" in process for process in both)
    straight, taken_over = seeded(resnet), seeded(resnet, seed=7)
    whole = train(straight, digits(torch.float64), TWO, augment="shift", seed=0)
    # One process resumes the training of two processes after an epoch.
    memory = Memory(both[0]["checkpoint"].numpy().tobytes())
    history = train(taken_over, digits(torch.float64), TWO, augment="shift", seed=0, checkpoints=memory)
    assert [epoch.loss for epoch in history] == pytest.approx([epoch.loss for epoch in whole], abs=1e-6)
    for key, value in straight.state_dict().items():
        assert torch.allclose(taken_over.state_dict()[key].double(), value.double(), atol=1e-6, rtol=1e-5), key


def test_running_statistics_are_the_mean_over_the_processes(both: list[dict[str, dict[str, Tensor]]]) -> None:
    first, second = (process["own batch norm"] for process in both)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any("running_mean" in key and bool(value.abs().sum() > 0) for key, value in first.items())


@pytest.mark.parametrize(("size", "count"), [(1, 1), (1, 7), (2, 3), (2, 4), (2, 63), (3, 10), (4, 129)])
def test_parts_cover_a_batch_and_mean_factors_give_the_mean(size: int, count: int) -> None:
    values = torch.arange(count, dtype=torch.float64)
    means = []
    seen: list[float] = []
    for rank in range(size):
        ranks = Ranks(rank, size)
        part = values[ranks.part(count)]
        assert len(part) >= min(2, count)
        seen += part.tolist()
        means.append(part.mean() * ranks.mean_factor(len(part), count))
    assert set(seen) == set(values.tolist())
    assert math.isclose(sum(float(mean) for mean in means) / size, float(values.mean()))


def test_layers_are_what_they_were_after_synchronising() -> None:
    model = seeded(resnet)
    kinds = [type(module) for module in model.modules()]
    with synchronised(model, Ranks(0, 2)):
        assert nn.BatchNorm2d not in {type(module) for module in model.modules()}
    assert [type(module) for module in model.modules()] == kinds
    assert not any("process_group" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("asked", "batch_size", "workers", "expected"),
    [
        (None, 128, 1, False),
        (None, 8, 1, False),
        (None, 128, 4, False),
        (None, 127, 4, True),
        (None, 128, 5, True),
        (False, 128, 5, False),
        (True, 128, 2, True),
    ],
)
def test_batch_norm_of_fewer_than_32_images_a_worker_is_synchronised(
    asked: bool | None, batch_size: int, workers: int, expected: bool
) -> None:
    spec = TrainSpec(batch_size=batch_size, sync_batch_norm=asked)
    assert synchronises(spec, Ranks(0, workers)) is expected
