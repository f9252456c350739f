from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raprune.errors import UsageError
from raprune.orchestration.cluster.placement import (
    Placement,
    TrainPlacement,
    place,
    place_again,
    place_resumed,
    place_timing,
    place_training,
)
from raprune.spec.job import ResourceSpec, SamplerSpec

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


@pytest.mark.parametrize(
    ("nodes", "resources", "cpus", "gpus"),
    [
        ([LAPTOP], {}, 2.0, 0.0),
        ([LAPTOP, {"CPU": 0.0}, {"CPU": 8.0}], {"cpus_per_trial": 0.5}, 8.0, 0.0),
        ([BOX], {"gpus_per_trial": 0.4, "cpus_per_trial": 3}, 3.0, 1.0),
        ([BOX], {"gpus_per_trial": 2}, 1.0, 1.0),
        ([BOX], {"gpus_per_trial": 0}, 32.0, 0.0),
    ],
)
def test_timing_has_all_processors_of_a_node_or_a_whole_gpu(
    nodes: list[dict[str, float]], resources: dict[str, float], cpus: float, gpus: float
) -> None:
    trial = place(nodes, ResourceSpec.model_validate(resources), lookahead=8)
    placement = place_timing(nodes, trial)
    assert (placement.workers, placement.cpus, placement.gpus) == (1, cpus, gpus)
    assert place(nodes, ResourceSpec(cpus_per_trial=cpus, gpus_per_trial=gpus), lookahead=None).workers >= 1


def test_no_more_workers_than_the_lookahead_feeds() -> None:
    placement = place([{"CPU": 64.0}], ResourceSpec(), lookahead=8)
    assert placement.workers == 8 and "56 more idle" in placement.reason
    assert place([{"CPU": 64.0}], ResourceSpec(), lookahead=None).workers == 64


def test_a_lookahead_that_nobody_asked_for_feeds_all_workers() -> None:
    assert [SamplerSpec().lookahead_for(workers) for workers in (1, 2, 3, 64)] == [4, 4, 6, 128]
    assert SamplerSpec(lookahead=5).lookahead_for(64) == 5


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


@pytest.mark.parametrize(
    ("nodes", "resources", "networks", "workers"),
    [
        ([LAPTOP], {}, 1, None),
        ([{"CPU": 64.0}], {}, 1, None),
        ([LAPTOP], {"train_workers": 0}, 1, None),
        ([BOX], {"train_workers": 0}, 1, None),
        ([BOX], {}, 0, None),
        ([LAPTOP], {"train_workers": 2}, 9, 2),
        ([BOX], {}, 1, 4),
        ([BOX], {}, 2, 4),
        ([BOX], {}, 3, None),
        ([BOX, BOX], {}, 3, 8),
        ([BOX, BOX], {"gpus_per_train_worker": 2}, 2, 4),
        ([BOX], {"gpus_per_train_worker": 0.5}, 1, None),
        ([BOX], {"gpus_per_train_worker": 0}, 1, None),
        ([BOX], {"train_workers": 3}, 16, 3),
    ],
)
def test_who_trains_together(
    nodes: list[dict[str, float]], resources: dict[str, float], networks: int, workers: int | None
) -> None:
    group = place_training(nodes, ResourceSpec.model_validate(resources), num_networks=networks)
    assert (group and group.workers) == workers


def test_a_group_talks_by_what_its_workers_compute_on() -> None:
    assert TrainPlacement(2, 1.0, 0.0, "").backend == "gloo" and TrainPlacement(2, 1.0, 1.0, "").backend == "nccl"
    assert TrainPlacement(2, 1.0, 0.5, "").backend == "gloo", "NCCL takes one process a card"


def test_a_group_that_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(UsageError, match=r"train_workers 9: .*1 CPU and 1 GPU each.* carries 4(.|\n)*Use 4 or fewer"):
        place_training([BOX], ResourceSpec(train_workers=9), num_networks=1)
    spec = ResourceSpec(train_workers=2, gpus_per_train_worker=1.0)
    with pytest.raises(UsageError, match=r"carries none(.|\n)*Lower resources.cpus_per_train_worker or resources.gpus"):
        place_training([LAPTOP], spec, num_networks=1)


