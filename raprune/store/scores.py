"""Statistics that many candidates share: computed once, kept under a digest of all their inputs.

Scores, removal orders and sparsity-trained networks, as safetensors in one folder for all runs of a parent folder. A
statistic that is stored there is never computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from raprune.store.folder import Store

Arrays = dict[str, npt.NDArray[Any]]

FORMAT = 2
"""Version of the content: increase it when a method computes something else from the same settings."""


class Statistics:
    """Arrays by key, in memory and in the folder of `store`; without one, in memory alone.

    Where `writes` is false, the folder is only read.
    """

    def __init__(
        self, store: Store | None = None, known: Mapping[str, Arrays] | None = None, *, writes: bool = True
    ) -> None:
        self._store = store
        self._writes = writes
        self._memory: dict[str, Arrays] = dict(known or {})
        self.computed: list[str] = []
        """Keys of the statistics that were computed here, in their order."""

    def get(self, key: str) -> Arrays | None:
        """Return the arrays that are kept under `key`, or None if there are none or they cannot be read."""
        if key not in self._memory and self._store is not None and self._store.exists(_file(key)):
            try:
                self._memory[key] = load(self._store.read_bytes(_file(key)))
            except SafetensorError:
                # Damaged: computed again, and overwritten.
                return None
        return self._memory.get(key)

    def put(self, key: str, arrays: Arrays) -> None:
        """Keep `arrays` under `key`."""
        self.computed.append(key)
        self._memory[key] = arrays
        if self._store is not None and self._writes:
            self._store.write_bytes(_file(key), save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))

    def once(self, key: str, compute: Callable[[], Arrays]) -> Arrays:
        """Return the arrays that are kept under `key`; compute and keep them if there are none."""
        found = self.get(key)
        if found is None:
            found = compute()
            self.put(key, found)
        return found


def key_of(kind: str, content: Mapping[str, Any]) -> str:
    """The key of a statistic: its kind, and a digest of its inputs (plain data)."""
    text = json.dumps({"format": FORMAT, **content}, sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def _file(key: str) -> str:
    return f"{key}.safetensors"
