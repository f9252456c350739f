"""Fixtures of the tests in a browser; each file has its own `server`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.page.browsing import Open, Server, chromium, opener


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def open_page(browser: Browser, server: Server) -> Iterator[Open]:
    with opener(browser, server) as opened:
        yield opened


@pytest.fixture
def page(open_page: Open) -> Page:
    return open_page()
