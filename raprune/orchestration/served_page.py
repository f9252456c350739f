"""The page of a run: one small Ray Serve application for each run, in the dashboard's Serve tab.

The page reads the store as `raprune serve` does, and asks the run's coordinator if it is alive. It outlives its driver,
so that people can look at a run that has ended or was killed, and it removes itself when nobody has opened it for a
while. Ray Serve is started on loopback if it does not run yet, and keeps running, because others may use it by then.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from rich.console import Console
from starlette.types import ASGIApp, Receive, Scope, Send

from raprune.errors import RapruneError
from raprune.orchestration.coordinator import NAMESPACE, coordinator_name
from raprune.orchestration.jobs.metadata import tell
from raprune.orchestration.ray_private import delete_application_soon, serve_http_options
from raprune.page.access import Access, is_loopback
from raprune.page.app import make_app
from raprune.page.feed import Feed, Pulse
from raprune.page.serve import listen, page_token
from raprune.spec.job import PageSpec
from raprune.store.address import last_part
from raprune.store.folder import Store

_PATIENCE_S = 5.0
"""Seconds that the search waits for its page, which may come up later or never."""
_PROXY_S = 30.0
_GRACE_S = 60.0
"""Seconds without a driver after which a page removes itself if its driver should have removed it."""
_CHECK_S = 10.0
_ASK_S = 2.0

_REQUESTS = 512
"""Maximum number of requests at a time; each open page holds one."""


@dataclass(frozen=True)
class Shown:
    """A page that runs."""

    app: str
    """The application's name in the Serve tab."""
    address: str
    """Address of the page on the head node."""
    head: str
    """The head node's name."""
    token: str | None
    """Place of its token, in words; None if it needs no token."""

    def describe(self) -> dict[str, Any]:
        """The page as JSON, for `run.json`."""
        return {"address": self.address, "head": self.head, "app": self.app, "needs_token": self.token is not None}


class Opening:
    """Start of the page of a run in a thread: the search continues meanwhile, and also if the page does not start."""

    def __init__(self, store: Store, spec: PageSpec, console: Console) -> None:
        self._store, self._spec, self._console = store, spec, console
        self._shown: Shown | None = None
        self._noted = False
        self._ended = False
        self._thread = threading.Thread(target=self._open, daemon=True, name="raprune-page")
        self._thread.start()

    def note(self, *, patience_s: float = _PATIENCE_S) -> None:
        """Write the address of the page into `run.json` once it is up; wait at most `patience_s` for it."""
        self._thread.join(patience_s)
        if self._shown is not None and not self._noted:
            self._store.note({"page": self._shown.describe()})
            self._noted = True

    def end(self) -> None:
        """End the page with the run, unless the job asks for it to stay longer."""
        self._ended = True
        if self._shown is not None and self._spec.linger_s == 0:
            with contextlib.suppress(Exception):
                remove(self._shown.app)

    def _open(self) -> None:
        try:
            # Without patience: the page itself reports an unreachable store.
            shown = show(Store(self._store.uri), self._spec)
        except Exception as error:
            if not self._ended:
                why = error.message if isinstance(error, RapruneError) else f"{type(error).__name__}: {error}"
                hint = f" `raprune serve {self._store.name}` shows the same page."
                self._say(f"The run has no page of its own: {why.rstrip('.')}.{hint}")
            return
        self._shown = shown
        tell(raprune_page=shown.address)
        token = "" if shown.token is None else f" Its token is in {shown.token}."
        self._say(f"Page: {shown.address} on {shown.head}, {shown.app} in the dashboard's Serve tab.{token}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def page_of_run(store: Store, spec: PageSpec, console: Console) -> Iterator[Callable[[], None]]:
    """Show the page of the run in `store` within the context, and as long after it as the job says.

    Yields a function that writes the address of the page into `run.json`. Call it only where no one else writes this
    file.
    """
    opening = Opening(store, spec, console)
    try:
        yield opening.note
        opening.note(patience_s=0.0)
    finally:
        opening.end()


def show(store: Store, spec: PageSpec) -> Shown:
    """Let Ray Serve show the page of the run in `store`; return when the page runs.

    Raises:
        RapruneError: if the page does not come up.
    """
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    try:
        host, port, root = _start_serve(spec)
        token = page_token(None, needed=not is_loopback(host))
        app, deployment = _names(store)
        route = f"/raprune/{app.removeprefix(_PREFIX)}"
        rule = Access.of(None if token is None else token.text, f"{store.name} {route}")
        _deploy(PageApplication(store, rule, last_part(store.name), app, spec.linger_s), app, deployment, route, store)
        _await_proxy(port)
    except RapruneError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RapruneError(f"Ray Serve does not start it: {lines[0]}") from error
    reached = "127.0.0.1" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    address = f"http://{reached}:{port}{root.rstrip('/')}{route}/"
    return Shown(app, address, _head(), None if token is None else token.place)


def remove(app: str) -> None:
    """Remove this application and no other; it may have been removed already."""
    serve.delete(app)


class PageApplication:
    """The web application of one run's page, in a replica. It can be pickled: each replica opens the store again."""

    def __init__(self, store: Store, rule: Access, name: str, app: str, linger_s: float) -> None:
        self._settings = (store, rule, name, app, linger_s)
        self._store = store
        self._page: ASGIApp | None = None
        self._open = 0
        self._closed_at = time.monotonic()

    def __reduce__(self) -> tuple[Any, ...]:
        return PageApplication, self._settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._page is None:
            self._page = self._begin()
        self._open += scope["type"] == "http"
        try:
            await self._page(scope, receive, send)
        finally:
            self._open -= scope["type"] == "http"
            self._closed_at = time.monotonic()

    def _begin(self) -> ASGIApp:
        store, rule, name, app, linger_s = self._settings
        feed = Feed(store, pulse=lambda: _pulse(store))
        # Before the first request: reading thousands of trials takes seconds.
        threading.Thread(target=feed.look, daemon=True).start()
        threading.Thread(target=self._leave_in_time, args=(app, linger_s or _GRACE_S), daemon=True).start()
        return make_app(feed, rule, name=name)

    def _leave_in_time(self, app: str, linger_s: float) -> None:
        """Remove the application once no process works on the run and nobody has opened the page for `linger_s`."""
        last = time.monotonic()
        while time.monotonic() - last < linger_s:
            time.sleep(min(_CHECK_S, linger_s / 4))
            # The deployer waits until the application runs, and for ever if it is removed before.
            if self._open or not _is_up(app) or _pulse(self._store).live:
                last = time.monotonic()
            last = max(last, self._closed_at)
        delete_application_soon(app)


def _is_up(app: str) -> bool:
    """True if the application runs or is gone already; false while Serve does not answer."""
    try:
        known = serve.status().applications.get(app)
    except Exception:
        return False
    return known is None or known.status == "RUNNING"


def _pulse(store: Store) -> Pulse:
    """The pulse of the run's coordinator, which lives as long as a driver works on the run."""
    try:
        coordinator: Any = ray.get_actor(coordinator_name(store.uri), namespace=NAMESPACE)
        return Pulse(live=True, running=ray.get(coordinator.running.remote(), timeout=_ASK_S))
    except ValueError:
        return Pulse(live=False)
    except Exception:
        # The coordinator restarts, or waits for the store.
        return Pulse(live=True)


def _start_serve(spec: PageSpec) -> tuple[str, int, str]:
    """Host, port and root path of the cluster's Serve, which is started unless it runs."""
    options = serve_http_options()
    if options is None:
        port = _free(spec.host, spec.port)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": spec.host, "port": port},
            # An address may contain a token.
            logging_config={"enable_access_log": False},
        )
        options = serve_http_options() or {}
    # An unknown host counts as reachable by all machines.
    return options.get("host") or "0.0.0.0", int(options.get("port") or spec.port), options.get("root_path") or ""


