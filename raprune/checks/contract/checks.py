"""The checks of the contract, one function each; a check raises `MethodError` that describes the wrong behaviour."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, FrozenInstanceError, fields
from inspect import get_annotations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.checks.contract.networks import CLASSES, NETWORKS, build, graph_of
from raprune.checks.contract.noise import Noise, services_of
from raprune.errors import MethodError
from raprune.methods import Cut, Method, Network, Regularizer, Scores, Step
from raprune.records import Candidate

Check = Callable[[type[Method]], None]


def describes_itself(kind: type[Method]) -> None:
    _require(bool(kind.title) and "\n" not in kind.title, "`title` is no line of text")
    method, known = kind(), {entry.name for entry in fields(kind)}
    for name, annotation in get_annotations(kind).items():
        is_field = "ClassVar" in str(annotation) or name in known
        _require(is_field, f"`{name}` is no field: decorate the class with @dataclass(frozen=True, kw_only=True)")
    try:
        method.title = ""  # type: ignore[misc]  # the check is that this raises
    except FrozenInstanceError:
        pass
    else:
        raise MethodError("the method can be changed: decorate it with @dataclass(frozen=True, kw_only=True)")
    _require(method == kind() and hash(method) == hash(kind()), "two methods with the same settings are not equal")
    for entry in fields(kind):
        is_plain = isinstance(entry.default, bool | int | float | str)
        _require(is_plain, f"`{entry.name}`: the default is no bool, int, float or str")
        if "search" in entry.metadata:
            _check_range(entry.name, entry.default, entry.metadata["search"])


def crosses_processes(kind: type[Method]) -> None:
    method = kind()
    pickle.dumps(method)
    # A deep copy uses the same protocol as unpickling (`__reduce_ex__`), without loading a pickle.
    _require(copy.deepcopy(method) == method, "the unpickled method is not equal to the pickled method")


def one_finite_score_a_channel(kind: type[Method]) -> None:
    for network, graph, scores in _scored(kind):
        names = [group.name for group in graph.groups]
        _require(list(scores) == names, f"{network}: the method scores {list(scores)}, the groups are {names}")
        for group in graph.groups:
            values, where = scores[group.name], f"{network}, group {group.name}"
            _require(isinstance(values, np.ndarray) and values.dtype == np.float64, f"{where}: no float64 array")
            _require(values.shape == (group.num_channels,), f"{where}: shape {values.shape}, not one score per channel")
            _require(bool(np.isfinite(values).all()), f"{where}: scores that are not finite")


def same_seed_same_scores(kind: type[Method]) -> None:
    one, same, other = (_score(kind, "Residual", seed=seed) for seed in (5, 5, 6))
    _require(_equal(one, same), "the same seed gave other scores")
    given = "the same" if _equal(one, other) else "other"
    _require(_equal(one, other) is not kind.seeded, f"`seeded` is {kind.seeded}, but another seed gave {given} scores")


def scores_of_a_group_stand_alone(kind: type[Method]) -> None:
    if kind.seeded:  # seeded methods are never scored in parts
        return
    for network, graph, scores in _scored(kind):
        for name in scores:
            alone = kind().score(build(network), graph.only([name]), Noise(), seed=0)
            _require(list(alone) == [name], f"{network}: asked for {name} alone, the method scores {list(alone)}")
            same = np.allclose(alone[name], scores[name], rtol=1e-6, atol=1e-9 * float(np.abs(scores[name]).max()))
            _require(same, f"{network}: {name} alone has other scores than together with all groups")


def scores_are_shared_rightly(kind: type[Method]) -> None:
    """Check that the settings that `behind_scores` leaves out do not change the scores."""
    scores, behind = _score(kind, "Residual"), kind().behind_scores()
    for entry in fields(kind):
        if entry.name in behind:
            continue
        for value in _other_values(entry):
            other = kind(**{entry.name: value}).score(build("Residual"), graph_of("Residual"), Noise(), seed=0)
            problem = f"`{entry.name}` = {value!r} gives other scores, but `behind_scores` leaves this field out"
            _require(_equal(scores, other), problem)


def scoring_leaves_everything_as_it_was(kind: type[Method]) -> None:
    for training in (True, False):
        model, batches = build("Residual").train(training), Noise()
        data = [(x.clone(), y.clone()) for x, y in batches.data]
        generator = torch.get_rng_state()
        with _unchanged(model, "the network"):
            kind().score(model, graph_of("Residual"), batches, seed=0)
        modes = {module.training for module in model.modules()}
        _require(modes == {training}, f"the network's {'training' if training else 'evaluation'} mode was changed")
        _require(torch.equal(torch.get_rng_state(), generator), "torch's global generator was used")
        for (x, y), before in zip(batches.data, data, strict=True):
            _require(torch.equal(x, before[0]) and torch.equal(y, before[1]), "the batches were changed")


def says_whether_it_needs_data(kind: type[Method]) -> None:
    batches = Noise()
    kind().score(build("Residual"), graph_of("Residual"), batches, seed=0)
    used = "used" if batches.calls else "not used"
    _require((batches.calls == 0) is kind.data_free, f"`data_free` is {kind.data_free}, but batches were {used}")


def says_whether_it_needs_labels(kind: type[Method]) -> None:
    batches = Noise()
    batches.data = [(images, (labels + 1) % CLASSES) for images, labels in batches.data]
    other = kind().score(build("Residual"), graph_of("Residual"), batches, seed=0)
    used = not _equal(_score(kind, "Residual"), other)
    _require(kind.uses_labels or not used, "`uses_labels` is False, but other labels gave other scores")


def weights_of_any_dtype(kind: type[Method]) -> None:
    model = build("Residual").to(torch.bfloat16)
    scores = kind().score(model, graph_of("Residual"), Noise(torch.bfloat16), seed=0)
    for name, values in scores.items():
        _require(values.dtype == np.float64 and bool(np.isfinite(values).all()), f"bfloat16 weights, group {name}")


def damage_ascends(kind: type[Method]) -> None:
    for network, graph, scores in _scored(kind):
        damage = kind().damage(scores)
        _require(set(damage) == set(scores), f"{network}: damage for {list(damage)}, scores for {list(scores)}")
        for group in graph.groups:
            curve, where = damage[group.name], f"{network}, group {group.name}"
            _require(
                curve.shape == (group.num_channels + 1,),
                f"{where}: not one value for each of 0 .. all channels removed",
            )
            _require(bool(np.isfinite(curve).all()), f"{where}: damage that is not finite")
            _require(bool((np.diff(curve) >= -1e-12 * np.abs(curve).max()).all()), f"{where}: damage falls")


def regularizers_are_equal(kind: type[Method]) -> None:
    """Check that `regularize` gives equal regularizers each time, because equal ones share one trained network."""
    one, other = kind().regularize(), kind().regularize()
    if one is None:
        _require(other is None, "regularize() gives None first, and then a regularizer")
        return
    _require(isinstance(one, Regularizer), f"regularize() gives {type(one).__name__}, no Regularizer")
    _require(one == other and hash(one) == hash(other), "regularize() gives another regularizer each time")
    pickle.dumps(one)
    _require(copy.deepcopy(one) == one, "the unpickled regularizer is not equal to the pickled one")
    model = build("Residual").train()
    x, y = Noise().data[0]
    functional.cross_entropy(model(x), y).backward()
    with _unchanged(model, "the regularizer must change gradients only: the network"):
        one(model)
    finite = all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    _require(finite, "the regularizer gives gradients that are not finite")


def repair_works_in_place(kind: type[Method]) -> None:
    for network, graph, scores in _scored(kind):
        kept = _best_half(scores)
        dense, twins = build(network), []
        for _ in range(2):
            model = cut(dense, graph, Candidate("contract", kept))
            shapes = {name: value.shape for name, value in model.state_dict().items()}
            with _unchanged(dense, f"{network}: the dense network"):
                kind().repair(model, Noise(), Cut(dense, graph, kept))
            same = {name: value.shape for name, value in model.state_dict().items()} == shapes
            _require(same, f"{network}: the repair changed the shapes of weights")
            _check_runs(model, f"{network}: after the repair, the network")
            twins.append(model)
        _require(_same_weights(*twins), f"{network}: two repairs of the same network gave different weights")


def path_leads_to_the_widths(kind: type[Method]) -> None:
    for network in NETWORKS:
        dense, graph = build(network), graph_of(network)
        widths = {group.name: max(1, group.num_channels // 2) for group in graph.groups}
        before = {group.name: set(range(group.num_channels)) for group in graph.groups}
        epochs, steps = 0.0, 0
        with _unchanged(dense, f"{network}: the dense network"):
            for step in _path(kind, dense, graph, widths):
                steps += 1
                kept = {name: set(channels) for name, channels in step.network.kept.items()}
                where = f"{network}, step {steps}"
                _require(set(kept) == set(widths), f"{where}: `kept` names {sorted(kept)}, not all groups")
                for name, channels in kept.items():
                    _require(bool(channels), f"{where}: {name} is empty")
                    _require(channels <= before[name], f"{where}: {name} has channels that were removed before")
                _require(step.epochs >= epochs, f"{where}: {step.epochs:g} epochs after {epochs:g}")
                _check_runs(step.network.model, f"{where}: the network")
                before, epochs = kept, step.epochs
        _require(steps > 0, f"{network}: the path has no step")
        for name, width in widths.items():
            left = len(before[name])
            _require(
                left <= width, f"{network}: the last step has {left} channels in {name}, but at most {width} may stay"
            )


def same_seed_same_path(kind: type[Method]) -> None:
    widths = {group.name: max(1, group.num_channels // 2) for group in graph_of("Residual").groups}
    paths = []
    for _ in range(2):
        steps = _path(kind, build("Residual"), graph_of("Residual"), widths)
        paths.append([(s, {key: value.clone() for key, value in s.network.model.state_dict().items()}) for s in steps])
    one, other = paths
    _require(len(one) == len(other), "the same seed gave another number of steps")
    for number, ((step, weights), (again, same)) in enumerate(zip(one, other, strict=True), start=1):
        for what in ("epochs", "settings"):
            _require(getattr(step, what) == getattr(again, what), f"the same seed gave other {what} in step {number}")
        same_kept = dict(step.network.kept) == dict(again.network.kept)
        _require(same_kept, f"the same seed kept other channels in step {number}")
        equal = all(torch.equal(value, same[key]) for key, value in weights.items())
        _require(equal, f"the same seed gave other weights in step {number}")


CHECKS: dict[str, Check] = {
    "describes itself: a title, plain settings, their ranges": describes_itself,
    "can be pickled, and so sent to another process": crosses_processes,
    "gives one finite score per channel": one_finite_score_a_channel,
    "gives the same scores for the same seed": same_seed_same_scores,
    "gives a group the same scores alone and with other groups": scores_of_a_group_stand_alone,
    "names in behind_scores every setting that changes the scores": scores_are_shared_rightly,
    "leaves the network, the batches and the generator unchanged": scoring_leaves_everything_as_it_was,
    "sets data_free if, and only if, its scores need no batches": says_whether_it_needs_data,
    "sets uses_labels if its scores depend on labels": says_whether_it_needs_labels,
    "takes weights of any dtype": weights_of_any_dtype,
    "predicts damage that ascends with the number of removed channels": damage_ascends,
    "gives the same regularizer each time, or none": regularizers_are_equal,
    "repairs in place, and in the same way each time": repair_works_in_place,
}
"""Checks of every method, by the behaviour that each check verifies."""

PATH_CHECKS: dict[str, Check] = {
    "gives smaller and smaller networks down to the widths": path_leads_to_the_widths,
    "gives the same networks for the same seed": same_seed_same_path,
}
"""Checks of methods that train while they cut, by the behaviour that each check verifies."""


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise MethodError(problem)


def _check_range(name: str, default: object, search: Mapping[str, object]) -> None:
    valid = ({"low", "high"}, {"low", "high", "log"}, {"choices"})
    _require(set(search) in valid, f"`{name}`: `search` has {sorted(search)}, not low, high (and log), or choices")
    if "choices" in search:
        choices = search["choices"]
        _require(isinstance(choices, tuple) and default in choices, f"`{name}`: its default is not among the choices")
        return
    low, high = search["low"], search["high"]
    numbers = all(isinstance(value, int | float) for value in (low, high, default))
    in_order = numbers and low <= default <= high and low < high  # type: ignore[operator]  # numbers, as checked
    _require(in_order, f"`{name}`: low <= default <= high does not hold")
    _require(not search.get("log") or low > 0, f"`{name}`: on a logarithmic range, low must be above 0")  # type: ignore[operator]


def _other_values(entry: Field[Any]) -> list[Any]:
    """Return valid values of a hyper-parameter other than its default."""
    search = entry.metadata.get("search", {})
    values = search.get("choices") or [search[end] for end in ("low", "high") if end in search]
    values = [not entry.default] if isinstance(entry.default, bool) else values
    return [value for value in values if value != entry.default]


def _score(kind: type[Method], network: str, *, seed: int = 0) -> Scores:
    return kind().score(build(network), graph_of(network), Noise(), seed=seed)


def _scored(kind: type[Method]) -> Iterator[tuple[str, ChannelGraph, Scores]]:
    for network in NETWORKS:
        yield network, graph_of(network), _score(kind, network)


def _equal(one: Scores, other: Scores) -> bool:
    return all(np.array_equal(values, other[name]) for name, values in one.items())


def _best_half(scores: Scores) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(sorted(np.argsort(-values, kind="stable")[: max(1, len(values) // 2)].tolist()))
        for name, values in scores.items()
    }


def _path(kind: type[Method], dense: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> Iterator[Step]:
    whole = {group.name: tuple(range(group.num_channels)) for group in graph.groups}
    return kind().path(Network(dense, graph, whole), widths, services_of(dense, seed=0))


@contextmanager
def _unchanged(model: nn.Module, what: str) -> Iterator[None]:
    """Require that weights, gradients and hooks of `model` do not change within the context."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    needing = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [parameter.grad is None for parameter in model.parameters()]
    yield
    after = model.state_dict()
    same = set(after) == set(before) and all(torch.equal(value, after[name]) for name, value in before.items())
    _require(same, f"{what} was changed")
    _require([p.requires_grad for p in model.parameters()] == needing, f"{what} has another requires_grad")
    _require([p.grad is None for p in model.parameters()] == gradients, f"{what} has gradients left")
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    _require(not hooked, f"{what} has hooks left")


def _check_runs(model: nn.Module, what: str) -> None:
    _require(not any(module.training for module in model.modules()), f"{what} is not in evaluation mode")
    _require(
        all(bool(p.isfinite().all()) for p in model.state_dict().values()), f"{what} has weights that are not finite"
    )
    with torch.no_grad():
        output: Tensor = model(Noise().data[0][0])
    _require(bool(output.isfinite().all()), f"{what} gives outputs that are not finite")


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    same = other.state_dict()
    return all(torch.equal(value, same[name]) for name, value in one.state_dict().items())
