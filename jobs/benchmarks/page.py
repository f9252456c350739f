"""How fast the page is with thousands of trials, in a real Chromium on this machine.

    python jobs/benchmarks/page.py --trials 5000

Makes up a run (`long_run.py`), serves it by `raprune serve`, and measures on fresh pages, with nothing in the cache:

    first paint   from asking for the page to the first thing on the screen, and to all trials in the chart
    hover         work for one move of the pointer over the chart: finding the point, its recipe, layout, paint
    filter        work for one change of the filter: trials, chart and table drawn anew
    pick, sort    work for one step of a slider; for another order of the table

Work is what the page's one thread computes, as Chromium counts it, with all that follows until the page is still.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bar import show
from long_run import make_run
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
VISITS = 7
FIRST_PAINT_MS = 2000.0
WORK_MS = 50.0

PAINT = """() => ({
    first: performance.getEntriesByName("first-contentful-paint")[0].startTime,
    drawn: performance.getEntriesByName("drawn")[0].startTime,
})"""

HOVER = """(i) => {
    const host = document.getElementById("front-chart");
    const box = host.getBoundingClientRect();
    const clientX = box.left + 60 + ((i * 137) % (box.width - 90));
    const clientY = box.top + 30 + ((i * 53) % (box.height - 90));
    host.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX, clientY }));
}"""

CHANGE = """([id, value]) => {
    const node = document.getElementById(id);
    node.value = value;
    node.dispatchEvent(new Event("input", { bubbles: true }));
}"""

SORT = """() => document.querySelector("#trials-table th[data-key=val_accuracy] button").click()"""

WORDS = [
    "r",
    "re",
    "rec",
    "reco",
    "recon global",
    "recon global 0.1",
    "zzz",
    "",
    "search-01",
    "search-012",
    "taylor",
    "",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--run", help="a run that is there, instead of one made up")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or make_run(Path(folder) / "run", trials=given.trials).uri
        with served(run) as address, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            met = [*first_paint(browser, address), *work(browser, address)]
            browser.close()
    sys.exit(0 if all(met) else 1)


@contextmanager
def served(run: str) -> Iterator[str]:
    """The address at which `raprune serve` shows the run."""
    command = [sys.executable, "-m", "raprune.cli", "serve", run, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        try:
            yield found[0]
        finally:
            process.terminate()


def first_paint(browser: Browser, address: str) -> list[bool]:
    """Opens the page again and again; the first visit, on which the server reads the store, counts as well."""
    seen = []
    for _ in range(VISITS):
        page = opened(browser, address)
        seen.append(page.evaluate(PAINT))
        page.context.close()
    met = []
    for name, key in (("first paint", "first"), ("all trials drawn", "drawn")):
        times = [one[key] for one in seen]
        what = f"{name} (median of {VISITS}, worst {max(times):.0f})"
        met.append(show(what, figure=statistics.median(times), bar=FIRST_PAINT_MS, unit="ms", more_is_better=False))
    return met


def work(browser: Browser, address: str) -> list[bool]:
    """What interactions cost the page's thread."""
    page = opened(browser, address)
    thread = Thread(page)
    met = [
        _judge("hover", [thread.work(HOVER, i) for i in range(60)]),
        _judge("filter, chart in sight", [thread.work(CHANGE, ["filter-text", word]) for word in WORDS]),
        _judge("pick", [thread.work(CHANGE, ["pick-flops", share]) for share in range(5, 100, 5)]),
    ]
    page.locator("#trials-scroll").scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    met.append(_judge("filter, table in sight", [thread.work(CHANGE, ["filter-text", word]) for word in WORDS]))
    met.append(_judge("sort", [thread.work(SORT, None) for _ in range(10)]))
    page.context.close()
    return met


class Thread:
    """The page's own thread."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._session = page.context.new_cdp_session(page)
        # Time that the thread computes, not time that a busy machine keeps it waiting.
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def work(self, script: str, argument: Any) -> float:
        """Milliseconds that the thread computes because of the script, until nothing is left to draw."""
        before = self._computed_ms()
        self._page.evaluate(script, argument)
        self._page.wait_for_timeout(150)
        return self._computed_ms() - before

    def _computed_ms(self) -> float:
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return 1000.0 * next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def opened(browser: Browser, address: str) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    page.goto(address)
    page.wait_for_selector("html[data-drawn]", state="attached")
    page.wait_for_timeout(1500)
    return page


def _judge(name: str, times: list[float]) -> bool:
    what = f"{name} (median of {len(times)}, worst {max(times):.1f})"
    return show(what, figure=statistics.median(times), bar=WORK_MS, unit="ms", more_is_better=False)


if __name__ == "__main__":
    main()
