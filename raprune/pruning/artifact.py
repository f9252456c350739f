"""A condensed network on disk: `recipe.json` and `weights.safetensors`.

The recipe says which positions of which parameters stay, so that the smaller network is rebuilt from the user's own
model class. Nothing in either file is executed. Without raprune: slice each parameter that the recipe names by
`index_select(axis, positions)`, set the layers' sizes and the `numbers` (module, attribute, place in a tuple or list,
value: how many heads attention has, and how wide they are), and load the weights. A network may have maxout units:
`maxout` maps a module to the number of adjacent channels over which its output takes the maximum. A network may also
lack blocks: `torch.nn.Identity` takes the place of each module that `identity` names, before the weights are loaded.
"""

from __future__ import annotations

import hashlib
import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from importlib import metadata
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from raprune.channels.cut import ModuleT, NumberOnModule, kept_positions, sizes_of, slice_parameters, without_blocks
from raprune.channels.graph import ChannelGraph
from raprune.channels.maxout import insert, inserted
from raprune.channels.members import CodeEdit
from raprune.channels.positions import IndexArray, pack_positions, unpack_positions
from raprune.channels.trace import code_hash, structure_hash
from raprune.data.dataset import Dataset
from raprune.errors import RecipeError
from raprune.records import Candidate, Trial
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from raprune.store.networks import HUB_WEIGHTS, RECIPE, WEIGHTS

FORMAT = 1
FORMAT_WITH_NUMBERS = 2
"""Format of a recipe that also sets numbers on modules, which older versions would not do."""
FORMAT_WITH_IDENTITY = 3
"""Format of a recipe that also leaves out blocks, which older versions would not do."""
FORMAT_WITH_CODE = 4
"""Format of a recipe that also changes sizes in code, which older versions would not do."""
FORMATS = (FORMAT, FORMAT_WITH_NUMBERS, FORMAT_WITH_IDENTITY, FORMAT_WITH_CODE)


def save(
    store: Store,
    folder: str,
    *,
    model: nn.Module,
    graph: ChannelGraph,
    candidate: Candidate,
    provenance: Mapping[str, Any],
) -> None:
    """Write the condensed `model` to `folder` of the store (`""` is its root), the recipe last.

    `provenance` is plain data that goes into the recipe as it is: metrics, seed, budget, data set.
    """
    weights = save_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in _state(model).items()})
    graph = without_blocks(graph, candidate.identity)
    maxout = inserted(model)
    kept = _kept_in(model, graph, candidate, maxout)
    numbers = sizes_of(graph, candidate.kept)
    edits = graph.edits if kept else ()
    recipe = {
        "format": _format(numbers, candidate.identity, edits),
        "candidate": candidate.id,
        "method": candidate.method,
        "settings": dict(candidate.settings),
        "architecture": graph.architecture,
        "input_shape": list(graph.input_shape),
        "widths": candidate.widths,
        "kept": {name: {str(a): pack_positions(p) for a, p in axes.items()} for name, axes in kept.items()},
        "dense_shapes": {name: list(graph.shapes[name]) for name in kept},
        **({"numbers": numbers} if numbers else {}),
        **({"code": [list(astuple(edit)) for edit in edits]} if edits else {}),
        **({"identity": list(candidate.identity)} if candidate.identity else {}),
        **({"maxout": maxout} if maxout else {}),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "versions": versions(),
        **provenance,
    }
    recipe["digest"] = _digest(recipe)
    prefix = f"{folder}/" if folder else ""
    store.write_bytes(prefix + WEIGHTS, weights)
    store.write_bytes(prefix + RECIPE, json.dumps(recipe, indent=1).encode())


def _format(numbers: Sequence[NumberOnModule], identity: Sequence[str], edits: Sequence[CodeEdit]) -> int:
    """Return the oldest format that a recipe with these parts has."""
    if edits:
        return FORMAT_WITH_CODE
    return FORMAT_WITH_IDENTITY if identity else FORMAT_WITH_NUMBERS if numbers else FORMAT


