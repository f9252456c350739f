"""Ids of elements: joined and reshaped ones equal those of all elements, and stay in few elements."""

from __future__ import annotations

import pytest
import torch

from raprune.channels.ids import compact, joined, reshaped

MAPS = torch.arange(1, 7).view(1, 6, 1, 1).expand(2, 6, 4, 5)
"""Ids of six channels of maps, expanded over images, height and width."""


@pytest.mark.parametrize(
    "shape", [(2, 6, 20), (2, 2, 3, 20), (12, 4, 5), (2, 120), (240,), (2, 3, 2, 2, 2, 5), (2, 6, 4, 5, 1)]
)
def test_reshaped_ids_equal_those_of_a_reshape_of_all_elements(shape: tuple[int, ...]) -> None:
    assert torch.equal(reshaped(MAPS, shape), MAPS.reshape(shape))


def test_reshaped_ids_of_expanded_axes_stay_in_few_elements() -> None:
    assert compact(reshaped(MAPS.transpose(1, 2), (2, 4, 2, 3, 5))).shape == (1, 1, 2, 3, 1)
    merged = MAPS.reshape(2, 6, 20)[:, :2].unsqueeze(2).expand(2, 2, 3, 20)
    assert compact(merged.reshape(2, 6, 20)).numel() == 2 * 6 * 20, "PyTorch copies every element"
    assert compact(reshaped(merged, (2, 6, 20))).shape == (1, 6, 1)


def test_reshaped_ids_without_elements_have_the_shape() -> None:
    assert reshaped(torch.zeros(0, 4, dtype=torch.int64), (0, 2, 2)).shape == (0, 2, 2)


def test_joined_ids_equal_those_of_all_elements_and_stay_in_few() -> None:
    parts = [MAPS, MAPS[:, :2]]
    assert torch.equal(joined(parts, 1), torch.cat(parts, 1))
    assert compact(joined(parts, 1)).shape == (1, 8, 1, 1)
    whole = [MAPS, MAPS.contiguous()]
    assert torch.equal(joined(whole, 1), torch.cat(whole, 1))
