"""The page in a real Chromium, served by a real `raprune serve`: every interaction, by pointer and by keys.

One browser and one server for all tests; each gets a page of its own. Skipped where there is no Chromium.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

import raprune.page
from raprune.records import Stage, Trial, TrialState
from raprune.results.ablation import ablation
from raprune.results.front import budget_of, front, pick
from raprune.results.progress import progress, spent
from raprune.results.rows import CandidateRow, candidates
from raprune.results.stages import FILE, FINETUNE, SCORES, SEARCH, Stages
from raprune.spec.budget import Budget
from raprune.store.folder import Store
from tests.page.browsing import NARROW, WIDE, Open, Server, brightness, reached_by_tab

NUM_TRIALS = 700
HOSTILE = """<img src=x onerror="window.hacked = 1"><script>window.hacked = 2</script> & "quoted" </td>"""


def _long_run() -> ModuleType:
    place = Path(__file__).parents[2] / "jobs" / "benchmarks" / "long_run.py"
    described = importlib.util.spec_from_file_location("long_run", place)
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run with failures, rungs, repeats, latencies; one network and its training are stored."""
    made: Store = _long_run().make_run(
        tmp_path_factory.mktemp("page") / "run", trials=NUM_TRIALS, error=f"{HOSTILE}\nat line 2"
    )
    best = _best(made)
    made.write_json(f"models/{best.candidate}/recipe.json", {"trial_id": best.trial_id})
    made.write_bytes(f"models/{best.candidate}/weights.safetensors", b"weights")
    epochs = [{"epoch": n, "epochs": 3.0, "train_loss": 1 / n, "train_accuracy": 0.6, "lr": 0.1} for n in (1, 2, 3)]
    made.write_json(f"curves/{best.trial_id}.json", epochs)
    conditions = {"device": "AMD EPYC", "threads": 2, "precision": "float32"}
    single, batch = (
        conditions | {"batch_size": size, "dense_ms": dense_ms, "candidates": {best.candidate: 2.0}}
        for size, dense_ms in ((1, 2.4), (64, 5.0))
    )
    made.write_json("report/latency.json", {"conditions": [single, batch], "budget": None})
    return made


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    served = Server(store.uri)
    served.start()
    yield served
    served.stop()


def _best(store: Store) -> CandidateRow:
    return pick(candidates(store.trials()), budget_of(store.record()))


def _of(page: Page, trial: str) -> Locator:
    return page.locator("#detail-body h3", has_text=trial)


def _rows(page: Page) -> Locator:
    return page.locator("#trials-table tbody tr[data-trial]")


def _see(page: Page, section: str) -> None:
    page.locator(section).scroll_into_view_if_needed()


def _set(slider: Locator, value: float) -> None:
    slider.evaluate(
        "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', { bubbles: true })); }", value
    )


def test_head_shows_the_progress_of_the_run(page: Page, store: Store) -> None:
    trials = store.trials()
    now = progress(store.record(), trials)
    figures = page.locator("#figures")
    expect(figures).to_contain_text(f"{now.searched} of {now.trials}")
    expect(figures).to_contain_text(f"{now.hypervolume:.4f}")
    expect(figures).to_contain_text(f"{100 * _best(store).val_accuracy:.2f} %")
    expect(figures).to_contain_text(f"{now.gpu_hours:.1f}")
    for state, number in now.states.items():
        expect(figures).to_contain_text(f"{number} {state.lower()}")
    expect(page.locator("#run-name")).to_have_text(Path(store.uri).name)
    expect(page.locator("#run-asked")).to_have_text(
        "resnet50 on imagenet: at most 50 % of the FLOPs, at least 73.13 % accuracy"
    )