def _free(host: str, port: int) -> int:
    """The port, or any free one if this is the head node and another program uses the port."""
    if _head_address() != ray.util.get_node_ip_address():
        return port
    for wanted in (port, 0):
        with contextlib.suppress(RapruneError), listen(host, wanted) as listener:
            return int(listener.getsockname()[1])
    return port


_PREFIX = "raprune-"


def _names(store: Store) -> tuple[str, str]:
    """The names of the run's application and of its deployment.

    Another run of the same name keeps its application: the name of the deployment distinguishes the runs.
    """
    mark = hashlib.sha256(store.uri.encode()).hexdigest()[:8]
    short = re.sub(r"[^A-Za-z0-9_-]+", "-", last_part(store.name)).strip("-")[:48] or "run"
    deployment = f"page-{mark}"
    other = serve.status().applications.get(_PREFIX + short)
    taken = other is not None and deployment not in other.deployments
    return _PREFIX + short + (f"-{mark}" if taken else ""), deployment


def _deploy(ingress: PageApplication, app: str, name: str, route: str, store: Store) -> None:
    @serve.ingress(ingress)
    class Page:
        """The page of one run."""

    deployment: Any = serve.deployment(
        name=name,
        num_replicas=1,
        max_ongoing_requests=_REQUESTS,
        # The page takes no CPU or GPU from the trials.
        ray_actor_options={"num_cpus": 0, "resources": {_place(store): 0.001}},
        graceful_shutdown_timeout_s=1.0,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config={"enable_access_log": False},
    )
    serve.run(deployment(Page).bind(), name=app, route_prefix=route)


def _place(store: Store) -> str:
    """The resource that names the page's node: the node with the folder, else the head node."""
    return "node:__internal_head__" if "://" in store.uri else f"node:{ray.util.get_node_ip_address()}"


def _await_proxy(port: int) -> None:
    until = time.monotonic() + _PROXY_S
    while time.monotonic() < until:
        if any(status == "HEALTHY" for status in serve.status().proxies.values()):
            return
        time.sleep(0.2)
    raise RapruneError(
        f"Ray Serve's proxy does not come up at port {port}; another program may use this port.",
        hint="Give another port: --set page.port=8001",
    )


def _head() -> str:
    return next((n["NodeManagerHostname"] for n in ray.nodes() if _is_head(n)), "the head node")


def _head_address() -> str | None:
    return next((n["NodeManagerAddress"] for n in ray.nodes() if _is_head(n)), None)


def _is_head(node: Mapping[str, Any]) -> bool:
    return bool(node["Alive"]) and "node:__internal_head__" in node["Resources"]
