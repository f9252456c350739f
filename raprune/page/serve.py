"""`raprune serve`: the page of a run, or of a list of runs, in a process of its own, from the store alone. No Ray."""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from rich.console import Console
from starlette.types import ASGIApp

from raprune.errors import RapruneError, UsageError
from raprune.page.access import MIN_TOKEN, Access, is_loopback
from raprune.page.app import make_app
from raprune.page.feed import Feed
from raprune.page.overview import Overview
from raprune.page.runs_app import make_runs_app
from raprune.results.run_list import cache_folder, no_runs
from raprune.store.address import last_part
from raprune.store.folder import Store
from raprune.store.run_folders import find_runs

TOKEN = "RAPRUNE_PAGE_TOKEN"
"""Environment variable: the page's token."""

_CONNECTIONS = 256


@dataclass(frozen=True)
class Token:
    """The token that opens a page, and the place where it is stored."""

    text: str
    place: str


def serve(uri: str, *, host: str, port: int, token_file: str | None = None, console: Console) -> None:
    """Serve the page of the run in `uri`, or of all runs in that folder, until Ctrl-C.

    Raises:
        StoreError: if there is no run.
        UsageError: if host, port or token cannot be used.
        RapruneError: if the port is taken.
    """
    store = Store(uri)
    is_one = store.is_run()
    if is_one:
        # An unreadable run is an error of the command, not of the page.
        store.record()
    elif not find_runs(store):
        raise no_runs(store)
    with listen(host, port) as listener:
        token = page_token(token_file, needed=not is_loopback(host))
        port = listener.getsockname()[1]
        closing = threading.Event()
        rule = Access.of(None if token is None else token.text, f"{store.name} {port}")
        if is_one:
            app = make_app(Feed(store), rule, name=last_part(store.name), is_closing=closing.is_set)
        else:
            app = make_runs_app(Overview(store, cache=cache_folder()), rule, is_closing=closing.is_set)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        lines = [f"The page of {'' if is_one else 'the runs in '}{store.name}: {address}"]
        if token is not None:
            lines.append(f"The token is in {token.place}. Open the page once as {address}?token=TOKEN")
        console.print("\n".join([*lines, "Ctrl-C ends it."]), markup=False, highlight=False, soft_wrap=True)
        run_server(app, listener, closing)


def run_server(app: ASGIApp, listener: socket.socket, closing: threading.Event) -> None:
    """Serve `app` until a signal arrives, which sets `closing` for the streams; return when all requests have ended."""
    try:
        _Server(config_of(app), closing).run(sockets=[listener])
    except KeyboardInterrupt:
        # Ctrl-C is the usual end.
        return


def config_of(app: ASGIApp) -> uvicorn.Config:
    """The configuration of the server of `app`."""
    return uvicorn.Config(
        app,
        # The parser of h11 limits the size of a request in memory.
        http="h11",
        h11_max_incomplete_event_size=32 * 1024,
        ws="none",
        lifespan="off",
        log_level="warning",
        # An address may contain the token.
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, closing: threading.Event) -> None:
        super().__init__(config)
        self._closing = closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._closing.set()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` and `port`; port 0 takes any free port.

    Raises:
        UsageError: if the host or the port is not valid on this machine.
        RapruneError: if another program uses the port.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: a port is a number from 0 to 65535.", hint="For example: --port 8501")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"--host {host!r}: no such host: {error}.", hint=_HOSTS) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RapruneError(
                f"--port {port}: another program uses this port.",
                hint=f"Give another port: --port {port + 1}   Or take any free port: --port 0",
            ) from None
        if error.errno == errno.EACCES:
            raise UsageError(
                f"--port {port}: this user may not use this port.", hint="Give a port from 1024 to 65535."
            ) from None
        raise UsageError(f"--host {host}: {error.strerror or error}.", hint=_HOSTS) from None


_HOSTS = "127.0.0.1 serves this machine only; 0.0.0.0 listens at all its addresses."


def page_token(file: str | None, *, needed: bool) -> Token | None:
    """The token of a file or of the environment, else this user's own token if one is `needed`, which is made once.

    Raises:
        UsageError: if the token cannot be read, is too short, or has characters that an address cannot contain.
    """
    if file is not None:
        try:
            return Token(_checked(Path(file).expanduser().read_text().strip(), f"--token-file {file}"), file)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise UsageError(f"--token-file {file}: {reason}.", hint=_MAKE) from None
    if TOKEN in os.environ:
        return Token(_checked(os.environ[TOKEN].strip(), TOKEN), f"the environment variable {TOKEN}")
    return _own_token() if needed else None


_MAKE = "Make a token: openssl rand -hex 24 > FILE && chmod 600 FILE"


def _checked(token: str, whence: str) -> str:
    if len(token) < MIN_TOKEN or not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        raise UsageError(
            f"{whence}: a token has {MIN_TOKEN} characters or more: letters, digits and . _ ~ - (this one has "
            f"{len(token)}).",
            hint=_MAKE,
        )
    return token


def _own_token() -> Token:
    """This user's token, stored in a file that no other user can read."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    file = Path(state).expanduser() / "raprune" / "page-token"
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as made:
            made.write(secrets.token_hex(24) + "\n")
    except FileExistsError:
        pass
    except OSError as error:
        raise RapruneError(
            f"{file}: the token cannot be stored here: {error.strerror}.", hint=f"Set {TOKEN}, or give --token-file."
        ) from None
    if file.stat().st_mode & 0o077:
        raise UsageError(f"{file}: other users can read this token.", hint=f"chmod 600 {file}")
    return Token(_checked(file.read_text().strip(), str(file)), str(file))
