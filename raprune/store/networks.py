"""Networks that a run keeps: their folders, and their names in the reports of this and earlier versions.

    models/<trial id>/   a network that a trial of the search trained, written as the trial ends
    models/<network>/    one that was fine-tuned; once the run ends, every one of the front (`Trial.network`)

A recipe names the trial that made its network, so that one network is never taken for another. Earlier versions stored
the fine-tuned network under its candidate's id, where the repaired network of the front is stored today.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from raprune.records import Stage, Trial
from raprune.store.folder import Store

MODELS = "models"
RECIPE = "recipe.json"
WEIGHTS = "weights.safetensors"
HUB_WEIGHTS = "model.safetensors"
"""Name of the same file in a folder in the layout of the Hugging Face Hub."""

NAMES = {"names": 2}
"""Mark of a report whose names are those of `Trial.network`; reports of earlier versions have no mark."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Pattern of the names of files and folders in the store that are opened, whoever wrote them there."""


def find_network(store: Store, trial: Trial) -> str | None:
    """The folder of the store that holds the network of a trial; None if the run does not keep it.

    Raises:
        StoreError: if the store cannot be read.
    """
    return next((folder for folder in _folders(trial) if _made_by(store, folder) == trial.trial_id), None)


def is_stored(store: Store, trial: Trial) -> bool:
    """True if the run keeps the network of a trial under its name."""
    return find_network(store, trial) == f"{MODELS}/{trial.network}"


def copy_network(store: Store, folder: str, target: Store, into: str) -> None:
    """Copy a network to the folder `into` of `target` (`""` is its root), the recipe last."""
    prefix = f"{into}/" if into else ""
    for file in (WEIGHTS, RECIPE):
        target.write_bytes(prefix + file, store.read_bytes(f"{folder}/{file}"))


def rename_finetuned(store: Store, trials: Iterable[Trial]) -> None:
    """Copy the fine-tuned networks of a run of an earlier version to the folders of today."""
    for trial in trials:
        if trial.counts and trial.proposal.stage is Stage.FINETUNE:
            wanted, found = f"{MODELS}/{trial.network}", find_network(store, trial)
            if found not in (None, wanted):
                copy_network(store, found, store, wanted)


# A JSON edge: reports on networks.
def named_as_today(report: Mapping[str, Any], trials: Sequence[Trial]) -> dict[str, Any]:
    """A report on networks (`{"candidates": {name: ...}, ...}`) with the names of today, of whichever version it is.

    In earlier versions a candidate's name stood for its fine-tuned network, if there was one.
    """
    if not report or report.get("names") == NAMES["names"]:
        return dict(report)
    today = {
        _former_name(trial): trial.network
        for trial in trials
        if trial.counts and trial.proposal.stage is Stage.FINETUNE
    }
    return dict(report) | {"candidates": {today.get(name, name): value for name, value in report["candidates"].items()}}


def _folders(trial: Trial) -> Iterator[str]:
    """Folders that may hold the network, the most likely one first."""
    if trial.candidate is None:
        return
    names = [_former_name(trial)] if trial.proposal.stage is Stage.FINETUNE else [trial.trial_id]
    for name in (trial.network, *names):
        # Of a store that somebody else wrote, no name leads out of the folder.
        if PLAIN_NAME.fullmatch(name):
            yield f"{MODELS}/{name}"


def _former_name(trial: Trial) -> str:
    """The name of a fine-tuned network before the names were unique."""
    assert trial.candidate is not None, "a trial without a candidate has no network"
    return f"{trial.candidate.id}-s{trial.proposal.repeat}" if trial.proposal.repeat else trial.candidate.id


def _made_by(store: Store, folder: str) -> str | None:
    """Id of the trial whose network the folder holds; None if it holds none."""
    recipe = store.read_json(f"{folder}/{RECIPE}") if store.exists(f"{folder}/{RECIPE}") else None
    return recipe.get("trial_id") if isinstance(recipe, dict) else None