def load(model: ModuleT, folder: str) -> ModuleT:
    """The condensed network of `folder` (a path or URI), built from `model`: the user's own dense network.

    `model` gives the classes and the code; its weights are not used and it is left unchanged. The result is in
    evaluation mode, on the device of `model`.

    Raises:
        RecipeError: if the recipe was changed, does not belong to this network, or its weights do not match.
    """
    return load_from(model, Store(folder), "")


def load_from(model: ModuleT, store: Store, folder: str) -> ModuleT:
    """`load` for a folder inside a store."""
    prefix = f"{folder}/" if folder else ""
    recipe = read_recipe(store, folder)
    smaller = slice_parameters(
        model, _kept(model, recipe), _numbers(model, recipe), _identity(model, recipe), _edits(model, recipe)
    )
    file = next((name for name in (WEIGHTS, HUB_WEIGHTS) if store.exists(prefix + name)), None)
    if file is None:
        raise RecipeError(
            f"{store.name}/{prefix}{WEIGHTS} is not there, though its recipe is.",
            hint="Copy recipe.json and weights.safetensors together.",
        )
    content = store.read_bytes(prefix + file)
    if hashlib.sha256(content).hexdigest() != recipe["weights_sha256"]:
        raise RecipeError(
            f"{store.name}/{prefix}{file} is not the file that the recipe was written with.",
            hint="Copy recipe.json and weights.safetensors together.",
        )
    try:
        weights = load_safetensors(content)
        smaller.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise RecipeError(
            f"{store.name}/{prefix}{file} does not fit the network: {_first_lines(error)}",
            hint="Pass the dense network that the recipe was made from.",
        ) from None
    insert(smaller, recipe.get("maxout", {}))
    structure, _, graph = recipe["architecture"].partition("-")
    # An older recipe has no digest of the graph; its only digest covers the text of the code.
    now = (structure_hash if graph else code_hash)(model, tuple(recipe["input_shape"]))
    if now != structure:
        warnings.warn(
            "The network's code or settings differ from those that the recipe was made from, though all shapes agree.",
            stacklevel=2,
        )
    return smaller.eval()


def read_recipe(store: Store, folder: str) -> dict[str, Any]:
    """The checked recipe of a folder.

    Raises:
        RecipeError: if it is missing, not a recipe, or was changed since it was written.
    """
    where = f"{store.name}/{folder}".rstrip("/")
    if not store.exists(f"{folder}/{RECIPE}" if folder else RECIPE):
        raise RecipeError(f"{where}: no {RECIPE} there.", hint="Give a folder that `raprune export` wrote.")
    try:
        recipe = json.loads(store.read_bytes(f"{folder}/{RECIPE}" if folder else RECIPE))
    except ValueError as error:
        raise RecipeError(f"{where}/{RECIPE}: not JSON: {error}", hint="Export the candidate again.") from None
    if not isinstance(recipe, dict) or recipe.get("format") not in FORMATS:
        came = recipe.get("format") if isinstance(recipe, dict) else type(recipe).__name__
        raise RecipeError(
            f"{where}/{RECIPE}: format {came!r}; this version reads format {', '.join(map(str, FORMATS))}.",
            hint="Load it with the raprune that wrote it.",
        )
    if recipe.get("digest") != _digest(recipe):
        raise RecipeError(
            f"{where}/{RECIPE} was changed since it was written: its digest does not match its content.",
            hint="Export the candidate again.",
        )
    return recipe


