"""The dense training of a small search, by the work of one worker without Ray."""

from __future__ import annotations

from pathlib import Path

from raprune.orchestration.cluster.placement import Placement
from raprune.orchestration.tasks import Dense
from raprune.orchestration.workers.dense import prepare_dense
from raprune.pruning.preparation import Prepared
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from raprune.training.epoch import Epoch
from tests.factories import small_search

EPOCHS = 4
PLACE = Placement(workers=1, cpus=1, gpus=0.0, reason="alone")


def spec_of(folder: Path, *, epochs: int = EPOCHS) -> SearchSpec:
    dense, resources = {"epochs": epochs, "lr": 0.1}, {"workers": 1, "checkpoint_every_s": 0}
    return small_search(folder / "run", dense=dense, resources=resources)


def carried_out(prepared: Prepared, store: Store) -> tuple[list[Epoch], Dense]:
    *epochs, dense = prepare_dense(prepared.spec, PLACE, prepared.data, prepared.weights, train=True, store=store)
    assert isinstance(dense, Dense)
    return [epoch for epoch in epochs if isinstance(epoch, Epoch)], dense
