"""Scale a cluster up for a search: ask Ray's autoscaler for room, wait for it, and withdraw the request."""

from __future__ import annotations

import time

from rich.console import Console

from raprune.orchestration.cluster.connect import node_resources
from raprune.orchestration.cluster.placement import capacity, missing
from raprune.spec.job import ResourceSpec

_POLL_S = 2.0


def with_room(spec: ResourceSpec, *, console: Console) -> ResourceSpec:
    """`spec`, once the cluster has room for its workers; with fewer workers if more do not come within `scale_up_s`.

    The request is withdrawn before the search begins. From then on the trials hold the nodes, a trial that waits for a
    lost node asks for it, and a driver that dies leaves no request that would keep nodes up.
    """
    asked = missing(node_resources(), spec) if spec.scale_up_s > 0 else []
    if not asked:
        return spec
    from ray.autoscaler.sdk import request_resources

    began = time.monotonic()
    console.print(f"Cluster scaling up: waiting up to {spec.scale_up_s:g} s for {_words(asked)}.", highlight=False)
    try:
        request_resources(bundles=asked)
        while time.monotonic() < began + spec.scale_up_s:
            time.sleep(_POLL_S)
            wanted = missing(node_resources(), spec)
            if not wanted:
                break
            if wanted != asked:
                request_resources(bundles=wanted)
                asked = wanted
    finally:
        request_resources(bundles=[])
    room = capacity(node_resources(), spec)
    waited_s = time.monotonic() - began
    workers = f"{room} worker{'s' * (room != 1)}"
    console.print(f"Cluster scaled up: {workers} available after {waited_s:.0f} s.", highlight=False)
    if spec.workers is None or room >= spec.workers or room == 0:
        return spec
    return spec.model_copy(update={"workers": room})


def _words(bundles: list[dict[str, float]]) -> str:
    each = " and ".join(f"{amount:g} {name}" for name, amount in bundles[0].items())
    return f"{len(bundles)} x {each}"
