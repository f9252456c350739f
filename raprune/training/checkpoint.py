"""Checkpoints, from which a training resumes after its process has ended: bytes in the format of safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from raprune.store.folder import Store


class Checkpoints(Protocol):
    """Protocol of the storage of one training's last checkpoint."""

    def load(self) -> bytes | None:
        """Return the last content given to `save`, or None if there is none. Every process of a training calls this."""

    def save(self, content: bytes) -> None:
        """Replace the stored checkpoint by `content`, completely or not at all. Only rank 0 calls this, per epoch."""


class StoreCheckpoints:
    """A training's last checkpoint as the file `rel` of a run's store."""

    def __init__(self, store: Store, rel: str) -> None:
        self._store = store
        self._rel = rel

    def load(self) -> bytes | None:
        return self._store.read_bytes(self._rel) if self._store.exists(self._rel) else None

    def save(self, content: bytes) -> None:
        self._store.write_bytes(self._rel, content)

    def remove(self) -> None:
        """Delete the checkpoint, once the result of its training is recorded."""
        self._store.remove(self._rel)


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
