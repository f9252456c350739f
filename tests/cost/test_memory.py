from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from raprune.cost.memory import LiveTensors, evaluation_bytes, peak_bytes

KB = 1024


def test_live_tensors_peak_counts_what_lives_at_the_same_time() -> None:
    given = torch.zeros(KB)
    with LiveTensors() as live:
        first = torch.ones(KB)
        second = first + given
        assert live.used == 2 * 4 * KB, "what is given is not counted"
        del first
        gc.collect()
        assert live.used == 4 * KB
        third = second.view(32, 32).t()
        assert live.used == 4 * KB, "a view shares the memory"
        del second
        assert live.used == 4 * KB, "and keeps it"
        del third
    assert (live.used, live.peak) == (0, 2 * 4 * KB)


def test_live_tensors_that_only_the_backward_pass_needs_are_counted() -> None:
    x = torch.ones(KB, requires_grad=True)
    with LiveTensors() as live:
        y = x.exp().exp()
        gc.collect()
        assert live.used == 2 * 4 * KB, "the inner result is saved"
        y.sum().backward()
        assert live.peak >= 3 * 4 * KB


def test_live_tensors_are_gone_after_use_while_the_weights_live() -> None:
    weight = torch.ones(KB)
    live = LiveTensors()
    with live:
        weight.neg()
    gone = weakref.ref(live)
    del live
    gc.collect()
    assert gone() is None and weight.numel() == KB


def test_peak_bytes_continues_in_proportion_once_most_of_it_grows_with_the_images() -> None:
    sizes = []

    def work(x: Tensor) -> None:
        sizes.append(len(x))
        kept = torch.zeros(KB)
        assert kept.dtype == (x + 1).dtype

    # The batch and its sum, 2 KB an image, and `kept`, 4 KB.
    assert peak_bytes(work, torch.zeros(1, 1, 16, 16), 100) == 4 * KB + 100 * 2 * KB
    assert sizes == [2, 4]


def test_peak_bytes_of_few_images_is_counted_with_all_of_them() -> None:
    sizes = []
    peak_bytes(lambda x: sizes.append(len(x)), torch.zeros(1, 1, 2, 2), 1)
    assert sizes == [1]


def test_evaluation_counts_one_layer_after_another_and_leaves_the_network() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, bias=False)).train()
    # The image, and input and output of the batch norm.
    assert evaluation_bytes(model, torch.zeros(1, 1, 8, 8), 50) == pytest.approx(50 * 4 * (64 + 2 * 8 * 36), rel=0.01)
    assert model.training