nodes_of = st.lists(
    st.fixed_dictionaries(
        {"CPU": st.integers(0, 12).map(float), "GPU": st.integers(0, 4).map(float)},
    ),
    min_size=1,
    max_size=5,
)
shares = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
cards = st.sampled_from([None, 0.0, 0.25, 0.3, 0.5, 1.0, 2.0])


@given(nodes_of, shares, cards, shares, cards, st.integers(0, 6) | st.none(), st.integers(1, 8), st.integers(0, 2**20))
def test_whatever_a_cluster_is_asked_for_at_a_time_it_has(
    nodes: list[dict[str, float]],
    cpus: float,
    gpus: float | None,
    train_cpus: float,
    train_gpus: float | None,
    train_workers: int | None,
    networks: int,
    shuffle: int,
) -> None:
    """Workers of the search, or a group, or tasks of a trial's size: wherever the first ones lie, all come up, and what
    comes after them finds the room that they gave back. Nothing is left waiting."""
    spec = ResourceSpec(
        cpus_per_trial=cpus,
        gpus_per_trial=gpus,
        cpus_per_train_worker=train_cpus,
        gpus_per_train_worker=train_gpus,
        train_workers=train_workers,
    )
    try:
        trials = place(nodes, spec, lookahead=8)
        group = place_training(nodes, spec, num_networks=networks)
    except UsageError:
        return
    phases: list[Placement] = [Placement(1, trials.cpus, trials.gpus, ""), trials, *([group] if group else []), trials]
    order = random.Random(shuffle)
    for phase in phases:
        left = [(node["CPU"], [1.0] * int(node["GPU"])) for node in nodes]
        for _ in range(phase.workers):
            takers = [i for i, (free, free_cards) in enumerate(left) if _carries(free, free_cards, phase)]
            assert takers, f"{phase} waits for room that it will not get on {nodes}"
            at = order.choice(takers)
            left[at] = _taken(*left[at], phase)


def _carries(free: float, free_cards: list[float], bundle: Placement) -> bool:
    if bundle.gpus >= 1:
        cards = sum(card == 1.0 for card in free_cards) >= math.ceil(bundle.gpus)
    else:
        cards = bundle.gpus == 0 or any(card >= bundle.gpus - 1e-9 for card in free_cards)
    return free >= bundle.cpus - 1e-9 and cards


def _taken(free: float, free_cards: list[float], bundle: Placement) -> tuple[float, list[float]]:
    cards = sorted(free_cards, reverse=True)
    if bundle.gpus >= 1:
        cards = cards[math.ceil(bundle.gpus) :]
    elif bundle.gpus > 0:
        # As Ray does: on the fullest card that still has room.
        place = max(i for i, card in enumerate(cards) if card >= bundle.gpus - 1e-9)
        cards[place] -= bundle.gpus
    return free - bundle.cpus, cards


def test_a_group_is_placed_again_on_what_is_left() -> None:
    before = place_training([LAPTOP] * 3, ResourceSpec(train_workers=6), num_networks=2)
    assert before is not None
    assert place_again([LAPTOP] * 3, before) == before
    left = place_again([LAPTOP], before)
    assert left is not None and left.workers == 2 and (left.cpus, left.gpus) == (before.cpus, before.gpus)
    assert "of 6 before" in left.reason
    assert place_again([], before) is None


def test_a_run_that_goes_on_makes_do_with_the_nodes_that_are_left() -> None:
    asked = ResourceSpec(workers=3)
    assert place_resumed([{"CPU": 1.0}], asked, lookahead=8).workers == 1
    assert place_resumed([{"CPU": 8.0}], asked, lookahead=8).workers == 3
    assert place_resumed([{"CPU": 8.0}], asked, lookahead=2).workers == 2
    with pytest.raises(UsageError, match="no node of the cluster has that"):
        place_resumed([{"CPU": 0.0}], asked, lookahead=8)