def provenance(spec: SearchSpec, data: Dataset) -> dict[str, Any]:
    """Return the recipe's description of the job that made its network."""
    return {
        "model": spec.model.model_dump(mode="json"),
        # The network needs images that are normalised like this: (pixel / 255 - mean) / std.
        "data": {
            "name": spec.data.name,
            "fingerprint": data.fingerprint,
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "seed": spec.seed,
        "budget": spec.budget.fractions,
    }


def trial_provenance(trial: Trial) -> dict[str, Any]:
    """Return the recipe's description of the trial that made its network."""
    assert trial.metrics is not None
    return {"trial_id": trial.trial_id, "epochs": trial.epochs, **asdict(trial.metrics)}


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("raprune", "torch", "torchvision", "optuna", "ray", "numpy")
    found = {name: metadata.version(name) for name in names if _installed(name)}
    return {"python": platform.python_version(), **found}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, with tensors that share memory written apart (safetensors refuses to share)."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        state[name] = tensor.clone() if shared else tensor
    return state


def _kept_in(
    model: nn.Module, graph: ChannelGraph, candidate: Candidate, maxout: Mapping[str, int]
) -> dict[str, dict[int, IndexArray]]:
    """Return `kept_positions` for the condensed `model`: a maxout unit has one position, that of its first channel."""
    before = kept_positions(graph, candidate.kept)
    if not maxout:
        return before
    channels = {group.name: tuple(range(group.num_channels)) for group in graph.groups} | dict(candidate.kept)
    for group in graph.groups:
        # A layer may also read the group, and have a maximum over what it writes itself.
        owners = {member.parameter.rpartition(".")[0] for member in group.members if member.axis == 0}
        count = max(maxout.get(owner, 1) for owner in ("", *owners))
        channels[group.name] = channels[group.name][::count]
    behind = kept_positions(graph, channels)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept: dict[str, dict[int, IndexArray]] = {}
    for name, axes in behind.items():
        for axis, positions in axes.items():
            stay = positions if tensors[name].shape[axis] == len(positions) else before.get(name, {}).get(axis)
            if stay is not None:
                kept.setdefault(name, {})[axis] = stay
    return kept


def _kept(model: nn.Module, recipe: Mapping[str, Any]) -> dict[str, dict[int, IndexArray]]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, shape in recipe["dense_shapes"].items():
        if name not in tensors:
            raise RecipeError(
                f"The recipe slices {name!r}, which this network does not have.",
                hint="Pass the dense network that the recipe was made from.",
            )
        came = list(tensors[name].shape)
        if came != shape:
            raise RecipeError(
                f"The recipe was made for {name!r} of shape {shape}; this network's has shape {came}.",
                hint="Pass the dense network that the recipe was made from.",
            )
    return {
        name: {int(axis): unpack_positions(packed) for axis, packed in axes.items()}
        for name, axes in recipe["kept"].items()
    }


def _numbers(model: nn.Module, recipe: Mapping[str, Any]) -> list[NumberOnModule]:
    """Return the numbers on modules that the recipe sets, all of which the network has.

    Raises:
        RecipeError: if the network has no such number.
    """
    modules = dict(model.named_modules())
    numbers = [(module, name, place, value) for module, name, place, value in recipe.get("numbers", ())]
    for module, name, place, value in numbers:
        old = getattr(modules.get(module), name, None)
        if place is not None and isinstance(old, list | tuple) and place < len(old):
            old = old[place]
        if type(old) is not int or type(value) is not int:
            raise RecipeError(
                f"The recipe sets {module}.{name} to {value}; this network has no such number there.",
                hint="Pass the dense network that the recipe was made from.",
            )
    return numbers


def _identity(model: nn.Module, recipe: Mapping[str, Any]) -> list[str]:
    """Return the blocks that the recipe leaves out, all of which the network has.

    Raises:
        RecipeError: if the network has no such module.
    """
    modules = dict(model.named_modules())
    names = list(recipe.get("identity", ()))
    for name in names:
        if not name or name not in modules:
            raise RecipeError(
                f"The recipe leaves out the block {name!r}, which this network does not have.",
                hint="Pass the dense network that the recipe was made from.",
            )
    return names


def _edits(model: nn.Module, recipe: Mapping[str, Any]) -> list[CodeEdit]:
    """Return the changes of code that the recipe makes, in modules that the network has.

    Raises:
        RecipeError: if the network has no such module.
    """
    modules = dict(model.named_modules())
    edits = [CodeEdit(*row) for row in recipe.get("code", ())]
    for edit in edits:
        if edit.module not in modules:
            raise RecipeError(
                f"The recipe changes the code of {edit.module!r}, which this network does not have.",
                hint="Pass the dense network that the recipe was made from.",
            )
    return edits


def _digest(recipe: Mapping[str, Any]) -> str:
    content = {key: value for key, value in recipe.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _first_lines(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines()[:3])
