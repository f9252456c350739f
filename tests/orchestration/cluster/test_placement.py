from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raprune.data.ranks import Ranks
from raprune.errors import UsageError
from raprune.orchestration.cluster.placement import (
    Placement,
    Trainings,
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
def test_workers_of_a_trial_are_as_many_as_fit(
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
def test_timing_is_placed_on_all_cpus_of_a_node_or_a_whole_gpu(
    nodes: list[dict[str, float]], resources: dict[str, float], cpus: float, gpus: float
) -> None:
    trial = place(nodes, ResourceSpec.model_validate(resources), lookahead=8)
    placement = place_timing(nodes, trial)
    assert (placement.workers, placement.cpus, placement.gpus) == (1, cpus, gpus)
    assert place(nodes, ResourceSpec(cpus_per_trial=cpus, gpus_per_trial=gpus), lookahead=None).workers >= 1


def test_workers_beyond_the_lookahead_are_not_placed() -> None:
    placement = place([{"CPU": 64.0}], ResourceSpec(), lookahead=8)
    assert placement.workers == 8 and "56 more idle" in placement.reason
    assert place([{"CPU": 64.0}], ResourceSpec(), lookahead=None).workers == 64


def test_lookahead_left_open_feeds_all_workers() -> None:
    assert [SamplerSpec().lookahead_for(workers) for workers in (1, 2, 3, 64)] == [4, 4, 6, 128]
    assert SamplerSpec(lookahead=5).lookahead_for(64) == 5


def test_trial_that_fits_nowhere_is_refused_with_a_size_that_fits() -> None:
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


def test_trial_placed_on_cpus_or_gpus_uses_that_device_and_its_threads() -> None:
    assert Placement(1, 0.5, 0.0, "").threads == 1 and Placement(1, 4.0, 0.0, "").threads == 4
    assert Placement(1, 1.0, 0.5, "").device == "cuda" and Placement(1, 1.0, 0.0, "").device == "cpu"
    assert Placement(1, 1.0, 0.0, "").resources == {"CPU": 1.0}


def trainings(networks: int, *, batch_size: int = 128, image_size: int = 32) -> Trainings:
    return Trainings(networks=networks, batch_size=batch_size, image_size=image_size)


@pytest.mark.parametrize(
    ("nodes", "resources", "networks", "groups"),
    [
        ([LAPTOP], {}, 1, None),
        ([{"CPU": 64.0}], {}, 1, None),
        ([LAPTOP], {"train_workers": 0}, 1, None),
        ([BOX], {"train_workers": 0}, 1, None),
        ([BOX], {}, 0, None),
        ([LAPTOP], {"train_workers": 2}, 9, (1, 2)),
        ([LAPTOP, LAPTOP], {"train_workers": 2}, 9, (2, 2)),
        ([BOX], {}, 1, (1, 2)),
        ([BOX], {}, 2, (2, 2)),
        ([BOX], {}, 3, None),
        ([BOX, BOX], {}, 3, (3, 2)),
        ([BOX, BOX], {"gpus_per_train_worker": 2}, 2, (2, 2)),
        ([BOX], {"gpus_per_train_worker": 0.5}, 1, None),
        ([BOX], {"gpus_per_train_worker": 0}, 1, None),
        ([BOX], {"train_workers": 3}, 16, (1, 3)),
    ],
)
def test_groups_form_where_half_of_the_gpus_would_be_idle(
    nodes: list[dict[str, float]], resources: dict[str, float], networks: int, groups: tuple[int, int] | None
) -> None:
    placement = place_training(nodes, ResourceSpec.model_validate(resources), trainings(networks))
    assert (placement and (placement.groups, placement.workers)) == groups


@pytest.mark.parametrize(
    ("gpus", "networks", "size", "groups"),
    [
        (35, 18, {}, None),
        (36, 18, {}, (18, 2)),
        (1000, 18, {}, (18, 2)),
        (1000, 18, {"batch_size": 127}, None),
        (1000, 1, {"batch_size": 1024}, (1, 16)),
        (8, 3, {"batch_size": 1024}, (1, 8)),
        (1000, 18, {"image_size": 224}, (18, 4)),
        (1000, 18, {"image_size": 223}, (18, 2)),
        (8, 1, {"batch_size": 256, "image_size": 224}, (1, 8)),
        (1000, 1, {"batch_size": 256, "image_size": 224}, (1, 8)),
    ],
)
def test_group_of_many_gpus_is_bounded_by_the_images_of_a_batch(
    gpus: int, networks: int, size: dict[str, int], groups: tuple[int, int] | None
) -> None:
    nodes = [{"CPU": 8.0, "GPU": 8.0}] * (gpus // 8) + [{"CPU": 8.0, "GPU": float(gpus % 8)}]
    placement = place_training(nodes, ResourceSpec(), trainings(networks, **size))
    assert (placement and (placement.groups, placement.workers)) == groups
    if placement is not None and placement.groups > 1:
        assert f"{placement.groups} groups of {placement.workers} x 1 CPU and 1 GPU together" in placement.reason


@pytest.mark.parametrize("size", [{}, {"batch_size": 512}, {"batch_size": 256, "image_size": 224}, {"batch_size": 8}])
def test_groups_of_any_cluster_leave_enough_images_for_each_gpu(size: dict[str, int]) -> None:
    images = 32 if size.get("image_size") == 224 else 64
    for gpus in range(1, 1001):
        for networks in range(1, 19):
            asked = trainings(networks, **size)
            placement = place_training([{"CPU": float(gpus), "GPU": float(gpus)}], ResourceSpec(), asked)
            if placement is None:
                continue
            assert asked.batch_size // placement.workers >= images
            assert placement.side_by_side <= gpus and placement.groups <= networks
            part = Ranks(0, placement.workers).part(asked.batch_size)
            assert part.stop - part.start < asked.batch_size, "a GPU computes the whole batch"


def test_group_whose_workers_would_each_compute_the_whole_batch_is_refused() -> None:
    asked = ResourceSpec(train_workers=65)
    with pytest.raises(UsageError, match=r"train_workers 65: a batch of 128 images has(.|\n)*Use 64 or fewer"):
        place_training([{"CPU": 99.0, "GPU": 99.0}], asked, trainings(1))
    fits = place_training([{"CPU": 99.0, "GPU": 99.0}], ResourceSpec(train_workers=64), trainings(1))
    assert fits is not None and fits.workers == 64


def test_backend_of_a_group_follows_the_device_of_its_workers() -> None:
    assert TrainPlacement(2, 1.0, 0.0, "").backend == "gloo" and TrainPlacement(2, 1.0, 1.0, "").backend == "nccl"
    assert TrainPlacement(2, 1.0, 0.5, "").backend == "gloo", "NCCL takes one process a card"


def test_group_that_does_not_fit_is_refused_with_a_size_that_fits() -> None:
    with pytest.raises(UsageError, match=r"train_workers 9: .*1 CPU and 1 GPU each.* carries 4(.|\n)*Use 4 or fewer"):
        place_training([BOX], ResourceSpec(train_workers=9), trainings(1))
    spec = ResourceSpec(train_workers=2, gpus_per_train_worker=1.0)
    with pytest.raises(UsageError, match=r"carries none(.|\n)*Lower resources.cpus_per_train_worker or resources.gpus"):
        place_training([LAPTOP], spec, trainings(1))


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
def test_placements_of_any_cluster_find_room_in_any_order(
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
        group = place_training(nodes, spec, trainings(networks))
    except UsageError:
        return
    phases: list[Placement] = [Placement(1, trials.cpus, trials.gpus, ""), trials, *([group] if group else []), trials]
    order = random.Random(shuffle)
    for phase in phases:
        left = [(node["CPU"], [1.0] * int(node["GPU"])) for node in nodes]
        for _ in range(phase.side_by_side):
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


def test_group_after_lost_nodes_is_placed_again_on_the_remaining_ones() -> None:
    before = place_training([LAPTOP] * 3, ResourceSpec(train_workers=6), trainings(2))
    assert before is not None
    assert place_again([LAPTOP] * 3, before) == before
    left = place_again([LAPTOP], before)
    assert left is not None and left.workers == 2 and (left.cpus, left.gpus) == (before.cpus, before.gpus)
    assert "of 6 before" in left.reason
    assert place_again([], before) is None


def test_several_groups_are_placed_again_as_fewer_before_they_shrink() -> None:
    before = place_training([LAPTOP] * 3, ResourceSpec(train_workers=2), trainings(3))
    assert before is not None and (before.groups, before.workers) == (3, 2)
    for nodes, expected in ([LAPTOP] * 2, (2, 2)), ([LAPTOP], (1, 2)), ([{"CPU": 1.0}], (1, 1)):
        left = place_again(nodes, before)
        assert left is not None and (left.groups, left.workers) == expected
        assert "of 3 groups of 2 before nodes were lost" in left.reason


def test_resumed_run_on_fewer_nodes_places_fewer_workers() -> None:
    asked = ResourceSpec(workers=3)
    assert place_resumed([{"CPU": 1.0}], asked, lookahead=8).workers == 1
    assert place_resumed([{"CPU": 8.0}], asked, lookahead=8).workers == 3
    assert place_resumed([{"CPU": 8.0}], asked, lookahead=2).workers == 2
    with pytest.raises(UsageError, match="no node of the cluster has that"):
        place_resumed([{"CPU": 0.0}], asked, lookahead=8)
