"""The list of runs in a real Chromium: choosing by boxes, the fronts in one chart, by pointer and by keys."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from raprune.page.overview import id_of
from raprune.results.run_list import ListedRun
from raprune.store.folder import RUN_FILE, Store
from tests.factories import LIVE_RUN, live_trial, make_short_run
from tests.page.browsing import NARROW, WIDE, Open, Server, brightness, reached_by_tab

HOSTILE = "<img src=x onerror=alert(1)>"


def run_id(name: str) -> str:
    return id_of(ListedRun(name=name, place=""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs on the digits of which one has no trial, one on other data, one that is broken."""
    folder = tmp_path_factory.mktemp("list")
    long = make_short_run(folder / "long", started_at=1_790_000_000.0, state="finished")
    long.append([live_trial(n, fraction=0.29 + n / 1e4, accuracy=0.97 + n / 1e4) for n in (60, 70, 80, 90, 100)])
    make_short_run(folder / "project" / "live", started_at=1_790_000_100.0)
    spec = LIVE_RUN["spec"] | {"data": {"name": "other"}}
    make_short_run(folder / HOSTILE, started_at=1_700_000_000.0, state="finished", spec=spec)
    Store(folder / "begun").create(make_short_run(folder / "project" / "third").record())
    (folder / "broken").mkdir()
    (folder / "broken" / RUN_FILE).write_text("{")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    served = Server(str(folder))
    served.start()
    yield served
    served.stop()
    del os.environ["XDG_CACHE_HOME"]


def box(page: Page, name: str) -> Locator:
    return page.get_by_role("checkbox", name=f"Show the front of {name} in the chart")


def fronts(page: Page) -> Locator:
    return page.locator("#fronts-chart .front-of-run:has(.line-of-run)")


def row(page: Page, name: str) -> Locator:
    return page.locator("#runs-table tbody tr").filter(has=page.get_by_role("rowheader", name=name))


def test_list_shows_state_budget_best_and_trials_of_each_run(page: Page) -> None:
    rows = page.locator("#runs-table tbody tr")
    expect(rows).to_have_count(6)
    expect(rows.last).to_contain_text("unreadable")
    expect(rows.last).to_contain_text("damaged")
    expect(row(page, "long")).to_contain_text("digits-net on digits: at most 30 % of the FLOPs")
    expect(row(page, "long")).to_contain_text("98.00 %")
    expect(row(page, "long")).to_contain_text("11 of 10")
    expect(row(page, "begun")).to_contain_text("none yet")
    expect(page.locator("#folder-said")).to_have_text(re.compile(r"^6 runs: .*2 finished.*1 unreadable"))


def test_newest_runs_on_the_same_data_are_chosen_at_first(page: Page) -> None:
    expect(fronts(page)).to_have_count(3)
    for name, chosen in (("long", True), ("project/live", True), ("project/third", True), (HOSTILE, False)):
        expect(box(page, name)).to_be_checked(checked=chosen)
    expect(box(page, "broken")).to_be_disabled()
    expect(page.locator("#fronts-note")).to_be_hidden()


def test_boxes_choose_the_runs_of_the_chart_and_of_the_address(page: Page, open_page: Open) -> None:
    page.locator("#runs-none").click()
    expect(fronts(page)).to_have_count(0)
    expect(page.locator("#fronts-chart")).to_contain_text("Choose runs by their boxes below.")
    box(page, "long").focus()
    page.keyboard.press("Space")
    expect(fronts(page)).to_have_count(1)
    expect(box(page, "long")).to_be_focused()
    box(page, HOSTILE).check()
    expect(page.locator("#fronts-legend li")).to_have_text(["long", HOSTILE])
    expect(page.locator("#fronts-note")).to_contain_text("different data")
    again = open_page(at=f"#{page.url.partition('#')[2]}")
    expect(fronts(again)).to_have_count(2)
    expect(box(again, "project/live")).not_to_be_checked()
    page.locator("#runs-all").click()
    expect(page.locator("#fronts-legend li")).to_have_count(5)
    expect(page.locator("#fronts-legend")).to_contain_text("no network yet")
    assert page.locator("main img").count() == 0


@pytest.mark.nightly
def test_run_keeps_its_colour_while_others_are_chosen(page: Page) -> None:
    colour = page.locator(f'.front-of-run[data-run="{run_id("long")}"]')
    before = colour.get_attribute("class")
    box(page, "project/live").uncheck()
    expect(fronts(page)).to_have_count(2)
    assert colour.get_attribute("class") == before
    marks = {
        group.locator(".mark-of-run").first.evaluate("node => getComputedStyle(node).fill")
        for group in fronts(page).all()
    }
    assert len(marks) == 2