def test_stages_are_listed_with_bar_and_time_left(open_page: Open, store: Store) -> None:
    stages = Stages()
    stages.begin(SCORES, total=55, unit="groups")
    stages.expect({SEARCH: 40.0, FINETUNE: 240.0})
    stages.begin(SEARCH, total=100, unit="trials")
    stages.update(done=12, detail="search-00012, scores: group 3 of 9")
    store.write_json(FILE, stages.now().to_json())
    try:
        page = open_page()
        items = page.locator("#stages li")
        expect(items).to_have_count(3)
        expect(items.nth(0)).to_contain_text(SCORES)
        expect(items.nth(1)).to_contain_text("12 of 100 trials")
        expect(items.nth(1)).to_contain_text("search-00012, scores: group 3 of 9")
        expect(page.locator("#stages progress")).to_have_attribute("value", "12")
        expect(items.nth(2)).to_contain_text("about 4 min")
        expect(page.locator("#figures")).to_contain_text("about, of the whole run; now: search")
    finally:
        store.remove(FILE)


def test_warnings_of_the_run_are_shown_and_pushed(page: Page, store: Store) -> None:
    warnings = page.locator("#warnings")
    expect(warnings).to_be_hidden()
    try:
        store.note({"warnings": [f"The dense network {HOSTILE} scores 9.7%.", "Another one."]})
        expect(warnings.locator("li")).to_have_text(
            [f"Warning: The dense network {HOSTILE} scores 9.7%.", "Warning: Another one."]
        )
    finally:
        store.note({"warnings": []})
    expect(warnings).to_be_hidden()


def test_rows_in_the_browser_are_those_of_the_command_line(page: Page, store: Store) -> None:
    found = page.evaluate(
        """async () => {
            const { Trials, rowsOf } = await import("./static/trials.js");
            const trials = new Trials();
            const asked = async (path) => (await fetch(`./api/${path}`)).json();
            trials.append((await asked("trials")).columns);
            const rows = rowsOf(trials, await asked("rows"));
            const id = (row) => trials.get(row.trial, "trial_id");
            return {
                rows: rows.map((row) => [id(row), row.candidate, row.accuracy, row.interval, row.repeats.length]),
                front: rows.filter((row) => row.onFront.includes("flops")).map(id),
                starred: rows.filter((row) => row.starred).map(id),
            };
        }"""
    )
    trials, run = store.trials(), store.record()
    rows = candidates(trials)
    assert found["rows"] == [
        [row.trial_id, row.candidate, row.val_accuracy, row.val_interval, len(row.repeats)] for row in rows
    ]
    assert any(row.val_interval for row in rows)
    assert found["front"] == [row.trial_id for row in front(trials, budget_of(run))]
    best = progress(run, trials).best
    assert best is not None and found["starred"] == [best.trial_id]


def test_page_decides_nothing_about_the_front_by_itself() -> None:
    scripts = (Path(raprune.page.__path__[0]) / "static").glob("*.js")
    rules = re.compile(r"STUDENT|export function (front|within|pick|candidates)\b")
    assert [script.name for script in scripts if rules.search(script.read_text())] == []


def test_point_of_the_front_shows_its_recipe_when_hovered_and_details_when_clicked(page: Page, store: Store) -> None:
    rows = front(store.trials(), budget_of(store.record()))
    page.locator("#front-chart").focus()
    page.keyboard.press("Home")
    ring = page.locator("#front-chart .ring.hovered")
    x, y = float(ring.get_attribute("cx") or 0), float(ring.get_attribute("cy") or 0)
    page.mouse.move(0, 0)
    page.locator("#filter-text").focus()
    expect(page.locator("#front-chart .tip")).to_be_hidden()
    page.locator("#front-chart").hover(position={"x": x, "y": y})
    tip = page.locator("#front-chart .tip")
    expect(tip).to_contain_text(f"{rows[0].method} · {rows[0].trial_id}")
    expect(tip).to_contain_text(f"{100 * rows[0].val_accuracy:.2f} %")
    expect(tip).to_contain_text(f"{rows[0].flops:,}")
    expect(tip).to_contain_text(rows[0].allocation)
    page.locator("#front-chart").click(position={"x": x, "y": y})
    expect(_of(page, rows[0].trial_id)).to_be_visible()
    assert page.url.endswith(f"#trial={rows[0].trial_id}")
    # The point that is selected shows where it is; the empty corner has none.
    page.locator("#front-chart").hover(position={"x": 62, "y": 40})
    expect(tip).to_be_hidden()


