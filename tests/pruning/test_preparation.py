from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from raprune.cost.latency import LatencyTable, PredictionError
from raprune.pruning.preparation import Prepared, prepare, with_fast_widths, with_table
from raprune.spec.automatic import decided_as
from raprune.spec.budget import Budget
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


def test_step_that_follows_the_table_is_that_of_the_table_or_a_part_within_reach() -> None:
    cost = prepared().cost
    table = LatencyTable(
        grids=np.zeros((1, 2, 1)), times_ms=np.zeros((1, 1, 1)), tables=np.zeros(0, dtype=np.int64),
        factors=np.zeros((0, 2), dtype=np.int64), kinds=np.zeros(0, dtype=np.int64), modules=(), scales=(1.0, 1.0),
        offset_ms=1.0, dense_ms=10.0, accuracy=PredictionError(0.0, 0.0, 1), device="hand", batch_size=1,
        precision="float32", step=8,
    )  # fmt: skip
    asked = spec_of(multiple_of="auto").model_copy(update={"budget": Budget(latency=0.5)})
    found, known = with_table(asked, prepared(), table)
    assert found.search.multiple_of == 8 and known.cost.table is table
    lowest = int(cost.flops(cost.smallest(multiple_of=8))) / cost.dense_flops
    tight = asked.model_copy(update={"budget": Budget(latency=0.5, flops=0.6 * lowest)})
    assert with_table(tight, prepared(), table)[0].search.multiple_of == 4
    named = asked.model_copy(update={"search": asked.search.model_copy(update={"multiple_of": 2})})
    assert with_table(named, prepared(), table)[0].search.multiple_of == 2


@pytest.mark.parametrize("multiple", [1, 4])
def test_widths_on_gpus_are_those_that_the_job_names(multiple: int) -> None:
    asked = spec_of(multiple_of=multiple)
    assert with_fast_widths(asked, asked, prepared().cost) is asked


def test_widths_on_gpus_are_any_where_steps_of_8_miss_the_budget() -> None:
    tight = prepared().spec.model_copy(update={"budget": spec_of(0.02).budget})
    assert with_fast_widths(spec_of(0.02), tight, prepared().cost).search.multiple_of == 1
