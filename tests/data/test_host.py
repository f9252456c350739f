from __future__ import annotations

import numpy as np
import pytest
import torch

from raprune.data import Split
from raprune.data.batches import DeviceSplit
from raprune.data.host import HostSplit, ImageSplit
from raprune.data.ranks import ALONE, Ranks
from raprune.data.residence import DeviceMemory, device_memory, fits

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


def split(count: int = 23) -> Split:
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    images.flags.writeable = False
    return Split(images, np.arange(count))


def both(layout: torch.memory_format = torch.contiguous_format) -> tuple[DeviceSplit, HostSplit]:
    """The same images on the device and on the host."""
    return (
        DeviceSplit.place(split(), MEAN, STD, "cpu", layout=layout),
        HostSplit.hold(split(), MEAN, STD, "cpu", layout=layout),
    )


def splits() -> list[ImageSplit]:
    return list(both())


@pytest.mark.parametrize("augment", ["none", "shift", "shift-flip", "crop-flip"])
@pytest.mark.parametrize("ranks", [ALONE, Ranks(1, 2)])
def test_host_split_epoch_equals_that_of_the_device_bit_for_bit(augment: str, ranks: Ranks) -> None:
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    device, host = (
        list(one.shuffled(4, generator, augment, ranks)) for one, generator in zip(splits(), generators, strict=True)
    )
    assert len(device) == len(host) == 6
    for (x, y), (x_host, y_host) in zip(device, host, strict=True):
        assert torch.equal(x, x_host) and torch.equal(y, y_host)
    assert torch.equal(*(generator.get_state() for generator in generators)), "the next epoch is the same, too"


def test_host_split_batches_equal_those_of_the_device() -> None:
    device, host = both(torch.channels_last)
    host = host.normalised(STD, MEAN).normalised(MEAN, STD)
    for (x, y), (x_host, y_host) in zip(device.batches(5), host.batches(5), strict=True):
        assert torch.equal(x, x_host) and torch.equal(y, y_host)
        assert x_host.is_contiguous(memory_format=torch.channels_last)


def test_host_split_take_draws_the_images_that_the_device_draws() -> None:
    taken = [one.take(9, torch.Generator().manual_seed(1)) for one in splits()]
    assert isinstance(taken[1], DeviceSplit)
    assert torch.equal(taken[0].images, taken[1].images) and torch.equal(taken[0].labels, taken[1].labels)
    host = both()[1]
    assert host.take(99, torch.Generator()) is host


def test_host_split_epoch_left_early_gathers_no_more() -> None:
    _, host = both()
    for _ in host.shuffled(2, torch.Generator()):
        break
    assert len(list(host.shuffled(2, torch.Generator()))) == 11


def test_host_split_keeps_the_memory_of_its_images() -> None:
    source = split()
    assert HostSplit.hold(source, MEAN, STD, "cpu").images.data_ptr() == source.images.ctypes.data


@pytest.mark.parametrize(
    ("needed", "free", "share", "expected"),
    [
        (60, 100, 1.0, True),
        (61, 100, 1.0, False),
        # Four processes share the card: they share the copy of the host.
        (1, 100, 0.25, False),
        (13, 20, 1.0, False),
        (0, 0, 1.0, True),
    ],
)
def test_fits_split_needs_its_fraction_of_free_memory_on_a_card_of_its_own(
    needed: int, free: int, share: float, expected: bool
) -> None:
    assert fits(needed, DeviceMemory(free=free, total=100), share=share) is expected


def test_fits_split_on_the_cpu_always_stays_where_it_is() -> None:
    assert fits(10**15, device_memory(torch.device("cpu")))
