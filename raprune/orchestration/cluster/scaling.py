"""Room for a search on a cluster that grows: asked of Ray's autoscaler, waited for, and let go."""

from __future__ import annotations

import time

from rich.console import Console

from raprune.orchestration.cluster.connect import node_resources
from raprune.orchestration.cluster.placement import capacity, missing
from raprune.spec.job import ResourceSpec

_POLL_S = 2.0


def with_room(spec: ResourceSpec, *, console: Console) -> ResourceSpec:
    """`spec`, once the cluster has room for its workers; with fewer workers if only these came within `scale_up_s`.

    The request is taken back before the search begins: from then on its trials hold the nodes, a lost node is asked for
    by the trial that waits for it, and a driver that dies leaves nothing that would keep nodes up.
    """
    asked = missing(node_resources(), spec) if spec.scale_up_s > 0 else []
    if not asked:
        return spec
    from ray.autoscaler.sdk import request_resources

    began = time.monotonic()
    console.print(f"Waiting up to {spec.scale_up_s:g} s for {_words(asked)} of the cluster.", highlight=False)
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
    console.print(f"Room for {room} after {time.monotonic() - began:.0f} s.", highlight=False)
    if spec.workers is None or room >= spec.workers or room == 0:
        return spec
    return spec.model_copy(update={"workers": room})


def _words(bundles: list[dict[str, float]]) -> str:
    each = " and ".join(f"{amount:g} {name}" for name, amount in bundles[0].items())
    return f"{len(bundles)} x {each}"
