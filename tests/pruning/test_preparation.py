from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from raprune.pruning.preparation import Prepared, prepare, with_fast_widths
from raprune.spec.automatic import decided_as
from raprune.spec.job import SearchSpec


def spec_of(flops: float = 0.5, **search: Any) -> SearchSpec:
    return SearchSpec.model_validate(
        {
            "model": {"name": "digits-net"},
            "data": {"name": "digits", "max_images": 200},
            "budget": {"flops": flops},
            "search": search,
        }
    )


@cache
def prepared() -> Prepared:
    """A network with a group of 16 channels: on CPUs, any widths."""
    return prepare(spec_of())


def test_widths_on_gpus_are_multiples_of_8_where_the_job_leaves_them_open() -> None:
    assert prepared().spec.search.multiple_of == 1
    fast = with_fast_widths(spec_of(), prepared().spec, prepared().cost)
    assert fast.search.multiple_of == 8
    assert fast.model_copy(update={"search": prepared().spec.search}) == prepared().spec
    # A resumed run reads the recorded job, so that widths stay where its trials run on CPUs.
    assert decided_as(spec_of(), fast).search.multiple_of == 8


@pytest.mark.parametrize("multiple", [1, 4])
def test_widths_on_gpus_are_those_that_the_job_names(multiple: int) -> None:
    asked = spec_of(multiple_of=multiple)
    assert with_fast_widths(asked, asked, prepared().cost) is asked


def test_widths_on_gpus_are_any_where_steps_of_8_miss_the_budget() -> None:
    tight = prepared().spec.model_copy(update={"budget": spec_of(0.02).budget})
    assert with_fast_widths(spec_of(0.02), tight, prepared().cost).search.multiple_of == 1
