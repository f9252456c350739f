"""A server of S3 that waits before each answer, as one far away does; run as a script, it is the server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

REQUEST_S = 0.02
"""Time that the server waits before each answer."""


@dataclass(frozen=True)
class S3:
    """A bucket on a server of this machine."""

    port: int

    def uri(self, folder: str) -> str:
        return f"s3://scale/{folder}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server that waits before each answer, in a process of its own."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    os.environ.update(keys)
    server = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        s3 = S3(int(server.stdout.readline()))
        request = urllib.request.Request(f"http://127.0.0.1:{s3.port}/scale", method="PUT")
        urllib.request.urlopen(request).close()
        yield s3
    finally:
        server.terminate()
        server.wait()


def serve() -> None:
    """Serve, and print the port first."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *args: Any) -> None:
            pass

    app = DomainDispatcherApplication(create_backend_app)

    def slow(environ: Any, start_response: Any) -> Any:
        time.sleep(REQUEST_S)
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, slow, threaded=True, request_handler=Quiet)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
