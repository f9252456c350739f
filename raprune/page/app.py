"""The web application of a run's page: addresses, headers, events. It reads one store and writes nothing.

No text of a request becomes a path: names are looked up among the recorded names and the files of the package.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from raprune.errors import RapruneError, StoreError, UsageError
from raprune.page import answers
from raprune.page.access import Access
from raprune.page.archive import zipped
from raprune.page.feed import Away, Feed, KnownRun
from raprune.page.guard import Guarded
from raprune.page.sending import MissingError, Packed, application, json_answer, package_routes, send
from raprune.records import Trial
from raprune.results.stages import RunStages
from raprune.store.learning_curves import read_curve
from raprune.store.networks import PLAIN_NAME, WEIGHTS, find_network

MAX_STREAMS = 64
"""Maximum number of event streams at a time."""
_STEP_S = 0.25
_HEARTBEAT_S = 15.0
_FIRST_S = 20.0
_FRESH_S = 1.0
"""Seconds that an answer waits for a look at the store if an earlier state is known already."""


def make_app(feed: Feed, rule: Access, *, name: str, is_closing: Callable[[], bool] = lambda: False) -> ASGIApp:
    """The page of the run of `feed` under the title `name`; event streams end once `is_closing` returns True."""
    return Guarded(run_page(feed, name, is_closing), rule)


def run_page(feed: Feed, name: str, is_closing: Callable[[], bool], *, is_listed: bool = False) -> Starlette:
    """The page of one run without a guard. `is_listed` is True if the page of a list of runs is at `../../`."""
    page = PageHandlers(feed, name, is_closing, is_listed=is_listed)
    routes = [
        *package_routes("index.html"),
        Route("/api/run", page.run),
        Route("/api/trials", page.trials),
        Route("/api/trials/{trial}", page.trial),
        Route("/api/rows", page.rows),
        Route("/api/history", page.history),
        Route("/api/ablation", page.ablation),
        Route("/api/pick", page.pick),
        Route("/api/events", page.events),
        Route("/download/{name}/recipe.json", page.recipe),
        Route("/download/{name}/weights.safetensors", page.weights),
        Route("/download/{name}.zip", page.archive),
    ]
    return application(routes)


class PageHandlers:
    """The handlers of all addresses of the page."""

    def __init__(self, feed: Feed, name: str, is_closing: Callable[[], bool], *, is_listed: bool) -> None:
        self._feed = feed
        self._name = name
        self._is_listed = is_listed
        self._is_closing = is_closing
        self._streams = 0
        self._looking: asyncio.Task[None] | None = None
        self._answers: dict[str, tuple[int, Packed]] = {}
        self._told: tuple[tuple[KnownRun | None, Away | None, RunStages | None], dict[str, str]] | None = None

    async def run(self, request: Request) -> Response:
        known = await self._fresh()

        def describe() -> Packed:
            answer = answers.describe_run(known, self._feed.away, self._feed.stages, name=self._name)
            return json_answer(answer | {"listed": self._is_listed})

        return send(request, await run_in_threadpool(describe))

    async def trials(self, request: Request) -> Response:
        text = request.query_params.get("after") or "0"
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise UsageError(f"after={text[:32]}: not a number of trials.", hint="For example: after=0")
        known = await self._fresh()
        if int(text) == 0:
            return await self._kept(request, "trials", known, lambda: answers.list_trials(known, 0))
        return send(request, await run_in_threadpool(lambda: json_answer(answers.list_trials(known, int(text)))))

    async def trial(self, request: Request) -> Response:
        known = await self._fresh()
        position = known.positions.get(request.path_params["trial"])
        if position is None:
            raise MissingError("The run has no trial with this id.", hint="./api/trials lists the recorded trials.")
        trial = known.trials[position]
        return send(request, await run_in_threadpool(lambda: json_answer(self._detail(trial, known))))

    async def rows(self, request: Request) -> Response:
        known = await self._fresh()
        return await self._kept(request, "rows", known, lambda: answers.list_rows(known))

    async def history(self, request: Request) -> Response:
        known = await self._fresh()
        return await self._kept(request, "history", known, lambda: answers.list_history(known))

    async def ablation(self, request: Request) -> Response:
        known = await self._fresh()
        return await self._kept(request, "ablation", known, lambda: answers.list_ablation(known))

    async def pick(self, request: Request) -> Response:
        known = await self._fresh()
        wanted = {
            name: request.query_params.get(name, "")
            for name in ("flops", "params", "latency", "memory", "min_accuracy")
        }

        def choose() -> Packed:
            try:
                return json_answer(answers.pick_row(known, wanted))
            except UsageError:
                raise
            except RapruneError as error:
                raise MissingError(error.message, hint=error.hint) from None

        return send(request, await run_in_threadpool(choose))

    async def events(self, request: Request) -> Response:
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        if self._streams >= MAX_STREAMS:
            raise StoreError(
                f"{self._streams} pages are open already.", hint="Close one, or request ./api/trials repeatedly."
            )
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._events(), media_type="text/event-stream", headers=headers)

    async def recipe(self, request: Request) -> Response:
        return await self._download(request, "recipe.json", "application/json")

    async def weights(self, request: Request) -> Response:
        return await self._download(request, "weights.safetensors", "application/octet-stream")

    async def archive(self, request: Request) -> Response:
        folder = await self._network(request.path_params["name"])
        store, files = self._feed.store, [f"{folder}/recipe.json", f"{folder}/weights.safetensors"]
        for file in files:
            if await run_in_threadpool(store.size, file) is None:
                raise _not_stored(store.name, folder)
        name = folder.removeprefix("models/")
        headers = _attachment(f"{name}.zip")
        if request.method == "HEAD":
            return Response(media_type="application/zip", headers=headers)
        parts = [(f"{name}/{file.rpartition('/')[2]}", store.chunks(file)) for file in files]
        return StreamingResponse(zipped(parts), media_type="application/zip", headers=headers)

    async def _fresh(self) -> KnownRun:
        """Return the known state of the run, after a look at the store if one is due.

        Raises:
            StoreError: if nothing is known yet, and the store does not answer.
        """
        known = await self._look(_FRESH_S)
        if known is None:
            known = await self._look(_FIRST_S)
        if known is not None:
            return known
        away = self._feed.away
        if away is not None:
            raise StoreError(away.error, hint=away.hint)
        raise StoreError("The run is still being read.", hint="Ask again in a moment.")

    async def _look(self, patience_s: float) -> KnownRun | None:
        """Look at the store if a look is due; return the known state after the look, or after `patience_s`."""
        if self._feed.is_due and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(run_in_threadpool(self._feed.look))
        until = time.monotonic() + patience_s
        while self._looking is not None and not self._looking.done() and time.monotonic() < until:
            await asyncio.wait({self._looking}, timeout=0.05)
            if self._feed.known is not None and not self._feed.known.complete:
                # The first look at thousands of trials takes seconds: the trials read so far are enough for an answer.
                break
        return self._feed.known

    async def _events(self) -> AsyncIterator[str]:
        self._streams += 1
        try:
            said: dict[str, str] = {}
            silent_s = 0.0
            while not self._is_closing():
                await self._look(0.0)
                news = await run_in_threadpool(self._news)
                for event, data in news.items():
                    if said.get(event) != data:
                        said[event] = data
                        silent_s = 0.0
                        yield f"event: {event}\ndata: {data}\n\n"
                await asyncio.sleep(_STEP_S)
                silent_s += _STEP_S
                if silent_s >= _HEARTBEAT_S:
                    silent_s = 0.0
                    yield ":\n\n"
        finally:
            self._streams -= 1

    def _news(self) -> dict[str, str]:
        """Event -> its data at this moment, made once for all streams."""
        now = (self._feed.known, self._feed.away, self._feed.stages)
        if self._told is None or self._told[0] != now:
            self._told = (now, _events_of(*now))
        return self._told[1]

    def _detail(self, trial: Trial, known: KnownRun) -> answers.Answer:
        ancestors = [other for other, relation in answers.relatives(trial, known.trials) if relation == "ancestor"]
        trained = {name: self._curve(name) for name in (*(t.trial_id for t in ancestors), trial.trial_id)}
        folder = find_network(self._feed.store, trial)
        size = None if folder is None else self._feed.store.size(f"{folder}/{WEIGHTS}")
        kept = {name: curve for name, curve in trained.items() if curve}
        return answers.detail_trial(trial, known, curves=kept, folder=folder, size=size)

    def _curve(self, name: str) -> list[Any]:
        """The learning curve of that name; empty if none was stored."""
        return read_curve(self._feed.store, name) if PLAIN_NAME.fullmatch(name) else []

    async def _kept(self, request: Request, what: str, known: KnownRun, make: Callable[[], Any]) -> Response:
        """Send an answer that is made once for each version of the known state."""
        version, packed = self._answers.get(what, (-1, None))
        if packed is None or version != known.version:
            packed = await run_in_threadpool(lambda: json_answer(make()))
            self._answers[what] = (known.version, packed)
        return send(request, packed)

    async def _download(self, request: Request, file: str, kind: str) -> Response:
        folder = await self._network(request.path_params["name"])
        store = self._feed.store
        size = await run_in_threadpool(store.size, f"{folder}/{file}")
        if size is None:
            raise _not_stored(store.name, folder)
        headers = _attachment(file) | {"content-length": str(size)}
        if request.method == "HEAD":
            return Response(media_type=kind, headers=headers)
        pieces = store.chunks(f"{folder}/{file}")
        # A file that cannot be opened is an error of its own only before the answer begins.
        first = await run_in_threadpool(next, pieces, b"")
        return StreamingResponse(itertools.chain([first], pieces), media_type=kind, headers=headers)

    async def _network(self, name: str) -> str:
        known = await self._fresh()
        trial = await run_in_threadpool(answers.find_trial, known, name)
        found = None if trial is None else await run_in_threadpool(find_network, self._feed.store, trial)
        if found is None:
            raise _not_stored(self._feed.store.name, name)
        return found


def _events_of(known: KnownRun | None, away: Away | None, stages: RunStages | None) -> dict[str, str]:
    """Event -> its data."""
    news: dict[str, answers.Answer] = {
        "away": {"error": None} if away is None else asdict(away),
        "stages": answers.describe_stages(stages),
    }
    if known is not None:
        state = {"state": known.run.state, "live": known.pulse.live}
        total = {"generation": known.generation, "total": len(known.trials), "complete": known.complete}
        written = json.dumps(
            [known.run.to_json(), known.test.to_json(), known.times.to_json()],
            sort_keys=True,
            default=str,
        )
        # A change of any of them is a change of the run.
        version = hashlib.sha256(written.encode()).hexdigest()[:8]
        news |= {
            "run": state | {"version": version},
            "trials": total,
            "progress": answers.describe_progress(known) | state,
        }
    return {event: json.dumps(data) for event, data in news.items()}


def _not_stored(place: str, name: str) -> MissingError:
    return MissingError(
        "No network is stored under this name.",
        hint=f"A run stores the networks that were trained and, at its end, those of the front. To make any other "
        f"network again: raprune export {place} NETWORK FOLDER",
    )


def _attachment(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"', "cache-control": "private, no-store"}
