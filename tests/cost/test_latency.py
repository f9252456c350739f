"""Tests of the predicted latency, with a table made by hand and with a measured table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.cost.conditions import conditions, table_key
from raprune.cost.flops import CostModel
from raprune.cost.latency import LatencyTable, PredictionError, fitted
from raprune.cost.measure import _are_alike, _probes, _to_steps, measure_table, measure_whole
from raprune.cost.reported import filling_batch, measure_reported
from raprune.cost.steps import find_step
from raprune.cost.stopwatch import Repeats, Stopwatch, mode_of
from raprune.cost.timed import AtSizes, TimedNetwork
from raprune.cost.waiting import THREADS
from raprune.errors import BudgetError, UsageError
from raprune.models.cifar_resnet import CifarResNet
from raprune.pruning.allocate import ALLOCATIONS, allocate, check_reachable
from raprune.pruning.export import prune_once
from raprune.pruning.preparation import prepare
from raprune.pruning.target import Target
from raprune.records import Candidate
from raprune.spec.budget import Budget
from raprune.spec.job import LatencySpec, SearchSpec
from raprune.spec.toml import load_spec
from tests.channels.networks import image
from tests.channels.proved import proved


def by_hand(graph: ChannelGraph, *, dense_ms: float = 1000.0) -> LatencyTable:
    """A table of a convolution over the axes 0 and 1, twice, an activation over axis 1, and a constant operation."""
    return LatencyTable(
        grids=np.array([[[1, 4, 8], [2, 6, 6]], [[1, 4, 4], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]], dtype=float),
        times_ms=np.array(
            [
                [[1, 3, 3], [4, 10, 10], [8, 20, 20]],
                [[2, 2, 2], [8, 8, 8], [8, 8, 8]],
                [[5, 5, 5], [5, 5, 5], [5, 5, 5]],
            ],
            dtype=float,
        ),
        tables=np.array([0, 0, 1, 2]),
        factors=np.array([[0, 1], [0, 1], [1, -1], [-1, -1]]),
        kinds=np.array([0, 0, 1, 1]),
        modules=("conv1", "conv2", "relu", ""),
        scales=(2.0, 3.0),
        offset_ms=7.0,
        dense_ms=dense_ms,
        accuracy=PredictionError(0.02, 0.07, 10),
        device="hand",
        batch_size=1,
        precision="float32",
    )


HAND = by_hand(proved("Residual")[1])


@pytest.mark.parametrize(
    ("sizes", "convolution", "activation"),
    [
        ((1, 2), 1.0, 4.0),
        ((8, 6), 20.0, 8.0),
        ((4, 4), 7.0, 8.0),  # half way between 4 and 10
        ((6, 4), (4 + 10 + 8 + 20) / 4, 8.0),
        ((2, 3), (1 * 2 / 3 + 4 / 3) * 3 / 4 + (3 * 2 / 3 + 10 / 3) / 4, 6.0),
        ((0, 1), 1.0, 2.0),  # beyond the grid as at its edge
        ((90, 90), 20.0, 8.0),
    ],
)
def test_bilinear_by_hand(sizes: tuple[int, int], convolution: float, activation: float) -> None:
    expected = 7 + 2.0 * (2 * convolution) + 3.0 * (activation + 5)
    assert float(HAND.predict([*sizes])) == pytest.approx(expected)
    parts = HAND.by_module([*sizes])
    assert parts == pytest.approx(
        {"conv1": 2 * convolution, "conv2": 2 * convolution, "relu": 3 * activation, "": 15.0}
    )
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    assert sum(parts.values()) + 7 == pytest.approx(expected)


def test_many_vectors_at_once_are_one_by_one() -> None:
    sizes = np.random.default_rng(0).uniform(0, 10, (3, 700, 2))
    together = HAND.predict(sizes)
    assert together.shape == (3, 700)
    for i, j in [(0, 0), (1, 511), (1, 512), (2, 699)]:
        assert together[i, j] == pytest.approx(float(HAND.predict(sizes[i, j])), rel=1e-12)
    assert HAND.predict(np.zeros((0, 2))).shape == (0,)


def test_network_that_is_slower_than_the_dense_one_is_predicted_so() -> None:
    assert float(replace(HAND, dense_ms=60.0).predict([8, 6])) > 60.0
    cost = hand_cost()
    assert float(cost.latency_ms(cost.num_channels)) == cost.dense_latency_ms == 150.0


def test_a_table_is_stored_and_read() -> None:
    again = LatencyTable.from_arrays(HAND.to_arrays())
    assert again.describe() == HAND.describe() and again.modules == HAND.modules
    sizes = np.random.default_rng(0).uniform(0, 10, (50, 2))
    assert np.array_equal(again.predict(sizes), HAND.predict(sizes))


def test_scales_and_offset_are_found_and_never_negative() -> None:
    sums = np.random.default_rng(0).uniform(1, 9, (9, 2))
    assert fitted(sums, sums @ [1.5, 0.25] + 3).tolist() == pytest.approx([1.5, 0.25, 3.0])
    assert (fitted(sums, 20 - sums @ [1.0, 0.5]) >= 0).all()


@pytest.mark.parametrize(
    ("given", "read"),
    [("0.5", (0.5, None)), (0.5, (0.5, None)), ("50%", (0.5, None)), ("3ms", (None, 3.0)), ("250 us", (None, 0.25)),
     ("0.1s", (None, 100.0)), (1, (1.0, None))],
)  # fmt: skip
def test_a_budget_is_a_fraction_or_a_time(given: str | float, read: tuple[float | None, float | None]) -> None:
    budget = load_spec(None, {"budget.latency": given}).budget
    assert (budget.latency, budget.latency_ms) == read


@pytest.mark.parametrize("given", ["3", "0", "0ms", "-1ms", "ms", "fast", "3 parsecs", "1.5"])
def test_latency_budget_that_is_no_fraction_and_no_time_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"budget\.latency.*a time such as 3ms"):
        load_spec(None, {"budget.latency": given})


def test_a_time_is_a_fraction_of_the_dense_network() -> None:
    assert Budget(latency_ms=3.0, flops=0.5).measured(12.0) == Budget(latency=0.25, flops=0.5)
    assert Budget(latency_ms=3.0).measured(2.0) == Budget(latency=1.0)
    assert Budget(latency=0.4).measured(12.0) == Budget(latency=0.4)


def test_latency_override_of_another_form_replaces_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("[budget]\nlatency_ms = 3\n")
    assert load_spec(path, {"budget.latency": "0.5"}).budget == Budget(latency=0.5)
    assert load_spec(path, {"budget.latency": "4ms"}).budget == Budget(latency_ms=4.0)
    with pytest.raises(UsageError, match="two limits of one latency"):
        load_spec(path, {"budget": {"latency": 0.5, "latency_ms": 3.0}})


def test_a_latency_alone_is_not_a_budget_of_flops_too() -> None:
    assert load_spec(None, {"budget.latency": "0.5"}).budget == Budget(latency=0.5)
    assert load_spec(None, {"budget.latency": "3ms"}).budget == Budget(latency_ms=3.0)
    assert load_spec(None, {"budget.latency": 0.5, "budget.flops": 0.4}).budget == Budget(flops=0.4, latency=0.5)
    assert load_spec().budget == Budget(flops=0.3)


def hand_cost() -> CostModel:
    """A cost model of two groups with 8 and 6 channels; the first group is more expensive."""
    _, graph = proved("Residual")
    sizes = CostModel(graph).sizes([8, 6]).tolist()
    first, second = sizes.index(8), sizes.index(6)
    table = LatencyTable(
        grids=np.array([[[1, 8], [0, 0]], [[1, 6], [0, 0]]], dtype=float),
        times_ms=np.array([[[10, 10], [80, 80]], [[10, 10], [60, 60]]], dtype=float),
        tables=np.array([0, 1]),
        factors=np.array([[first, -1], [second, -1]]),
        kinds=np.array([0, 1]),
        modules=("stem", "conv1"),
        scales=(1.0, 1.0),
        offset_ms=10.0,
        dense_ms=150.0,
        accuracy=PredictionError(0.0, 0.0, 1),
        device="hand",
        batch_size=1,
        precision="float32",
    )
    return CostModel(graph, table)


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("fraction", [0.21, 0.4, 0.6, 0.93, 1.0])
def test_widths_stay_within_a_latency_and_come_up_to_it(name: str, fraction: float) -> None:
    cost = hand_cost()
    random = np.random.default_rng(1)
    scores = {n: random.uniform(size=int(c)) for n, c in zip(cost.group_names, cost.num_channels, strict=True)}
    widths = allocate(name, cost, Target(budget=Budget(latency=fraction)), scores=scores, keep_ratios={})
    latency_ms = float(cost.latency_ms(widths))
    # 10 ms a channel and 10 ms beside them.
    assert latency_ms == pytest.approx(10 * widths.sum() + 10)
    assert fraction * 150 - 10 < latency_ms <= fraction * 150


def test_a_latency_and_flops_are_met_together() -> None:
    cost = hand_cost()
    budget = Budget(flops=0.5, latency=0.5)
    widths = allocate("uniform", cost, Target(budget=budget), scores={}, keep_ratios={})
    assert int(cost.flops(widths)) <= 0.5 * cost.dense_flops and float(cost.latency_ms(widths)) <= 75


def test_a_latency_out_of_reach_is_refused_with_what_binds() -> None:
    cost = hand_cost()
    with pytest.raises(BudgetError) as caught:
        check_reachable(cost, Budget(latency=0.1))
    message = str(caught.value)
    assert "--budget-latency 0.1: out of reach" in message and "0.2000 (30 of 150 ms)" in message
    assert "stem (10 ms)" in caught.value.hint and "what runs between the layers (10 ms)" in caught.value.hint
    advised = float(caught.value.hint.rsplit("budget of ", 1)[1].split(" ")[0])
    check_reachable(cost, Budget(latency=advised))
    # Before anything was measured nothing can be said.
    check_reachable(CostModel(proved("Residual")[1]), Budget(latency=0.1))


def test_maxout_networks_have_no_table() -> None:
    with pytest.raises(UsageError, match=r"budget\.latency.*maxout"):
        prepare(load_spec(None, {"budget.latency": 0.5, "methods": ["maxout"]}))


BATCH = LatencySpec(batch_size=32, repeats=5, widths=4)


@cache
def measured() -> tuple[nn.Module, ChannelGraph, CostModel, LatencyTable]:
    """A network that spends its time in convolutions, not in the calls between them."""
    torch.manual_seed(0)
    model = CifarResNet(8).eval()
    graph = trace(model, image((1, 3, 32, 32)))
    table = measure_table(model, graph, BATCH, device="cpu")
    return model, graph, CostModel(graph, table), table


def test_a_measured_table_predicts_networks_that_it_never_saw() -> None:
    model, _, cost, table = measured()
    # A loaded machine bends timings; without a load the median error is a few percent.
    assert table.accuracy.median_error < 0.3 and table.accuracy.networks == 10
    assert table.unknown == () and table.batch_size == 32 and "1 thread" in table.device
    assert {"conv1", "layer1.0.conv1", "linear"} <= set(table.modules) <= {"", *dict(model.named_modules())}
    assert 0 < float(cost.latency_ms(cost.smallest())) < 0.7 * table.dense_ms


class Staircase(TimedNetwork):
    """A network whose operations take a millisecond for each begun block of 4 channels, and 2 more within a block."""

    def times(self, sized: Sequence[AtSizes], *, repeats: int) -> list[float]:
        return [sum(-(-int(size) // 4) + 2.0 * (int(size) % 4 > 0) for size in sizes) for _, sizes, _ in sized]

    def medians(self, models: Sequence[nn.Module], repeats: Repeats, stopwatch: Stopwatch | None = None) -> list[float]:
        return [float(sum(p.shape[0] for p in model.parameters() if p.dim() == 4)) for model in models]


def test_table_of_a_staircase_keeps_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = proved("Residual")
    spec = LatencySpec(widths=8)
    monkeypatch.setattr("raprune.cost.measure.timed_network", lambda *given, **named: Staircase(*given, **named))
    table = measure_table(model, graph, spec, device="cpu")
    ends = table.grids[:, :, -1].max(axis=1)
    wide = int(np.flatnonzero(ends == 8)[0])
    along = table.times_ms[wide] if table.grids[wide, 0, -1] == 8 else table.times_ms[wide].T
    found = along[:, 0] - along[0, 0] + 3.0
    # Widths 1 to 8: narrower networks within a block are slower than the whole block.
    assert found.tolist() == [3, 3, 3, 1, 4, 4, 4, 2]


def test_networks_of_the_error_fit_the_scales_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = proved("Residual")
    wholes: list[tuple[np.ndarray, np.ndarray]] = []

    def recorded(subject: TimedNetwork, cost: CostModel, vectors: Sequence[np.ndarray]) -> np.ndarray:
        networks = [subject.narrowed(cost, widths) for widths in vectors]
        times = np.array(subject.medians(networks, Repeats(most=1, limit_s=1.0)))
        wholes.append((np.stack(vectors), times))
        return times

    monkeypatch.setattr("raprune.cost.measure.timed_network", lambda *given, **named: Staircase(*given, **named))
    monkeypatch.setattr("raprune.cost.measure._whole_ms", recorded)
    monkeypatch.setattr("raprune.cost.measure.CORRECTED", 10.0)
    table = measure_table(model, graph, LatencySpec(widths=8), device="cpu")
    ((vectors, times),) = wholes
    assert len(vectors) == Staircase.num_fitted + Staircase.num_held_out + 1
    sums = table.sums(CostModel(graph).sizes(vectors))
    assert [*table.scales, table.offset_ms] == pytest.approx(fitted(sums, times).tolist())
    first = [*range(Staircase.num_fitted), -1]
    alone = fitted(sums[first], times[first])
    errors = np.abs((np.c_[sums, np.ones(len(sums))] @ alone / times - 1)[Staircase.num_fitted : -1])
    assert table.accuracy.median_error == pytest.approx(float(np.median(errors)))


@pytest.mark.parametrize(
    ("block", "within", "step"),
    [
        (1, 0.0, 1),
        (8, 0.0, 8),
        (16, 0.0, 16),
        (8, 0.3, 8),  # slower within a block than at its end
        (64, 0.0, 32),  # no step is larger than half of most groups
    ],
)
def test_step_of_the_widths_is_the_block_of_the_device(block: int, within: float, step: int) -> None:
    cost = CostModel(trace(nn.Sequential(*_layers(64, 96, 80)).eval(), torch.zeros(1, 3, 8, 8)))
    assert sorted(cost.num_channels.tolist()) == [64, 80, 96]

    def milliseconds(vectors: Sequence[np.ndarray]) -> np.ndarray:
        blocks = -(-np.stack(vectors) // block) * block
        return np.asarray(5.0 + (blocks * np.where(blocks > np.stack(vectors), 1 + within, 1.0)).sum(axis=1) / 10)

    assert find_step(cost, milliseconds) == step


def test_probes_of_coarse_steps_tell_groups_of_equal_width_apart() -> None:
    cost = CostModel(trace(nn.Sequential(*_layers(32, 32, 32, 32)).eval(), torch.zeros(1, 3, 8, 8)))
    for seed in range(20):
        vectors = np.stack(_probes(cost, np.random.default_rng(seed), 16))
        assert set(np.unique(vectors)) == {16, 32}
        assert len(np.unique(vectors, axis=1).T) == 4
    # A group of one channel never changes, and is told from no other.
    assert not _are_alike(np.array([[1, 1, 32], [1, 1, 16]]), np.array([1, 1, 2]))


def test_widths_are_rounded_to_the_nearest_step() -> None:
    cost = CostModel(trace(nn.Sequential(*_layers(32, 40)).eval(), torch.zeros(1, 3, 8, 8)))
    assert _to_steps(np.array([7, 39]), cost, 16).tolist() == [16, 32]
    assert _to_steps(np.array([24, 40]), cost, 16).tolist() == [32, 40]
    assert _to_steps(np.array([24, 40]), cost, 1).tolist() == [24, 40]


def _layers(*widths: int) -> Iterator[nn.Module]:
    for before, width in zip((3, *widths), widths, strict=False):
        yield nn.Conv2d(before, width, 3, padding=1)
        yield nn.ReLU()
    yield nn.AdaptiveAvgPool2d(1)
    yield nn.Flatten()
    yield nn.Linear(widths[-1], 4)


def test_latency_that_does_not_follow_widths_has_no_step() -> None:
    _, _, cost, _ = measured()
    assert find_step(cost, lambda vectors: np.full(len(vectors), 3.0)) == 1


def staircase_cost(seed: int) -> CostModel:
    """A cost model of two groups with 8 and 6 channels, whose times are any at each width, with steps and spikes."""
    random, cost = np.random.default_rng(seed), hand_cost()
    assert cost.table is not None
    grids, times = np.zeros((2, 2, 8)), np.zeros((2, 8, 8))
    for group, width in enumerate((8, 6)):
        grids[group, 0] = np.minimum(np.arange(1, 9), width)
        steps = 10.0 * np.ceil(np.arange(1, width + 1) / 2) + random.choice([0, 0, 15], width)
        steps[0], steps[-1] = 10.0, 5.0 * width
        times[group] = np.pad(steps, (0, 8 - width), mode="edge")[:, None]
    dense_ms = 10.0 + times[:, -1, 0].sum()
    return CostModel(proved("Residual")[1], replace(cost.table, grids=grids, times_ms=times, dense_ms=dense_ms))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fraction", [0.5, 0.75])
def test_least_damage_on_a_staircase_is_within_a_move_of_the_least(seed: int, fraction: float) -> None:
    cost, random = staircase_cost(seed), np.random.default_rng(seed)
    damage = {n: np.r_[0.0, np.cumsum(random.lognormal(size=int(c)))] for n, c in _counts(cost)}
    widths = allocate(
        "least_damage", cost, Target(budget=Budget(latency=fraction)), scores={}, keep_ratios={}, damage=damage
    )
    every = np.array([[a, b] for a in range(1, 9) for b in range(1, 7)])
    every = every[cost.latency_ms(every) <= fraction * cost.dense_latency_ms]
    sums = [sum(damage[n][c - w] for (n, c), w in zip(_counts(cost), row, strict=True)) for row in (widths, *every)]
    move = max(float(np.diff(values).max()) for values in damage.values())
    assert float(cost.latency_ms(widths)) <= fraction * cost.dense_latency_ms
    assert sums[0] <= min(sums[1:]) + move
    # A width is never taken where a wider one is no slower.
    for group, count in enumerate(cost.num_channels.tolist()):
        wider = np.repeat(widths[None], count - widths[group], axis=0)
        wider[:, group] = np.arange(widths[group] + 1, count + 1)
        assert (cost.latency_ms(wider) > cost.latency_ms(widths)).all()


@pytest.mark.parametrize("name", ["uniform", "global_rank"])
def test_widths_on_a_staircase_are_the_widest_that_fit(name: str) -> None:
    """Four or five channels of the first group take longer than six, as within a block of a vector unit."""
    cost = hand_cost()
    assert cost.table is not None
    grids, times = np.zeros((2, 2, 8)), np.zeros((2, 8, 8))
    for group, of_group in enumerate(([10, 20, 30, 90, 90, 40, 70, 80], [10, 20, 30, 40, 50, 60, 60, 60])):
        grids[group, 0] = np.minimum(np.arange(1, 9), (8, 6)[group])
        times[group] = np.array(of_group, dtype=float)[:, None]
    cost = CostModel(proved("Residual")[1], replace(cost.table, grids=grids, times_ms=times))
    scores = {n: np.arange(1.0, c + 1) for n, c in _counts(cost)}
    target = Target(budget=Budget(latency=100 / 150))
    widths = allocate(name, cost, target, scores=scores, keep_ratios={})
    # A bisection that meets the slow widths ends at three channels in each group.
    assert widths.tolist() == [6, 5] and float(cost.latency_ms(widths)) == 100.0


def _counts(cost: CostModel) -> list[tuple[str, int]]:
    return list(zip(cost.group_names, cost.num_channels.tolist(), strict=True))


def test_half_the_latency_really_is_faster() -> None:
    """Table and network are timed once more, at most twice, where other load on the machine bent the timings."""
    ratios = []
    for _ in range(3):
        model, graph, cost, table = measured()
        fraction = max(0.5, 1.05 * float(cost.latency_ms(cost.smallest())) / table.dense_ms)
        scores = {n: np.arange(float(c)) for n, c in zip(cost.group_names, cost.num_channels, strict=True)}
        widths = allocate("uniform", cost, Target(budget=Budget(latency=fraction)), scores=scores, keep_ratios={})
        assert float(cost.latency_ms(widths)) <= fraction * table.dense_ms
        kept = {name: tuple(range(int(n))) for name, n in zip(cost.group_names, widths, strict=True)}
        condensed = cut(model, graph, Candidate("test", kept))
        narrow_ms, dense_ms = measure_whole([condensed], model, graph, BATCH, device="cpu")
        ratios.append(narrow_ms / dense_ms)
        if ratios[-1] < 0.85:
            return
        measured.cache_clear()
    pytest.fail(f"fractions of the dense network's time: {ratios}")


def test_the_table_depends_on_network_device_and_conditions_alone() -> None:
    _, graph, _, _ = measured()
    key = table_key(graph, BATCH, device="cpu")
    assert key == table_key(graph, BATCH.model_copy(), device="cpu")
    for change in ({"batch_size": 1}, {"threads": 2}, {"precision": "bfloat16"}, {"widths": 5}):
        assert table_key(graph, BATCH.model_copy(update=change), device="cpu") != key
    frozen = graph.without({graph.groups[0].name: "asked for"})
    assert table_key(frozen, BATCH, device="cpu") != key
    assert table_key(graph, BATCH.model_copy(update={"report_batch": 7}), device="cpu") == key
    assert conditions(LatencySpec(precision="auto"), device="cpu")["precision"] == "float32"


def test_mode_of_the_timings_on_a_cpu_is_eager_and_a_graph_is_refused_by_its_field() -> None:
    assert mode_of(LatencySpec(), torch.device("cpu")) == "eager"
    model, graph = proved("Residual")
    with pytest.raises(UsageError, match=r"latency\.mode") as caught:
        measure_table(model, graph, LatencySpec(mode="graph"), device="cpu")
    assert "eager" in str(caught.value.hint)


def test_threads_are_as_they_were() -> None:
    threads = torch.get_num_threads()
    measured()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("flops", "device", "threads", "largest", "size"),
    [
        (10**7, "cpu", 1, 512, 64),
        (10**7, "cpu", 1, 50, 32),  # powers of two
        (82 * 10**8, "cpu", 2, 512, 2),  # ResNet-50
        (82 * 10**8, "cpu", 64, 512, 64),
        (4 * 10**10, "cpu", 2, 512, 1),
        (82 * 10**8, "cuda", 1, 512, 256),
        (82 * 10**8, "cuda", 1, 100, 64),
    ],
)
def test_a_batch_fills_the_device_and_takes_no_longer_than_it_must(
    flops: int, device: str, threads: int, largest: int, size: int
) -> None:
    assert filling_batch(flops, device=device, threads=threads, largest=largest) == size


@pytest.mark.parametrize(("ms", "rounds", "in_turn"), [(0.1, 20, 3), (100.0, 10, 1), (1000.0, 7, 1)])
def test_calls_are_timed_by_turns_and_often_unless_they_take_long(ms: float, rounds: int, in_turn: int) -> None:
    called: list[str] = []

    class Fixed(Stopwatch):
        def milliseconds(self, call: Callable[[], object]) -> float:
            call()
            return ms

    calls = [lambda: called.append("a"), lambda: called.append("b")]
    watch, often = Fixed(torch.device("cpu")), Repeats(most=20, least=7, limit_s=1.0)
    assert watch.medians(calls, often).tolist() == [ms, ms]
    turn = ["a"] * in_turn + ["b"] * in_turn
    first = ["a"] * 3 + ["b"] * 3
    assert called == ["a", "b"] + first + turn * (rounds - 1), "once before, untimed; a short call thrice in its turn"
    called.clear()
    watch.medians(calls[:1], often)
    assert called == ["a"] * (1 + rounds), "no other call between"


class Ticking(Stopwatch):
    """A network that takes one millisecond for each image and thread."""

    def milliseconds(self, call: Callable[[], object]) -> float:
        output = call()
        assert isinstance(output, torch.Tensor)
        return float(len(output) * torch.get_num_threads())


def test_reported_times_are_of_one_image_and_of_a_full_batch_on_all_threads_and_the_budget_keeps_its_own() -> None:
    model, graph, _, _ = measured()
    half = cut(model, graph, Candidate("half", {}))
    threads = torch.get_num_threads()
    times = measure_reported(
        {"a": half},
        model,
        graph,
        BATCH.model_copy(update={"threads": 1}),
        device="cpu",
        threads=2,
        largest=8,
        budgeted=True,
        stopwatch=Ticking(torch.device("cpu")),
    )
    single, batch = times.conditions
    assert (single.batch_size, single.threads, single.dense_ms, dict(single.candidates)) == (1, 2, 2.0, {"a": 2.0})
    assert (batch.batch_size, batch.threads, batch.dense_ms, dict(batch.candidates)) == (8, 2, 16.0, {"a": 16.0})
    assert times.budget is not None and (times.budget.batch_size, times.budget.threads) == (BATCH.batch_size, 1)
    waited = [timing.waited for timing in (single, batch, times.budget)]
    assert all(share is not None and 0 <= share <= 1 for share in waited) is THREADS.exists()
    assert torch.get_num_threads() == threads


def test_a_batch_that_does_not_fit_is_halved() -> None:
    class Small(Ticking):
        def milliseconds(self, call: Callable[[], object]) -> float:
            spent_ms = super().milliseconds(call)
            if spent_ms > 10:
                raise torch.OutOfMemoryError
            return spent_ms

    model, graph, _, _ = measured()
    watch = Small(torch.device("cpu"))
    times = measure_reported(
        {}, model, graph, BATCH, device="cpu", threads=1, largest=64, budgeted=False, stopwatch=watch
    )
    assert [timing.batch_size for timing in times.conditions] == [1, 8]


def test_the_job_fixes_the_batch_of_the_report() -> None:
    model, graph, _, _ = measured()
    spec, watch = BATCH.model_copy(update={"report_batch": 3}), Ticking(torch.device("cpu"))
    measure = partial(
        measure_reported, {}, model, graph, device="cpu", threads=1, largest=8, budgeted=False, stopwatch=watch
    )
    times = measure(spec)
    assert [timing.batch_size for timing in times.conditions] == [1, 3] and times.budget is None
    alone = measure(spec.model_copy(update={"report_batch": 1}))
    assert [timing.batch_size for timing in alone.conditions] == [1]


def job(folder: Path, **changes: object) -> SearchSpec:
    fields = {
        "model.name": "digits-net",
        "data.name": "digits",
        "budget": {"latency": 0.95},
        "latency.batch_size": 64,
        "latency.repeats": 3,
        "latency.widths": 3,
        "data.max_images": 200,
        "dense.epochs": 0.1,
        "statistics": str(folder / "statistics"),
        "output": "unused",
    }
    return load_spec(None, fields | changes)


def test_a_second_run_reads_the_table(tmp_path: Path) -> None:
    first = prune_once(job(tmp_path), method="l1", allocation="uniform", folder=str(tmp_path / "one")).trial
    written = {path.name: path.read_bytes() for path in (tmp_path / "statistics").glob("latency-*")}
    assert len(written) == 1
    second = prune_once(job(tmp_path), method="l1", allocation="uniform").trial
    assert {path.name: path.read_bytes() for path in (tmp_path / "statistics").glob("latency-*")} == written
    assert first.metrics is not None and second.metrics is not None
    assert first.candidate == second.candidate and first.metrics.latency_ms == second.metrics.latency_ms
    assert first.proposal.target == Budget(latency=0.95)
    assert first.metrics.latency_fraction is not None and 0 < first.metrics.latency_fraction <= 0.95
    table = LatencyTable.from_arrays(_arrays(next(iter(written.values()))))
    assert first.metrics.latency_ms == pytest.approx(first.metrics.latency_fraction * table.dense_ms)
    in_ms = job(tmp_path, budget={"latency": f"{0.95 * table.dense_ms}ms"})
    assert prune_once(in_ms, method="l1", allocation="uniform").trial.candidate == first.candidate


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    return dict(load(data))


def test_corrected_table_predicts_what_was_timed_and_is_stored_and_read() -> None:
    timed = np.array([[8.0, 6.0], [4.0, 6.0], [2.0, 2.0]])
    plain = HAND.predict(timed)
    once = HAND.corrected(timed[:2], 1.5 * plain[:2])
    table = once.corrected(timed[2:], 0.9 * plain[2:])
    assert once.predict(timed) == pytest.approx(1.5 * plain, rel=1e-6)
    assert table.predict(timed) == pytest.approx([1.5, 1.5, 0.9] * plain, rel=0.03)
    assert HAND.predict(timed).tolist() == plain.tolist(), "the table itself is left as it is"
    again = LatencyTable.from_arrays(table.to_arrays())
    assert np.array_equal(again.predict(timed), table.predict(timed)) and again.describe()["corrected_by"] == 3
    assert LatencyTable.from_arrays(HAND.to_arrays()).correction is None
    # A block that is gone takes its operations with it; the correction stays.
    assert once.without(["conv1"]).predict(timed) == pytest.approx(1.5 * HAND.without(["conv1"]).predict(timed))
