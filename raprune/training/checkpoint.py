"""Checkpoints, from which a training resumes after its process has ended: bytes in the format of safetensors."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from raprune.errors import StoreError
from raprune.store.folder import Store

EVERY_S = 60.0
"""Minimum time between two checkpoints of a training.

A lost worker repeats at most this and the epoch that it was in. A thousand workers that store a small network after
each epoch of 4 s would write 1.7 GB/s.
"""


DENSE = "dense"
"""Name of the training of the dense network."""


def checkpoint_file(name: str) -> str:
    """Return the file of a run that holds the checkpoint of the training `name`."""
    return f"checkpoints/{name}.safetensors"


class Checkpoints(Protocol):
    """Protocol of the storage of one training's last checkpoint."""

    def load(self) -> bytes | None:
        """Return the last content given to `save`, or None if there is none. Every process of a training calls this."""

    def is_due(self) -> bool:
        """True if it is time for a checkpoint. Only rank 0 calls this, after each epoch but the last."""

    def save(self, content: bytes) -> None:
        """Replace the stored checkpoint by `content`, completely or not at all. Only rank 0 calls this.

        It may return before the content is stored.
        """


class StoreCheckpoints:
    """A training's last checkpoint as the file `rel` of a run's store, replaced at most every `every_s` seconds.

    A thread writes, one content at a time, so that the training does not wait for the store. The store renames a
    complete file into place: a process that is killed while it writes leaves the checkpoint before.
    """

    def __init__(
        self, store: Store, rel: str, *, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._rel = rel
        self._every_s = every_s
        self._clock = clock
        self._saved_at = clock()
        self._writing: threading.Thread | None = None
        self._failure: StoreError | None = None

    def load(self) -> bytes | None:
        self.wait()
        return self._store.read_bytes(self._rel) if self._store.exists(self._rel) else None

    def is_due(self) -> bool:
        return self._clock() - self._saved_at >= self._every_s

    def save(self, content: bytes) -> None:
        """Start to write `content`, once the content before it is written.

        Raises:
            StoreError: if the content before it could not be written.
        """
        self.wait()
        self._saved_at = self._clock()
        # Nobody waits for it if the process ends: what it writes is a whole file or none.
        self._writing = threading.Thread(target=self._write, args=(content,), daemon=True, name="raprune-checkpoint")
        self._writing.start()

    def wait(self) -> None:
        """Wait until the last content is written.

        Raises:
            StoreError: if it could not be written.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def remove(self) -> None:
        """Delete the checkpoint, once the result of its training is recorded.

        Raises:
            StoreError: if it, or the last content, could not be written or deleted.
        """
        self.wait()
        self._store.remove(self._rel)

    def _write(self, content: bytes) -> None:
        try:
            self._store.write_bytes(self._rel, content)
        except StoreError as error:
            self._failure = error


class Overwritten:
    """Checkpoints of a training that begins, in the place of another training that has ended."""

    def __init__(self, place: Checkpoints) -> None:
        self.is_due, self.save = place.is_due, place.save

    def load(self) -> bytes | None:
        return None


def pack(tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> bytes:
    """Serialise `tensors` and the plain data `progress` as one safetensors file."""
    # Cloned, because safetensors refuses to write memory that two names share.
    apart = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return save(apart, {"progress": json.dumps(progress)})


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arguments of `pack` from its result, with the tensors on the CPU.

    Raises:
        ValueError: if the content is damaged or is no checkpoint.
    """
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, json.loads(header["__metadata__"]["progress"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"not a checkpoint: {error}") from error
