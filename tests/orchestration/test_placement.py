from __future__ import annotations

import pytest

from raprune.errors import UsageError
from raprune.orchestration.placement import Placement, place
from raprune.spec import ResourceSpec

LAPTOP = {"CPU": 2.0}
BOX = {"CPU": 32.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "resources", "workers", "cpus", "gpus"),
    [
        ([LAPTOP], {}, 2, 1.0, 0.0),
        ([LAPTOP], {"workers": 1}, 1, 1.0, 0.0),
        ([LAPTOP], {"cpus_per_trial": 2}, 1, 2.0, 0.0),
        ([LAPTOP], {"cpus_per_trial": 0.5}, 4, 0.5, 0.0),
        ([LAPTOP, LAPTOP, {"CPU": 0.0}], {}, 4, 1.0, 0.0),
        ([BOX], {}, 4, 1.0, 1.0),
        ([BOX], {"gpus_per_trial": 0.5}, 8, 1.0, 0.5),
        ([BOX], {"gpus_per_trial": 0.4}, 8, 1.0, 0.4),
        ([BOX], {"gpus_per_trial": 0, "cpus_per_trial": 4}, 8, 4.0, 0.0),
        ([BOX], {"gpus_per_trial": 2}, 2, 1.0, 2.0),
        ([BOX, LAPTOP], {"cpus_per_trial": 12}, 2, 12.0, 1.0),
    ],
)
def test_what_fits(
    nodes: list[dict[str, float]], resources: dict[str, float], workers: int, cpus: float, gpus: float
) -> None:
    placement = place(nodes, ResourceSpec.model_validate(resources), lookahead=8)
    assert (placement.workers, placement.cpus, placement.gpus) == (workers, cpus, gpus)


def test_no_more_workers_than_the_lookahead_feeds() -> None:
    placement = place([{"CPU": 64.0}], ResourceSpec(), lookahead=8)
    assert placement.workers == 8 and "56 more idle" in placement.reason


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(
        UsageError, match=r"asks for 1 CPU and 1 GPU, and no node(.|\n)*The largest of 1 nodes has 2 CPUs"
    ):
        place([LAPTOP], ResourceSpec(gpus_per_trial=1.0), lookahead=8)
    with pytest.raises(UsageError, match=r"--workers\) 3: the cluster carries 2 trials(.|\n)*--workers 2"):
        place([LAPTOP], ResourceSpec(workers=3), lookahead=8)
    with pytest.raises(UsageError, match="asks for 4 CPUs"):
        place([LAPTOP, LAPTOP], ResourceSpec(cpus_per_trial=4.0), lookahead=8)
    with pytest.raises(UsageError):
        place([], ResourceSpec(), lookahead=8)


def test_a_trial_uses_the_threads_and_the_device_that_it_pays_for() -> None:
    assert Placement(1, 0.5, 0.0, "").threads == 1 and Placement(1, 4.0, 0.0, "").threads == 4
    assert Placement(1, 1.0, 0.5, "").device == "cuda" and Placement(1, 1.0, 0.0, "").device == "cpu"
    assert Placement(1, 1.0, 0.0, "").resources == {"CPU": 1.0}
