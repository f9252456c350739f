"""A real Chromium that opens pages of a real `raprune serve`.

The page's policy forbids `eval`, also to the browser's driver: what is waited for is an element.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.tools import require

QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDE = (1440, 1000)
NARROW = (360, 740)

Open = Callable[..., Page]


class Server:
    """`raprune serve` of a folder, on a port that stays the same when it is begun anew."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.port = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "raprune.cli", "serve", self.uri, "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._process.stdout is not None
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", said)):
            line = self._process.stdout.readline()
            assert line, f"the server ended: {said}"
            said += line
        self.port = int(found[1])

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; the test is skipped where there is none."""
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=require("chromium"), args=QUIET)
        yield opened
        opened.close()


@contextmanager
def opener(browser: Browser, server: Server) -> Iterator[Open]:
    """Opens pages, drawn; at the end nothing was asked of another host, and no script failed."""
    contexts, asked, complaints = [], [], []

    def opened(
        *, size: tuple[int, int] = WIDE, scheme: Any = "light", motion: Any = "no-preference", at: str = ""
    ) -> Page:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion=motion
        )
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda told: complaints.append(told.text) if _complains(told) else None)
        page.goto(server.address + at)
        page.wait_for_selector("html[data-drawn]", state="attached")
        return page

    expect.set_options(timeout=15_000)
    yield opened
    for context in contexts:
        context.close()
    assert {urlsplit(url).netloc for url in asked} <= {f"127.0.0.1:{server.port}"}
    # Helpers have no rewritten asserts: the message is given.
    assert not complaints, complaints


def reached_by_tab(page: Page, presses: int) -> set[str]:
    """Ids or classes of what the Tab key reaches from the top; each shows that it has the focus."""
    reached = set()
    page.evaluate("window.scrollTo(0, 0)")
    for _ in range(presses):
        page.keyboard.press("Tab")
        focused, outlined = page.evaluate(
            """() => {
                const node = document.activeElement;
                const shown = node.matches(".switch input") ? node.nextElementSibling : node;
                const name = node.id || node.className.baseVal || node.className || node.tagName;
                return [name, getComputedStyle(shown).outlineStyle !== "none"];
            }"""
        )
        if focused == "BODY":
            break
        reached.add(focused)
        assert outlined, f"no sign of the focus on {focused}"
    return reached


def brightness(page: Page) -> float:
    """Brightness of the page's ground, from 0 to 255."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(float(part) for part in re.findall(r"\d+", colour)[:3]) / 3


def _complains(told: ConsoleMessage) -> bool:
    # Tests stop the server and move the store away; on a busy machine a preloaded answer may be used late.
    expected = ("Failed to load resource", "was preloaded using link preload")
    return told.type in ("error", "warning") and not any(part in told.text for part in expected)
