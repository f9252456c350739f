"""A condensed network survives the disk, and what does not belong together is refused with the reason."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from raprune.channels.cut import cut
from raprune.channels.gates import with_gates
from raprune.channels.maxout import insert, inserted
from raprune.channels.positions import pack_positions
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.checks.contract.noise import services_of
from raprune.errors import RecipeError
from raprune.methods import Network
from raprune.methods.maxout import Maxout
from raprune.pruning.artifact import load, load_from, read_recipe, save, versions
from raprune.records import Candidate
from raprune.store.folder import Store
from tests.channels.networks import NETWORKS, Residual, Stages, build, image
from tests.channels.proved import outputs, proved


def exported(folder: Path, name: str = "Residual") -> nn.Module:
    """A network cut to every other channel, and written to the folder."""
    model, graph = proved(name)
    candidate = Candidate("l2", {g.name: tuple(range(0, g.num_channels, 2)) for g in graph.groups}, {"p": 2})
    smaller = cut(model, graph, candidate)
    save(
        Store(str(folder)),
        "",
        model=smaller,
        graph=graph,
        candidate=candidate,
        provenance={"seed": 7, "metrics": {"accuracy": 0.9}},
    )
    return smaller


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_network_comes_back(name: str, tmp_path: Path) -> None:
    smaller = exported(tmp_path, name)
    dense = NETWORKS[name]()  # other weights: only its code and sizes are used
    state = {key: value.clone() for key, value in dense.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(dense, str(tmp_path))
    assert torch.equal(outputs(loaded, image()), outputs(smaller, image()))
    assert repr(loaded) == repr(smaller)
    assert not loaded.training
    assert dense.training
    assert all(torch.equal(value, state[key]) for key, value in dense.state_dict().items())


def test_folders_inside_a_store(tmp_path: Path) -> None:
    model, graph = proved("Residual")
    store = Store(str(tmp_path / "run"))
    candidate = Candidate("l1", {"conv1": (0, 2)})
    smaller = cut(model, graph, candidate)
    folder = f"models/{candidate.id}"
    save(store, folder, model=smaller, graph=graph, candidate=candidate, provenance={})
    assert torch.equal(outputs(load_from(Residual(), store, folder), image()), outputs(smaller, image()))
    assert torch.equal(outputs(load(Residual(), str(tmp_path / "run" / folder)), image()), outputs(smaller, image()))


def test_recipe_names_its_method_widths_and_versions(tmp_path: Path) -> None:
    exported(tmp_path)
    recipe = read_recipe(Store(str(tmp_path)), "")
    _, graph = proved("Residual")
    assert recipe["architecture"] == graph.architecture
    assert recipe["widths"] == {"stem": 4, "conv1": 3}
    assert recipe["method"] == "l2"
    assert recipe["settings"] == {"p": 2}
    assert recipe["seed"] == 7
    assert recipe["versions"] == versions()
    assert recipe["kept"]["conv1.weight"] == {"0": [[0, 0], [2, 2], [4, 4]], "1": [[c, c] for c in (0, 2, 4, 6)]}
    assert recipe["dense_shapes"]["conv1.weight"] == [6, 8, 3, 3]


def test_without_raprune(tmp_path: Path) -> None:
    """As the module's first lines promise: slice, set the sizes, load."""
    smaller = exported(tmp_path)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    dense = Residual().eval()
    state = dense.state_dict()
    for name, axes in recipe["kept"].items():
        for axis, runs in axes.items():
            positions = [p for first, last in runs for p in range(first, last + 1)]
            state[name] = state[name].index_select(int(axis), torch.tensor(positions))
    weights = load_file(tmp_path / "weights.safetensors")
    assert {name: value.shape for name, value in state.items()} == {name: v.shape for name, v in weights.items()}
    plain = Residual().eval()
    plain.stem, plain.stem_bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
    plain.conv1, plain.bn1 = nn.Conv2d(4, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
    plain.conv2, plain.bn2 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
    plain.head = nn.Linear(4, 5)
    plain.load_state_dict(weights)
    assert torch.equal(outputs(plain.eval(), image()), outputs(smaller, image()))


def test_half_precision_comes_back_as_it_was(tmp_path: Path) -> None:
    _, graph = proved("Residual")
    candidate = Candidate("l2", {"conv1": (1, 3)})
    smaller = cut(build("Residual").half(), graph, candidate)
    save(Store(str(tmp_path)), "", model=smaller, graph=graph, candidate=candidate, provenance={})
    loaded = load(Residual().half(), str(tmp_path))
    assert torch.equal(outputs(loaded, image().half()), outputs(smaller, image().half()))


def with_units(kept: tuple[int, ...]) -> tuple[nn.Module, Candidate]:
    """`FlattenLinear` with pairs behind its convolution, whose reader has one channel a pair."""
    model, graph = proved("FlattenLinear")
    conv, hidden = (graph.by_name[name] for name in ("conv", "hidden"))
    candidate = Candidate("maxout", {conv.name: kept, hidden.name: (0, 3, 5)})
    smaller = cut(model, graph, candidate)
    reader = replace(conv, members=tuple(member for member in conv.members if member.parameter == "hidden.weight"))
    behind = replace(graph, groups=(reader,)).after({conv.name: kept})
    behind = replace(behind, shapes={"hidden.weight": tuple(smaller.get_parameter("hidden.weight").shape)})
    smaller = cut(smaller, behind, Candidate("", {conv.name: tuple(range(0, len(kept), 2))}))
    insert(smaller, {"conv": 2})
    return smaller, candidate


@pytest.mark.parametrize("kept", [(0, 1, 3, 4), (0, 1, 2, 3, 4, 5)])
def test_a_network_with_maxout_units(kept: tuple[int, ...], tmp_path: Path) -> None:
    """Before the maximum all kept channels, behind it one a unit; with no channel gone the reader alone is narrower."""
    smaller, candidate = with_units(kept)
    assert smaller.get_parameter("hidden.weight").shape[1] == len(kept) // 2 * 4
    _, graph = proved("FlattenLinear")
    save(Store(str(tmp_path)), "", model=smaller, graph=graph, candidate=candidate, provenance={})
    recipe = read_recipe(Store(str(tmp_path)), "")
    assert recipe["maxout"] == {"conv": 2}
    firsts = [channel * 4 for channel in kept[::2]]
    assert recipe["kept"]["hidden.weight"]["1"] == pack_positions(np.add.outer(firsts, np.arange(4)).reshape(-1))
    assert ("conv.weight" in recipe["kept"]) == (len(kept) < 6)
    loaded = load(NETWORKS["FlattenLinear"](), str(tmp_path))
    assert inserted(loaded) == {"conv": 2}
    assert torch.equal(outputs(loaded, image()), outputs(smaller, image()))


@pytest.mark.parametrize("name", ["Residual", "DenseBlock", "FlattenLinear", "Transposed"])
def test_every_network_on_the_way_of_maxout_units(name: str, tmp_path: Path) -> None:
    """With batch norms, readers of several groups, and groups without units beside those that have some."""
    dense, graph = proved(name)
    widths = {group.name: 2 for group in graph.groups}
    whole = {group.name: tuple(range(group.num_channels)) for group in graph.groups}
    method, seen = Maxout(candidates=3, epochs=0.0, weight_pruning=0.0), []
    for number, step in enumerate(method.path(Network(dense, graph, whole), widths, services_of(dense, seed=0))):
        model, folder = step.network.model.eval(), str(tmp_path / str(number))
        candidate = Candidate("maxout", step.network.kept)
        save(Store(folder), "", model=model, graph=graph, candidate=candidate, provenance={})
        loaded = load(NETWORKS[name](), folder)
        assert torch.equal(outputs(loaded, image()), outputs(model, image()))
        seen.append(set(inserted(loaded).values()))
    assert seen == [{3}, {2}, set()]


def test_a_recipe_without_blocks_loads_with_and_without_raprune(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = Stages().eval()
    graph = with_gates(dense, prove(dense, trace(dense, image()), image()).graph, image())
    closed = graph.closed(["stage.2"])
    kept = {group.name: tuple(range(0, group.num_channels, 2)) for group in closed.groups}
    candidate = Candidate("l2", kept, identity=("stage.2",))
    smaller = cut(dense, graph, candidate)
    save(Store(str(tmp_path)), "", model=smaller, graph=graph, candidate=candidate, provenance={})
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert (recipe["format"], recipe["identity"]) == (3, ["stage.2"])
    assert torch.equal(outputs(load(Stages(), str(tmp_path)), image()), outputs(smaller, image()))
    plain = Stages().eval()
    for name in recipe["identity"]:
        plain.set_submodule(name, nn.Identity())
    state = plain.state_dict()
    for name, axes in recipe["kept"].items():
        for axis, runs in axes.items():
            positions = [p for first, last in runs for p in range(first, last + 1)]
            state[name] = state[name].index_select(int(axis), torch.tensor(positions))
    weights = load_file(tmp_path / "weights.safetensors")
    assert {name: value.shape for name, value in state.items()} == {name: v.shape for name, v in weights.items()}
    with pytest.raises(RecipeError, match=r"'stem\.weight', which this network does not have"):
        load(nn.Linear(3, 4), str(tmp_path))


def test_a_plain_network_names_no_maxout_units(tmp_path: Path) -> None:
    exported(tmp_path)
    assert "maxout" not in read_recipe(Store(str(tmp_path)), "")


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def on_disk(folder: Path) -> None:
        path = folder / "recipe.json"
        recipe = json.loads(path.read_text())
        change(recipe)
        path.write_text(json.dumps(recipe))

    return on_disk


def swap_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    weights = load_file(path)
    save_file({name: torch.zeros_like(value) for name, value in weights.items()}, path)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a kept channel changed": (
        edit(lambda r: r["kept"]["conv1.weight"]["0"].pop()),
        "was changed since it was written",
    ),
    "the method changed": (edit(lambda r: r.update(method="l1")), "was changed since it was written"),
    "the digest removed": (edit(lambda r: r.pop("digest")), "was changed since it was written"),
    "a newer format": (edit(lambda r: r.update(format=99)), "format 99; this version reads format 1"),
    "no recipe": (lambda folder: (folder / "recipe.json").unlink(), "no recipe.json there"),
    "no weights": (lambda folder: (folder / "weights.safetensors").unlink(), "is not there, though its recipe is"),
    "not JSON": (lambda folder: (folder / "recipe.json").write_text("{"), "not JSON"),
    "not text": (lambda folder: (folder / "recipe.json").write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "another thing in JSON": (lambda folder: (folder / "recipe.json").write_text("[1]"), "format 'list'"),
    "other weights": (swap_weights, "is not the file that the recipe was written with"),
    "half a file of weights": (
        lambda folder: (folder / "weights.safetensors").write_bytes(
            (folder / "weights.safetensors").read_bytes()[:100]
        ),
        "is not the file that the recipe was written with",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_refused(kind: str, tmp_path: Path) -> None:
    breaks, message = BROKEN[kind]
    exported(tmp_path)
    breaks(tmp_path)
    with pytest.raises(RecipeError, match=message) as caught:
        load(Residual(), str(tmp_path))
    assert caught.value.hint


def test_another_network_is_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    with pytest.raises(RecipeError, match=r"'stem_bn\.\w+', which this network does not have"):
        load(build("DenseBlock"), str(tmp_path))


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    wide = Residual()
    wide.conv1 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
    with pytest.raises(RecipeError, match=r"'conv1\.weight' of shape \[6, 8, 3, 3\]; this network's has shape \[12,"):
        load(wide, str(tmp_path))


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    more = Residual()
    more.head = nn.Linear(8, 7)
    with pytest.raises(RecipeError, match=r"head\.weight"):
        load(more, str(tmp_path))


def test_more_or_fewer_layers_are_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    deeper = Residual()
    deeper.extra = nn.Linear(3, 3)
    with pytest.raises(RecipeError, match="extra"):
        load(deeper, str(tmp_path))


class Changed(Residual):
    def body(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().body(x)


def test_changed_code_of_the_same_shapes_is_warned_of(tmp_path: Path) -> None:
    exported(tmp_path)
    with pytest.warns(UserWarning, match="code or settings differ"):
        load(Changed(), str(tmp_path))


def test_nothing_in_a_folder_is_executed(tmp_path: Path) -> None:
    """A pickle in place of the weights is refused by its hash, one with the right hash by its format."""
    exported(tmp_path)
    torch.save(Residual(), tmp_path / "weights.safetensors")
    with pytest.raises(RecipeError):
        load(Residual(), str(tmp_path))