def test_point_shows_its_network_under_the_pointer_and_opens_its_run(open_page: Open) -> None:
    page = open_page(at=f"#runs={run_id('long')}")
    expect(fronts(page)).to_have_count(1)
    mark = page.locator(".mark-of-run").last.bounding_box()
    assert mark is not None
    page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    tip = page.locator("#fronts-chart .tip")
    expect(tip).to_contain_text("long")
    expect(tip).to_contain_text("98.00 %")
    expect(tip).to_contain_text("30.0 % (300K)")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url(f"**/run/{run_id('long')}/#trial=search-00100")
    expect(page.locator("#detail-body h3")).to_contain_text("search-00100")
    page.locator("#all-runs").click()
    expect(page.locator("#folder")).to_contain_text("Runs in")


def test_keys_walk_along_a_front_and_to_another_run(page: Page) -> None:
    expect(fronts(page)).to_have_count(3)
    said = page.locator("#fronts-said")
    page.locator("#fronts-chart").focus()
    page.keyboard.press("Home")
    names = page.locator("#fronts-legend li a").all_inner_texts()
    expect(said).to_contain_text(names[0])
    first = said.inner_text()
    page.keyboard.press("ArrowRight")
    expect(said).not_to_have_text(first)
    page.keyboard.press("ArrowLeft")
    expect(said).to_have_text(first)
    page.keyboard.press("ArrowDown")
    expect(said).to_contain_text(names[1])
    page.keyboard.press("ArrowUp")
    expect(said).to_contain_text(names[0])
    page.keyboard.press("Escape")
    expect(page.locator("#fronts-chart .tip")).to_be_hidden()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_url("**/run/*/#trial=*")


def test_chart_switches_cost_unit_and_scale(page: Page) -> None:
    axes = page.locator("#fronts-chart svg.axes")
    expect(axes).to_contain_text("FLOPs, % of the run's own dense network")
    page.get_by_role("radio", name="parameters").check()
    expect(axes).to_contain_text("parameters, % of")
    page.get_by_role("radio", name="absolute").check()
    expect(axes).to_contain_text("10K")
    expect(axes).to_contain_text("logarithm of the error")
    page.get_by_role("radio", name="linear").check()
    expect(axes).not_to_contain_text("logarithm")
    expect(page.locator("#cost-latency")).to_be_hidden()
    assert "cost=params&unit=absolute" in page.url


@pytest.mark.nightly
def test_list_is_filtered_and_sorted(page: Page) -> None:
    names = page.locator("#runs-table tbody th")
    page.locator("#runs-filter").fill("finished digits-net")
    expect(names).to_have_count(2)
    page.locator("#runs-filter").fill("no such run")
    expect(page.locator("#runs-empty")).to_have_text("No run passes the filter.")
    page.locator("#runs-filter").fill("")
    page.get_by_role("button", name="best").click()
    expect(page.locator("th[data-key=best]")).to_have_attribute("aria-sort", "descending")
    expect(names.first).to_contain_text("long")
    page.get_by_role("button", name="best").click()
    expect(names.last).to_contain_text("broken")


@pytest.mark.nightly
def test_run_that_grows_moves_its_front(page: Page, folder: Path) -> None:
    expect(fronts(page)).to_have_count(3)
    Store(folder / "begun").append([live_trial(0, fraction=0.2, accuracy=0.97)])
    expect(row(page, "begun")).to_contain_text("97.00 %")
    box(page, "begun").check()
    expect(fronts(page)).to_have_count(4)
    marks = page.locator(f'.front-of-run[data-run="{run_id("begun")}"] .mark-of-run')
    expect(marks).to_have_count(1)
    Store(folder / "begun").append([live_trial(1, fraction=0.1, accuracy=0.95)])
    expect(marks).to_have_count(2)


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        (WIDE, "light"),
        (NARROW, "dark"),
        pytest.param(WIDE, "dark", marks=pytest.mark.nightly),
        pytest.param(NARROW, "light", marks=pytest.mark.nightly),
    ],
)
def test_list_is_accessible_and_fits_in_both_themes(open_page: Open, size: tuple[int, int], scheme: str) -> None:
    page = open_page(size=size, scheme=scheme)
    expect(fronts(page).first).to_be_visible()
    found = Axe().run(page).response["violations"]
    assert [(v["id"], v["impact"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert (brightness(page) < 40) == (scheme == "dark")


@pytest.mark.nightly
def test_list_is_reached_by_keys(page: Page) -> None:
    expect(fronts(page).first).to_be_visible()
    wanted = {"skip", "theme", "cost-flops", "fronts-chart", "runs-filter", "runs-all", "runs-none"}
    rows = {f"{what}-{run_id(name)}" for what in ("choose", "open") for name in ("long", "project/live")}
    assert wanted | rows <= reached_by_tab(page, 60)


@pytest.mark.nightly
def test_server_that_is_gone_is_told_and_caught_up_with(page: Page, server: Server) -> None:
    server.stop()
    expect(page.locator("#notice")).to_contain_text("does not answer")
    server.start()
    expect(page.locator("#notice")).to_be_hidden()
