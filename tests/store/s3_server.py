"""A bucket of S3 on this machine."""

from __future__ import annotations

import itertools
import urllib.request

from moto.server import ThreadedMotoServer

SECRET = "hush-hush"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}


class Bucket:
    """A bucket on a server of our own that can be stopped and started again.

    All servers of a process hold the same buckets, so each bucket has a name of its own.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        self.name = f"runs-{next(self._numbers)}"
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.host, self.port = self._server.get_host_and_port()
        request = urllib.request.Request(f"http://{self.host}:{self.port}/{self.name}", method="PUT")
        urllib.request.urlopen(request).close()

    def uri(self, folder: str, *, host: str | None = None, port: int | None = None, user: str = "") -> str:
        query = f"scheme=http&endpoint_override={host or self.host}:{port or self.port}&region=us-east-1"
        return f"s3://{user}{self.name}/{folder}?{query}"

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        """At the same port, with what was there."""
        self._server = ThreadedMotoServer(ip_address=self.host, port=self.port, verbose=False)
        self._server.start()