def test_arrow_keys_in_the_chart_move_along_the_front(page: Page, store: Store) -> None:
    rows = front(store.trials(), budget_of(store.record()))
    page.locator("#front-chart").focus()
    said = page.locator("#front-said")
    page.keyboard.press("Home")
    for row in rows:
        expect(said).to_contain_text(row.trial_id)
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(said).to_contain_text(rows[-2].trial_id)
    page.keyboard.press("ArrowDown")
    expect(said).not_to_contain_text(rows[-2].trial_id)
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(_of(page, rows[-1].trial_id)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#front-chart .tip")).to_be_hidden()


def test_switches_of_the_chart_change_axes_and_colours(page: Page) -> None:
    axes = page.locator("#front-chart svg.axes")
    expect(axes).to_contain_text("FLOPs, % of the dense network")
    expect(axes).to_contain_text("budget 50 %")
    expect(axes).to_contain_text("accuracy floor 73.13 %")
    expect(axes).to_contain_text("dense network 76.13 %")
    page.locator("#cost-flops").focus()
    page.keyboard.press("ArrowRight")
    expect(axes).to_contain_text("parameters, % of the dense network")
    expect(axes).not_to_contain_text("budget")
    page.keyboard.press("ArrowRight")
    expect(axes).to_contain_text("predicted latency, %")
    expect(axes).to_contain_text("logarithm of the error")
    page.get_by_role("radio", name="linear").check()
    expect(axes).not_to_contain_text("logarithm")
    legend = page.locator("#front-legend")
    expect(legend).to_contain_text("below the last rung")
    expect(legend).not_to_contain_text("taylor")
    page.get_by_role("radio", name="by method").check()
    expect(legend).to_contain_text("taylor")


def test_dragged_rectangle_zooms_the_chart(page: Page) -> None:
    whole = page.locator("#front-zoom-out")
    chart = page.locator("#front-chart").bounding_box()
    assert chart is not None
    expect(whole).to_be_hidden()
    ticks = page.locator("#front-chart svg.axes").inner_html()
    page.mouse.move(chart["x"] + 200, chart["y"] + 60)
    page.mouse.down()
    page.mouse.move(chart["x"] + 420, chart["y"] + 200, steps=4)
    expect(page.locator("#front-chart .rubber")).to_be_visible()
    page.mouse.up()
    expect(whole).to_be_visible()
    assert page.locator("#front-chart svg.axes").inner_html() != ticks
    whole.click()
    expect(whole).to_be_hidden()
    page.keyboard.press("+")
    expect(whole).to_be_visible()
    page.keyboard.press("0")
    expect(whole).to_be_hidden()


def test_details_of_a_trial_hold_widths_history_curve_and_downloads(page: Page, store: Store) -> None:
    best = _best(store)
    expect(_of(page, best.trial_id)).to_be_visible()
    widths = page.locator(".widths tbody tr")
    dense = store.run()["graph"]["groups"]
    expect(widths).to_have_count(len(dense))
    for place, (group, channels) in enumerate(dense.items()):
        assert group in (text := widths.nth(place).inner_text()) and f"{best.widths[group]} / {channels}" in text
    measured = "1.20x as fast as dense at batch 1 (2.00 ms), 2.5x at batch 64 (2.00 ms): float32 on AMD EPYC, 2 threads"
    expect(page.locator("#detail-body")).to_contain_text(measured)
    history = page.locator(".history li")
    expect(history).to_have_count(6)
    expect(history.nth(0)).to_contain_text("cut and repaired")
    expect(page.locator(".history [aria-current]")).to_contain_text("fine-tuned")
    expect(page.locator(".curves")).to_have_attribute("aria-label", re.compile("over 3 epochs.*training loss 0.3333"))
    with page.expect_download() as weights:
        page.get_by_role("link", name="weights.safetensors").click()
    assert weights.value.path().read_bytes() == b"weights"
    with page.expect_download() as recipe:
        page.get_by_role("link", name="recipe.json").click()
    assert json.loads(recipe.value.path().read_bytes()) == {"trial_id": best.trial_id}
    expect(page.locator("#detail-body code").first).to_have_text(
        re.compile(rf"raprune export \S+ {best.candidate} FOLDER$")
    )
    expect(page.locator("#detail-body code").last).to_have_text(re.compile(r"FOLDER --format onnx$"))
    history.nth(1).get_by_role("button").click()
    expect(page.locator(".history [aria-current]")).to_contain_text("rung 1")


def test_sliders_pick_at_a_budget(page: Page, store: Store) -> None:
    rows = candidates(store.trials())
    result, line = page.locator("#pick-result"), page.locator("#pick-command code")
    expect(result).to_contain_text(_best(store).candidate)
    _set(page.locator("#pick-flops"), 20)
    expect(result).to_contain_text(pick(rows, Budget(flops=0.2)).candidate)
    expect(line).to_have_text(f"raprune pick {store.uri} --budget-flops 0.2")
    page.locator("#pick-flops").focus()
    page.keyboard.press("ArrowRight")
    expect(line).to_contain_text("--budget-flops 0.205")
    _set(page.locator("#pick-latency"), 45)
    expect(result).to_contain_text(pick(rows, Budget(flops=0.205, latency=0.45)).candidate)
    page.locator("#pick-floor").fill("40")
    expect(result).to_contain_text(pick(rows, Budget(flops=0.205, latency=0.45), min_accuracy=0.4).candidate)
    page.locator("#pick-select").click()
    expect(page.locator("#detail-body .facts")).to_contain_text(
        pick(rows, Budget(flops=0.205, latency=0.45), min_accuracy=0.4).candidate
    )
    page.locator("#pick-floor").fill("99")
    expect(result).to_contain_text("has a validation accuracy of 0.99: the best")
    expect(page.locator("#pick-select")).to_be_disabled()
    _set(page.locator("#pick-flops"), 1)
    expect(result).to_contain_text("No candidate is within 1.0% of the dense network's FLOPs")


def test_progress_is_shown_over_time_and_over_gpu_hours(page: Page, store: Store) -> None:
    _see(page, "#trend-chart")
    axes = page.locator("#trend-chart svg.axes")
    expect(axes).to_contain_text("hypervolume")
    expect(axes).to_contain_text("best within budget")
    expect(axes).to_contain_text("since the search began")
    page.locator("#over-gpu_hours").check()
    expect(axes).to_contain_text("GPU-hours")
    page.locator("#trend-chart").focus()
    page.keyboard.press("End")
    last = spent(store.trials(), budget_of(store.record()))[-1]
    expect(page.locator("#trend-said")).to_contain_text(f"hypervolume {last.hypervolume:.4f}")
    page.locator("#trend-chart").hover(position={"x": 300, "y": 100})
    expect(page.locator("#trend-chart .tip")).to_contain_text("hypervolume")


def test_ranges_of_settings_filter_the_trials(page: Page) -> None:
    _see(page, "#parallel-chart")
    page.locator("#parallel-method").select_option("reconstruction")
    axes = page.locator("#parallel-chart svg.axes")
    expect(axes).to_contain_text("ridge")
    expect(axes).to_contain_text("sensitivity")
    counted = page.locator("#parallel-count")
    expect(counted).to_have_text(re.compile(r"^\d+ networks$"))
    handle = page.get_by_role("slider", name="validation, %, lowest to keep")
    handle.focus()
    for _ in range(3):
        page.keyboard.press("PageUp")
    expect(counted).to_contain_text("within the ranges")
    assert float(handle.get_attribute("aria-valuenow") or 0) == 60
    kept = int((counted.inner_text().split(", ")[1]).split()[0].replace(",", ""))
    expect(page.locator("#filter-count")).to_have_text(f"{kept} of {NUM_TRIALS} trials")
    _see(page, "#trials-scroll")
    expect(page.locator("#trials-table")).to_have_attribute("aria-rowcount", str(kept + 1))
    page.locator("#parallel-clear").click()
    expect(page.locator("#filter-count")).to_have_text(f"{NUM_TRIALS} trials")
    # By pointer: along an axis.
    title = page.locator("#parallel-chart .handle").first.bounding_box()
    assert title is not None
    page.mouse.move(title["x"] + 8, title["y"] - 40)
    page.mouse.down()
    page.mouse.move(title["x"] + 8, title["y"] - 140, steps=4)
    page.mouse.up()
    expect(counted).to_contain_text("within the ranges")
    page.locator("summary", has_text="Axes").click()
    page.get_by_role("checkbox", name="ridge").uncheck()
    expect(axes).not_to_contain_text("ridge")


def test_methods_are_compared_in_a_table(page: Page, store: Store) -> None:
    rows = sorted(ablation(store.trials(), budget_of(store.record())), key=lambda row: -row.finetuning_epochs)
    shown = page.locator("#ablation-table tbody tr:not(.group)")
    expect(shown).to_have_count(len(rows))
    for place, row in enumerate(rows):
        assert row.method in (text := shown.nth(place).inner_text()) and f"{100 * row.best.val_accuracy:.2f} %" in text
    shown.nth(len(rows) - 1).get_by_role("button").click()
    expect(_of(page, rows[-1].best.trial_id)).to_be_visible()


def test_table_of_trials_is_sorted_and_moved_through_by_keys(page: Page, store: Store) -> None:
    trials = store.trials()
    _see(page, "#trials-scroll")
    table, rows = page.locator("#trials-table"), _rows(page)
    expect(table).to_have_attribute("aria-rowcount", str(NUM_TRIALS + 1))
    expect(rows.first).to_contain_text(trials[-1].trial_id)
    assert rows.count() < 60
    table.get_by_role("button", name="validation").click()
    accuracies = sorted((t.metrics.accuracy for t in trials if t.metrics is not None), reverse=True)
    expect(table.get_by_role("columnheader", name="validation")).to_have_attribute("aria-sort", "descending")
    expect(rows.first).to_contain_text(f"{100 * accuracies[0]:.2f} %")
    table.get_by_role("button", name="validation").click()
    expect(rows.first).to_contain_text(f"{100 * accuracies[-1]:.2f} %")
    # What failed has no accuracy, and stands last either way.
    rows.first.focus()
    page.keyboard.press("End")
    expect(table.locator(f'tr[aria-rowindex="{NUM_TRIALS + 1}"]')).to_be_focused()
    expect(table.locator(f'tr[aria-rowindex="{NUM_TRIALS + 1}"]')).to_contain_text("failed")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(table.locator('tr[aria-selected="true"]')).to_have_attribute("aria-rowindex", "3")
    assert rows.count() < 60


def test_filter_selects_by_words_state_stage_method_and_front(page: Page, store: Store) -> None:
    trials = store.trials()
    counted, table = page.locator("#filter-count"), page.locator("#trials-table")

    def left(number: int) -> None:
        expect(counted).to_have_text(f"{number} of {NUM_TRIALS} trials")
        _see(page, "#trials-scroll")
        expect(table).to_have_attribute("aria-rowcount", str(number + 1))

    _see(page, "#trials-scroll")
    page.locator("#filter-state").select_option("FAILED")
    left(sum(t.state is TrialState.FAILED for t in trials))
    page.locator("#filter-clear").click()
    expect(counted).to_have_text(f"{NUM_TRIALS} trials")
    page.locator("#filter-stage").select_option("finetune")
    left(sum(t.proposal.stage is Stage.FINETUNE for t in trials))
    page.locator("#filter-stage").select_option("")
    page.locator("#filter-method").select_option("taylor")
    page.locator("#filter-text").press_sequentially("GLOBAL rank")
    left(sum(t.proposal.method == "taylor" and t.proposal.allocation == "global_rank" for t in trials))
    page.locator("#filter-clear").click()
    page.locator("#filter-front").check()
    chosen = {row.candidate for row in front(trials, budget_of(store.record()))}
    left(sum(len(row.trials) for row in candidates(trials) if row.candidate in chosen))
    page.locator("#filter-text").fill("no such thing")
    expect(page.locator("#trials-empty")).to_have_text("No trial passes the filter.")


def test_text_of_a_trial_never_becomes_markup(page: Page, store: Store) -> None:
    failed = next(t for t in store.trials() if t.state is TrialState.FAILED)
    _see(page, "#trials-scroll")
    page.locator("#filter-text").fill(failed.trial_id)
    expect(_rows(page).first).to_contain_text(HOSTILE)
    _rows(page).first.click()
    expect(page.locator("#detail-body pre.error")).to_have_text(f"{HOSTILE}\nat line 2")
    assert page.locator("#detail-body img, #trials-table img, #trials-table script").count() == 0
    assert page.evaluate("window.hacked") is None


def test_address_with_a_trial_selects_it(open_page: Open, store: Store) -> None:
    trial = store.trials()[5].trial_id
    expect(_of(open_page(at=f"#trial={trial}"), trial)).to_be_visible()
    # One that is not there shows the best, and an address cannot bring markup along.
    hostile = open_page(at="#trial=%3Cimg%20src=x%20onerror=alert(1)%3E")
    expect(hostile.locator("#detail-body h3")).to_be_visible()
    assert hostile.locator("main img, aside img").count() == 0


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        (WIDE, "light"),
        (NARROW, "dark"),
        pytest.param(WIDE, "dark", marks=pytest.mark.nightly),
        pytest.param(NARROW, "light", marks=pytest.mark.nightly),
    ],
)
def test_page_has_no_accessibility_violation(open_page: Open, size: tuple[int, int], scheme: str) -> None:
    page = open_page(size=size, scheme=scheme)
    _see(page, "#trials-scroll")
    expect(_rows(page).first).to_be_visible()
    expect(page.locator(".widths")).to_be_visible()
    found = Axe().run(page).response["violations"]
    assert [(v["id"], v["impact"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found] == []


def test_theme_follows_the_system_until_one_is_chosen(open_page: Open) -> None:
    page = open_page(scheme="dark")
    assert brightness(page) < 40
    page.locator("#theme").select_option("light")
    assert brightness(page) > 200
    page.reload()
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert brightness(page) > 200 and page.locator("#theme").input_value() == "light"
    page.locator("#theme").select_option("")
    assert brightness(page) < 40
    page.emulate_media(color_scheme="light")
    assert brightness(page) > 200


def test_narrow_window_shows_every_part(open_page: Open, store: Store) -> None:
    page = open_page(size=NARROW)
    for part in (
        "#front-chart",
        ".pick",
        "#trend-chart",
        "#parallel-chart",
        "#ablation-table",
        "#trials-scroll",
        "#detail",
    ):
        _see(page, part)
        box = page.locator(part).bounding_box()
        assert box is not None and box["x"] >= 0 and box["width"] > 200, part
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW[0]
    # A row leads to the details, which are not beside the table here, and from there back.
    _see(page, "#trials-scroll")
    _rows(page).first.click()
    expect(_of(page, store.trials()[-1].trial_id)).to_be_in_viewport()
    page.locator("#detail-back").click()
    expect(page.locator("#trials-scroll")).to_be_in_viewport()


def test_controls_are_all_reached_by_keys(page: Page) -> None:
    # What was never in sight is not drawn yet.
    _see(page, "#parallel-chart")
    expect(page.locator("#parallel-chart .handle").first).to_be_visible()
    _see(page, "#trials-scroll")
    expect(_rows(page).first).to_be_visible()
    reached = reached_by_tab(page, 121)
    controls = {
        "theme", "filter-text", "filter-state", "filter-stage", "filter-method", "filter-front", "cost-flops",
        "front-chart", "pick-flops", "pick-params", "pick-latency", "pick-floor", "pick-select", "trend-chart",
        "parallel-method", "handle",
    }  # fmt: skip
    assert {*controls, "skip", "widths"} - reached == set()


def test_animations_stop_if_the_reader_prefers_reduced_motion(open_page: Open) -> None:
    page = open_page(motion="reduce")
    page.evaluate("document.getElementById('run-state').className = 'badge live'")
    assert page.evaluate("getComputedStyle(document.getElementById('run-state'), '::before').animationName") == "none"


def test_new_trials_appear_in_an_open_page(page: Page, store: Store) -> None:
    trials = store.trials()
    page.locator("#filter-text").fill("pushed_method")
    expect(page.locator("#filter-count")).to_contain_text(f"0 of {len(trials)}")
    _see(page, "#trials-scroll")
    new = [_renamed(trials[i], 900_000 + i, "pushed_method") for i in (0, 1)]
    store.append(new)
    expect(page.locator("#filter-count")).to_have_text(f"2 of {len(trials) + 2} trials")
    expect(_rows(page).first).to_contain_text(new[-1].trial_id)
    expect(page.locator("#filter-method option", has_text="pushed_method")).to_have_count(1)
    now = progress(store.record(), store.trials())
    expect(page.locator("#figures")).to_contain_text(f"{now.searched} of {now.trials}")
    # It was pushed: not by a page that was loaded anew.
    assert page.evaluate("performance.getEntriesByType('navigation').length") == 1


def _renamed(trial: Trial, number: int, method: str) -> Trial:
    proposal = replace(trial.proposal, number=number, method=method, parent=None, rung=0)
    candidate = None if trial.candidate is None else replace(trial.candidate, method=method)
    return replace(trial, trial_id=proposal.trial_id, proposal=proposal, candidate=candidate)


def test_unreachable_store_is_reported_until_it_is_back(page: Page, store: Store) -> None:
    expect(page.locator("#run-state")).not_to_have_text("store unreachable")
    place = Path(store.uri)
    place.rename(place.with_name("elsewhere"))
    try:
        expect(page.locator("#run-state")).to_have_text("store unreachable")
        expect(page.locator("#notice")).to_be_visible()
        expect(page.locator("#figures")).to_contain_text("Hypervolume")
    finally:
        place.with_name("elsewhere").rename(place)
    expect(page.locator("#run-state")).not_to_have_text("store unreachable")
    expect(page.locator("#notice")).to_be_hidden()


def test_stopped_server_is_reported_and_missed_trials_are_loaded(page: Page, server: Server, store: Store) -> None:
    expect(page.locator("#run-state")).not_to_have_text("connection lost")
    before = len(store.trials())
    server.stop()
    expect(page.locator("#run-state")).to_have_text("connection lost")
    expect(page.locator("#notice")).to_contain_text("may be old")
    store.append([_renamed(store.trials()[3], 950_000, "after_the_gap")])
    time.sleep(0.5)
    server.start()
    expect(page.locator("#filter-count")).to_have_text(f"{before + 1} trials", timeout=30_000)
    expect(page.locator("#run-state")).not_to_have_text("connection lost")


def test_other_run_in_the_folder_replaces_the_first(page: Page, store: Store) -> None:
    """The last test: it takes the run away."""
    expect(page.locator("#detail-body h3")).to_be_visible()
    shutil.rmtree(store.uri)
    other = _long_run().make_run(store.uri, trials=90, seed=1)
    expect(page.locator("#filter-count")).to_have_text(f"{len(other.trials())} trials", timeout=30_000)
    expect(_of(page, _best(other).trial_id)).to_be_visible()
