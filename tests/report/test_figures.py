"""Tests of the figures for a paper, on made-up runs: valid files, the same bytes each time, the right content."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from raprune.report import figures
from raprune.report.figures.canvas import COLUMN_IN, KINDS, PAGE_IN, accuracy_ticks, canvas, marks, save, thinned
from raprune.results.run_results import RunResults, read_run_results
from raprune.results.siblings import Sibling
from raprune.store.folder import Store
from raprune.store.record import GraphRecord, RunRecord
from tests.factories import GROUPS, make_run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return with_groups(make_run(tmp_path_factory.mktemp("run")))


def with_groups(store: Store) -> RunResults:
    store.write_json("run.json", store.run() | {"graph": {"groups": GROUPS}})
    return read_run_results(store)


@pytest.fixture(scope="module")
def files(results: RunResults) -> dict[str, bytes]:
    return dict(figures.files(results))


def test_figures_exist_for_a_column_and_for_a_page(files: dict[str, bytes]) -> None:
    names = {f"{name}{wide}.{kind}" for name in figures.FIGURES for wide in ("", "-wide") for kind in KINDS}
    assert files.keys() == names and {"front.pdf", "widths-wide.svg", "ablation.png", "cost.pdf"} <= names


@pytest.mark.parametrize("kind", KINDS)
def test_figures_of_the_same_run_have_the_same_bytes(results: RunResults, files: dict[str, bytes], kind: str) -> None:
    with canvas(COLUMN_IN, figures.front.height_in(results, wide=False)) as again:
        figures.front.draw(again, results)
        assert save(again, kind) == files[f"front.{kind}"]


def test_fonts_in_pdf_are_truetype(files: dict[str, bytes]) -> None:
    """The checks of IEEE and ACM refuse Type 3 fonts."""
    for name, content in files.items():
        if name.endswith(".pdf"):
            assert content.startswith(b"%PDF") and b"/Type3" not in content
            assert b"/CIDFontType2" in content or b"/TrueType" in content


def test_figures_are_as_wide_as_text(files: dict[str, bytes]) -> None:
    for name, content in files.items():
        width_in = PAGE_IN if "-wide" in name else COLUMN_IN
        if name.endswith(".png"):
            with Image.open(io.BytesIO(content)) as picture:
                assert picture.width == pytest.approx(300 * width_in, abs=1)
        elif name.endswith(".svg"):
            assert float(ElementTree.fromstring(content).attrib["width"].removesuffix("pt")) == pytest.approx(
                72 * width_in
            )
        else:
            found = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", content)
            assert found is not None and float(found[1]) == pytest.approx(72 * width_in)


def test_text_of_an_svg_needs_no_font(files: dict[str, bytes]) -> None:
    assert b"<text" not in files["front.svg"]


def drawn(name: str, results: RunResults, width_in: float) -> tuple[Figure, str]:
    """Return a figure and all texts in it."""
    figure = figures.FIGURES[name]
    with canvas(width_in, figure.height_in(results, wide=width_in == PAGE_IN)) as made:
        figure.draw(made, results)
        content = save(made, "svg", letters=True)
    return made, " | ".join(element.text or "" for element in ElementTree.fromstring(content).iter() if element.text)


@pytest.mark.parametrize("width_in", [COLUMN_IN, PAGE_IN])
@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_text_of_a_figure_stays_inside_it(results: RunResults, name: str, width_in: float) -> None:
    assert_text_inside(drawn(name, results, width_in)[0])


def assert_text_inside(figure: Figure) -> None:
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    width, height = figure.canvas.get_width_height()
    for axes in figure.axes:
        for text in [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label, axes._left_title]:  # type: ignore[attr-defined]
            box = text.get_window_extent(renderer)
            if text.get_text():
                assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, text


def test_figure_of_the_front_shows_budget_dense_network_and_test_accuracies(results: RunResults) -> None:
    figure, words = drawn("front", results, PAGE_IN)
    assert "FLOPs, % of the dense network" in words and "budget 30 %" in words and "test accuracy" in words
    (axes,) = figure.axes
    marked = {line.get_gid(): line for line in axes.get_lines() if line.get_gid()}
    assert marked.keys() == {f"point-{row.candidate}" for row in results.front}
    for row in results.front:
        line = marked[f"point-{row.candidate}"]
        place = [float(np.asarray(values).item()) for values in line.get_data()]
        assert place == pytest.approx([100 * row.flops_fraction, 100 * (1 - row.val_accuracy)])
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "fewer errors are further up"


def test_smaller_dense_networks_are_points_with_their_names_and_accuracies(results: RunResults) -> None:
    assert results.dense is not None and results.dense.flops is not None
    siblings = [
        Sibling(
            name="timm:mobilenetv3_small_100.lamb_in1k",
            weights="small.safetensors",
            weights_hash=str(share),
            flops=round(share * results.dense.flops),
            params=1,
            val_accuracy=accuracy,
            test_accuracy=accuracy - 0.01,
        )
        for share, accuracy in ((0.05, 0.5), (0.29, 0.99), (0.9, 0.999))
    ]
    figure, words = drawn("front", replace(results, siblings=siblings), COLUMN_IN)
    assert "smaller dense network" in words and words.count("timm:mobilenetv3") == 3
    places = [line.get_xdata() for line in figure.axes[0].get_lines() if line.get_marker() == "D"]
    assert [float(place[0]) for place in places if len(place)] == pytest.approx([5, 29, 90], abs=0.1)  # type: ignore[arg-type,index]
    assert_text_inside(figure)


def with_these(results: RunResults, **worked_out: Any) -> RunResults:
    """Return the same results with other values of cached properties."""
    made = replace(results)
    vars(made).update(worked_out)
    return made


def test_intervals_of_several_seeds_are_drawn(results: RunResults) -> None:
    front = [replace(row, val_interval=0.01) for row in results.front]
    _, words = drawn("front", with_these(results, front=front), COLUMN_IN)
    assert "95 % interval" in words and "95 % interval" not in drawn("front", results, COLUMN_IN)[1]


def test_front_of_a_latency_budget_is_drawn_over_latency(tmp_path: Path) -> None:
    store = make_run(tmp_path)
    run = store.run()
    run["spec"] |= {"budget_flops": None, "budget_latency": 0.6}
    store.write_json("run.json", run)
    results = read_run_results(store)
    rows = [replace(row, latency_fraction=0.9 - row.flops_fraction) for row in results.rows]
    results = with_these(results, rows=rows, front=rows[-2:])
    figure, words = drawn("front", results, COLUMN_IN)
    assert "predicted latency, % of the dense network" in words and "budget 60 %" in words
    line = next(line for line in figure.axes[0].get_lines() if line.get_gid() == f"point-{rows[-1].candidate}")
    latency = rows[-1].latency_fraction
    assert latency is not None
    assert line.get_xdata()[0] == pytest.approx(100 * latency)  # type: ignore[index]


def test_widths_are_fractions_of_the_dense_network(results: RunResults) -> None:
    figure, words = drawn("widths", results, PAGE_IN)
    assert all(name in words for name in GROUPS)
    for axes, row in zip(figure.axes, results.spread, strict=True):
        (_, kept) = axes.containers
        shares = [100 * row.widths[name] / dense for name, dense in GROUPS.items()]
        assert [bar.get_height() for bar in kept] == pytest.approx(shares)
        assert f"{row.widths['head<b>']} of 44" in words


@pytest.mark.parametrize("number", [1, 200])
def test_widths_of_networks_of_any_depth_are_drawn(results: RunResults, number: int) -> None:
    groups = {f"a.rather.long.name.of.a.layer.in.block.{place}": 8 for place in range(number)}
    deep = replace(results, run=results.run.model_copy(update={"graph": GraphRecord(groups=groups)}))
    _, words = drawn("widths", deep, COLUMN_IN)
    assert 1 <= words.count("layer.in.block") <= 22


def test_methods_are_drawn_from_the_best_to_the_worst(results: RunResults) -> None:
    figure, words = drawn("ablation", results, PAGE_IN)
    assert len(figure.axes) == 3 and all(f"up to {share} % of the FLOPs" in words for share in ("30", "20", "15"))
    best = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    at_all = {method: max(r.best.val_accuracy for r in results.ablation if r.method == method) for method in best}
    assert best == sorted(at_all, key=lambda method: -at_all[method]) and set(best) == {"l1", "l2", "random"}


def test_progress_over_time_is_drawn_to_its_end(results: RunResults) -> None:
    figure, words = drawn("cost", results, COLUMN_IN)
    assert "worker-minutes" in words and "first fine-tuned" in words
    steps = figure.axes[0].get_lines()[0]
    assert steps.get_xdata()[-1] == pytest.approx(44 * 0.4 / 60)  # type: ignore[index]
    spent = [replace(row, gpu_hours=3.0) for row in results.spent]
    assert "GPU-hours" in drawn("cost", with_these(results, spent=spent, on_gpus=True, hours=12.0), COLUMN_IN)[1]


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_figures_of_a_run_without_trials_are_empty(tmp_path: Path, name: str) -> None:
    Store(tmp_path).create(RunRecord())
    drawn(name, read_run_results(Store(tmp_path)), COLUMN_IN)


def test_many_candidates_become_one_image_inside_the_figure(results: RunResults) -> None:
    rows = [replace(row, candidate=f"{row.candidate}-{copy}") for row in results.rows for copy in range(40)]
    with canvas(COLUMN_IN, 3.0) as made:
        figures.FIGURES["front"].draw(made, with_these(results, rows=rows))
        assert len(save(made, "svg")) < 300_000


def test_marks_of_methods_differ_in_shape_and_colour() -> None:
    known = marks([*(f"method{number}" for number in range(20)), "random"])
    assert len({(mark.colour, mark.marker) for mark in known.values()}) == 21
    assert len({mark.marker for mark in list(known.values())[:7]}) == 7


@pytest.mark.parametrize(
    ("smallest", "largest", "some"),
    [(8, 24, {10: "90", 20: "80"}), (0.05, 100, {0.1: "99.9", 1: "99", 10: "90"}), (1.0, 3.0, {1: "99", 2: "98"})],
)
def test_axis_of_accuracies_has_a_few_round_ticks(smallest: float, largest: float, some: dict[float, str]) -> None:
    ticks = accuracy_ticks(smallest, largest)
    assert 3 <= len(ticks) <= 7 and some.items() <= ticks.items()
    assert all(smallest <= error <= largest for error in ticks)


def test_labels_are_thinned_evenly() -> None:
    assert thinned(list("abcdef"), 3) == {0: "a", 2: "c", 4: "e"} and thinned(["a"], 3) == {0: "a"}


def test_inline_figure_has_the_colours_of_the_page_and_links_to_its_rows(results: RunResults) -> None:
    row = results.front[0]
    svg = figures.element("front", results, label='a "<b>"', hovers={row.candidate: "says <script>"})
    root = ElementTree.fromstring(svg)
    (link,) = root.iter("a")
    assert link.attrib["href"] == f"#candidate-{row.candidate}" and "says &lt;script&gt;" in svg
    assert (link.find("title") is not None) and link.find("g") is not None
    assert "#1a1a1b" not in svg and "var(--ink)" in svg and "var(--paper)" in svg
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(ids) == len(set(ids)) and all(name.startswith("front-") for name in ids)
    assert all(used in ids for used in re.findall(r'(?:href="#|url\(#)(front-[^")]*)', svg))
