"""The web application of a list of runs: the list, the fronts of any of them, and below it the page of each run.

A run is looked up among those that were found, by an id that is no path.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raprune.errors import StoreError
from raprune.page import answers
from raprune.page.access import Access
from raprune.page.app import run_page
from raprune.page.feed import Feed
from raprune.page.guard import Guarded
from raprune.page.overview import KnownRuns, Overview, id_of
from raprune.page.sending import MissingError, application, json_answer, package_routes, send
from raprune.results.run_list import ListedRun

MAX_OPEN = 16
"""Runs whose trials are held in memory at a time: of those that were opened, the ones used last."""

_FRESH_S = 1.0
"""How long an answer waits for a look at the folder, when there is something to answer already."""
_FIRST_S = 20.0


def make_runs_app(overview: Overview, rule: Access, *, is_closing: Callable[[], bool] = lambda: False) -> ASGIApp:
    """The page of the runs of `overview`; event streams end once `is_closing` says so."""
    page = RunsHandlers(overview, is_closing)
    routes = [
        *package_routes("runs.html"),
        Route("/api/runs", page.runs),
        Route("/api/fronts/{run}", page.fronts),
        Route("/run/{run}", page.run_without_slash),
        Mount("/run/{run}", app=page.run),
    ]
    return Guarded(application(routes), rule)


class RunsHandlers:
    """The handlers of all addresses of the list of runs."""

    def __init__(self, overview: Overview, is_closing: Callable[[], bool]) -> None:
        self._overview = overview
        self._is_closing = is_closing
        self._looking: asyncio.Task[KnownRuns | None] | None = None
        self._pages: OrderedDict[str, ASGIApp] = OrderedDict()

    async def runs(self, request: Request) -> Response:
        known, folder = await self._known(), self._overview.folder.name
        return send(request, await run_in_threadpool(lambda: json_answer(answers.list_runs(known, folder, id_of))))

    async def fronts(self, request: Request) -> Response:
        run = await self._find(request.path_params["run"])
        return send(request, await run_in_threadpool(lambda: json_answer(answers.list_fronts(run, id_of(run)))))

    async def run_without_slash(self, request: Request) -> Response:
        run = await self._find(request.path_params["run"])
        return RedirectResponse(f"./{id_of(run)}/", status_code=303, headers={"cache-control": "no-store"})

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on to the page of the run that the address names."""
        listed = await self._find(scope["path_params"]["run"])
        page = self._pages.pop(listed.name, None)
        if page is None:
            feed = Feed(self._overview.store_of(listed))
            page = run_page(feed, listed.name, self._is_closing, is_listed=True)
        self._pages[listed.name] = page
        while len(self._pages) > MAX_OPEN:
            self._pages.popitem(last=False)
        await page(scope, receive, send)

    async def _find(self, run_id: str) -> ListedRun:
        found = (await self._known()).find(run_id)
        if found is None:
            raise MissingError("The folder has no such run.", hint="./api/runs lists those that are there.")
        return found

    async def _known(self) -> KnownRuns:
        """The runs, after a look at the folder if one is due.

        Raises:
            StoreError: if nothing is known yet.
        """
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(run_in_threadpool(self._overview.look))
        until = time.monotonic() + (_FIRST_S if self._overview.known is None else _FRESH_S)
        while not self._looking.done() and time.monotonic() < until:
            await asyncio.wait({self._looking}, timeout=0.05)
        if self._looking.done():
            self._looking.result()
        known = self._overview.known
        if known is None:
            raise StoreError("The runs are still being read.", hint="Ask again in a moment.")
        return known
