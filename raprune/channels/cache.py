"""Channel graphs on disk, by the code of the network: a network is traced once per machine.

The cache only saves the trace: the proof runs on a cached graph for every workload, as on a new graph.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import code_hash, trace

FORMAT = 2
"""Number that changes when a trace records more than before."""
FOLDER = "RAPRUNE_CACHE"
"""Environment variable with the cache's folder (default: `raprune` in the user's cache folder); empty: no cache."""


def cached_trace(model: nn.Module, example_input: Tensor) -> ChannelGraph:
    """Return `trace(model, example_input)`, from disk if the same versions traced the same code before.

    Raises:
        ModelError: if the forward pass fails.
    """
    folder = cache_folder()
    if folder is None:
        return trace(model, example_input)
    # The key has the text of the user's code in it: changed code is traced again, even if the same graph comes of it.
    code = code_hash(model, tuple(example_input.shape[1:]))
    path = folder / f"channels-{FORMAT}-{code}-{metadata.version('raprune')}-{torch.__version__}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged: trace again
        return ChannelGraph.from_json(json.loads(path.read_text()))
    graph = trace(model, example_input)
    with contextlib.suppress(OSError):  # not being able to write the cache is no failure
        _write(path, json.dumps(graph.to_json()))
    return graph


def cache_folder() -> Path | None:
    """Return the folder of the cached graphs, or None if the cache is turned off."""
    named = os.environ.get(FOLDER)
    if named is not None:
        return Path(named) if named else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raprune"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
