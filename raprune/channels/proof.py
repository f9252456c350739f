"""The proof that a channel graph is right for a network; groups that fail are frozen and named.

In float64, on a copy of the network whose constant parameters are made random (a zero scale would hide a mistake):

1. a random permutation of the channels, the same in all members of a group, leaves the outputs unchanged. This holds
   for every architecture, layer norm included;
2. the narrowest network is cut and runs;
3. random candidates are cut and run. Their outputs equal those of the network whose removed channels are zeroed.
   Layer norms and group norms, which run across the channels, only scale in both networks of this comparison, and
   the inputs of each softmax are compared (`softmax.py`);
4. the comparison is made again with an image of another size, with a batch of two and other values, and in training
   mode, as far as the dense network runs in these situations (`situations.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from raprune.channels.arithmetic import NormScales, ProofArithmetic
from raprune.channels.cut import cut, rebuild
from raprune.channels.graph import ChannelGraph, KeptPositions
from raprune.channels.inputs import NetworkInputs, call, described, tensors_in
from raprune.channels.members import QueryKeyProduct
from raprune.channels.situations import Situation, first_situation, other_situations
from raprune.errors import ModelError
from raprune.records import Candidate

TOLERANCE = 1e-9
"""Largest difference of an output, as a fraction of the largest output, that float64 arithmetic explains."""
TRAINING_TOLERANCE = 1e-6
"""The same in training mode, where the statistics of a few values enlarge rounding errors from layer to layer."""


@dataclass(frozen=True)
class Proof:
    """The result of a proof: `graph` holds only groups that passed."""

    graph: ChannelGraph
    permutation_error: float
    """Largest difference after a permutation of all channels, as a fraction of the largest output."""
    cut_error: float
    """Largest difference between cut and masked networks, as a fraction of the largest output; 0 without a mask."""
    candidates: int
    """Number of random candidates that were cut and run."""
    seconds: float
    """Duration of the proof."""
    frozen: dict[str, str] = field(default_factory=dict)
    """Reason for each group that did not pass."""


@dataclass(frozen=True)
class _Failure:
    reason: str
    module: str | None = None
    """Module in which the cut network raised an error; None if the network ran with other outputs."""


def prove(model: nn.Module, graph: ChannelGraph, example_input: NetworkInputs, *, seed: int = 0) -> Proof:
    """Prove `graph` for `model`, which is not changed. Groups that fail are frozen in the result's graph.

    `example_input` is one image, shape `(1, channels, height, width)`, on the model's device, or the other inputs that
    `trace` takes. The values of floating-point tensors are not used.

    Raises:
        ModelError: if the network does not run in float64, or gives no finite output.
    """
    started = time.perf_counter()
    network = ProofNetwork(model, graph, example_input, seed)
    graph = replace(graph, products=network.with_free_bases(graph.products))
    graph = _settle(graph, network.permuted)
    graph = _settle(graph, network.run_cut)
    graph = _settle(graph, network.run_narrowest)
    graph = _settle(graph, network.equals_masked)
    if network.has_norms:
        graph = _settle(graph, network.maskable_equal_masked)
    if graph.groups:
        for situation in network.situations(example_input):
            graph = _settle(graph, partial(network.equals_masked, situation=situation))
    return Proof(
        graph=graph,
        permutation_error=network.permutation_error(graph, graph.widths),
        cut_error=network.worst_cut,
        candidates=network.cuts,
        seconds=time.perf_counter() - started,
        frozen={f.module: f.reason for f in graph.frozen if f.reason.startswith(_PREFIX)},
    )


_PREFIX = "failed the proof: "

_Check = Callable[[ChannelGraph, Collection[str]], _Failure | None]


def _settle(graph: ChannelGraph, check: _Check) -> ChannelGraph:
    """Freeze groups until the remaining groups pass `check` together."""
    while graph.groups:
        failure = check(graph, graph.widths)
        if failure is None:
            break
        names = _culprits(graph, check, list(graph.widths), failure)
        graph = graph.without(dict.fromkeys(names, _PREFIX + failure.reason))
    return graph


def _culprits(graph: ChannelGraph, check: _Check, names: list[str], failure: _Failure) -> list[str]:
    """Return the groups of `names` that fail by themselves; all of `names` if they fail only together."""
    if failure.module is not None:
        suspects = _groups_in(graph, names, failure.module)
        # The module that raises may come after the module that is wrong, so the suspects must fail by themselves.
        if suspects and len(suspects) < len(names) and check(graph, suspects):
            names = suspects
    if len(names) == 1:
        return names
    half = len(names) // 2
    found = []
    for part in (names[:half], names[half:]):
        again = check(graph, part)
        if again is not None:
            found += _culprits(graph, check, part, again)
    return found or names


def _groups_in(graph: ChannelGraph, names: list[str], module: str) -> list[str]:
    """Return the groups that slice a parameter inside `module`, else inside the nearest module around `module`."""
    while True:
        inside = f"{module}." if module else ""
        found = [n for n in names if any(m.parameter.startswith(inside) for m in graph.by_name[n].members)]
        if found or not module:
            return found
        module = module.rpartition(".")[0]


class ProofNetwork:
    """The float64 copy of the network, its reference outputs, and the checks on this copy."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, example: NetworkInputs, seed: int) -> None:
        self._seed = seed
        generator = torch.Generator().manual_seed(seed)
        self._generator = generator
        self.first = first_situation(example, generator)
        sliced = {member.parameter for group in graph.groups for member in group.members}
        self._buffers = buffers = {name for name, _ in model.named_buffers()}
        # Let go of before another copy is made: a large network has no room for both.
        self._last: tuple[tuple[int, tuple[str, ...]], tuple[nn.Module, nn.Module]] | None = None
        self._last_graph = graph
        settings = {name for name in buffers if name not in sliced and name.rpartition(".")[2] not in STATISTICS}
        try:
            # A buffer that is no statistic is a setting (a range, a table, a length): only its own values are valid.
            self.model = rebuild(model, lambda name, t: self.own(name, _informative(t, generator, name in settings)))
            self._reference = self.run(self.model)
        except Exception:  # a sliced buffer can be a setting, too: the ranges of a quantiser
            try:
                self.model = rebuild(model, lambda name, t: self.own(name, _informative(t, generator, name in buffers)))
                self._reference = self.run(self.model)
            except Exception as error:
                text = str(error).strip().split("\n")[0]
                raise ModelError(
                    f"A copy of the network in float64 does not run on {described(example)}: "
                    f"{type(error).__name__}: {text}",
                    hint="Its groups are proved on such a copy. Check for tensors, modules or closures in the network "
                    "that are neither parameters nor buffers, and for types that its code fixes.",
                ) from error
        if not len(self._reference):
            raise ModelError(
                f"The network returns no tensor with values for {described(example)}, so its groups cannot be proved.",
                hint="A detector that finds nothing in noise does so. Pass the network in front of its last selection: "
                "its backbone, neck and heads.",
            )
        self._scale = float(self._reference.abs().max())
        if not np.isfinite(self._scale) or self._scale == 0.0:
            raise ModelError(
                "The network gives no finite, non-zero output in float64, so its groups cannot be proved.",
                hint="Check the weights for NaN or overflow.",
            )
        self.worst_cut = 0.0
        self.cuts = 0
        self.has_norms = False
        """True if a layer norm or a group norm ran in the comparison with the masked network."""

    def situations(self, example: NetworkInputs) -> Iterator[Situation]:
        """Yield the other situations in which the dense network runs and gives a finite output."""
        for alternatives in other_situations(example, self._generator):
            for situation in alternatives:
                try:
                    out = self.run(rebuild(self.model, self.own), situation, NormScales())
                except Exception:
                    continue
                if len(out) and bool(out.isfinite().all()):
                    yield situation
                    break

    def permuted(self, graph: ChannelGraph, names: Collection[str]) -> _Failure | None:
        error = self.permutation_error(graph, names)
        return (
            None if error <= TOLERANCE else _Failure(f"a permutation of its channels changes the output ({error:.0e})")
        )

    def permutation_error(self, graph: ChannelGraph, names: Collection[str]) -> float:
        """Return the largest relative change of the output when the channels of the named groups are permuted."""
        rng = np.random.default_rng(self._seed)
        order: dict[str, dict[int, np.ndarray]] = {}
        for group in (g for g in graph.groups if g.name in names):
            # One cycle through all channels: every channel moves, even if there are only two.
            cycle = rng.permutation(group.num_channels)
            shuffled = np.empty_like(cycle)
            shuffled[cycle] = np.roll(cycle, 1)
            for member in group.members:
                axes = order.setdefault(member.parameter, {})
                size = graph.shapes[member.parameter][member.axis]
                positions = np.arange(size)
                positions[member.indices] = member.indices[shuffled]
                # One axis may lose heads and widths: one permutation after the other.
                axes[member.axis] = axes[member.axis][positions] if member.axis in axes else positions

        def permute(name: str, tensor: Tensor) -> Tensor:
            for axis, positions in order.get(name, {}).items():
                tensor = tensor.index_select(axis, torch.as_tensor(positions, device=tensor.device))
            return tensor

        self._last = None
        return self._difference(self.run(rebuild(self.model, permute)))

    def with_free_bases(self, products: Sequence[QueryKeyProduct]) -> tuple[QueryKeyProduct, ...]:
        """Return the products in which another basis of the heads' widths leaves the outputs unchanged."""
        if not products or self._difference(self.run(self._in_other_bases(products))) <= TOLERANCE:
            return tuple(products)
        if len(products) == 1:
            return ()
        half = len(products) // 2
        return self.with_free_bases(products[:half]) + self.with_free_bases(products[half:])

    def _in_other_bases(self, products: Sequence[QueryKeyProduct]) -> nn.Module:
        """Return the network with random bases of queries, and the ones that belong to them of keys."""
        generator = torch.Generator().manual_seed(self._seed)
        bases: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for product in products:
            width = product.queries[0].positions.shape[1]
            drawn = torch.randn(width, width, generator=generator, dtype=torch.float64)
            # Lengths of 0.5 to 1.5 in orthogonal directions, so that the inverse is as exact as the basis.
            basis = torch.linalg.qr(drawn).Q * (torch.rand(width, generator=generator, dtype=torch.float64) + 0.5)
            for side, matrix in ((product.queries, basis), (product.keys, torch.linalg.inv(basis).mT)):
                for rows in side:
                    bases.setdefault(rows.parameter, []).append((torch.from_numpy(rows.positions), matrix))

        def change(name: str, tensor: Tensor) -> Tensor:
            changed = tensor.clone() if name in bases else self.own(name, tensor)
            for positions, matrix in bases.get(name, ()):
                rows = (
                    tensor[positions.to(tensor.device)].flatten(2) if tensor.dim() > 1 else tensor[positions][..., None]
                )
                mixed = matrix.to(tensor.device) @ rows
                changed[positions.to(tensor.device)] = mixed.view(*positions.shape, *tensor.shape[1:])
            return changed

        return rebuild(self.model, change)

    def run_cut(self, graph: ChannelGraph, names: Collection[str]) -> _Failure | None:
        """Run a network with about half of the channels of every named group; return its failure, if any."""
        out = self._run_smaller(self._masked_and_cut(graph, names)[1], self.first)
        if isinstance(out, _Failure):
            return out
        if out.shape != self._reference.shape:
            return _Failure("the cut network's output has another shape")
        return None if bool(out.isfinite().all()) else _Failure("the cut network's output is not finite")

    def run_narrowest(self, graph: ChannelGraph, names: Collection[str]) -> _Failure | None:
        """Run a network with one channel of every named group: numbers in Python code may only suit larger widths."""
        smaller = cut(self.model, graph, Candidate("narrowest", dict.fromkeys(names, (0,))))
        out = self._run_smaller(smaller, self.first)
        if isinstance(out, _Failure) and "more than 1 value per channel" in out.reason:
            return None  # one channel of one pixel: only images as small as those of a proof have such a norm
        if isinstance(out, _Failure):
            return replace(out, reason=f"with one channel left, {out.reason}")
        if out.shape != self._reference.shape:
            return _Failure("with one channel left, the cut network's output has another shape")
        finite = bool(out.isfinite().all())
        return None if finite else _Failure("with one channel left, the cut network's output is not finite")

    def _run_smaller(
        self, smaller: nn.Module, situation: Situation, norms: NormScales | None = None
    ) -> Tensor | _Failure:
        """Return the output of a cut network, or its failure with the module that stopped."""
        self.cuts += 1
        stack: list[str] = []
        with _module_stack(smaller, stack):
            try:
                return self.run(smaller, situation, norms)
            except Exception as error:
                where = stack[-1] if stack else ""
                text = str(error).strip().split("\n")[0]
                return _Failure(f"the cut network stops in {where or 'its forward'}: {text[:120]}", where)

    def maskable_equal_masked(self, graph: ChannelGraph, names: Collection[str]) -> _Failure | None:
        """Compare as `equals_masked` does, for the groups that are said to have no norm across them, with the norms."""
        maskable = [name for name in names if graph.by_name[name].maskable]
        return self.equals_masked(graph, maskable, norms=False) if maskable else None

    def equals_masked(
        self, graph: ChannelGraph, names: Collection[str], situation: Situation | None = None, *, norms: bool = True
    ) -> _Failure | None:
        """Compare cutting the named groups with zeroing the removed channels; return the failure, if any.

        With `norms`, layer norms and group norms only scale in both networks.
        """
        situation = situation or self.first
        masked_network, smaller_network = self._masked_and_cut(graph, names)
        scales = NormScales() if norms else None
        masked = self.run(masked_network, situation, scales)
        smaller = self._run_smaller(smaller_network, situation, None if scales is None else scales.replay())
        self.has_norms = self.has_norms or bool(scales)
        phrase = f"{situation.name}, " if situation.name else ""
        if isinstance(smaller, _Failure):
            return replace(smaller, reason=phrase + smaller.reason)
        if smaller.shape != masked.shape:
            return _Failure(f"{phrase}the cut network's output has another shape")
        error = float((masked - smaller).abs().max()) / max(float(masked.abs().max()), 1e-300)
        if not error <= (TRAINING_TOLERANCE if situation.training else TOLERANCE):
            return _Failure(f"{phrase}the cut network differs from the masked one ({error:.0e})")
        if scales is not None and scales.softmax.differ and not situation.training:
            return _Failure(f"{phrase}a softmax of the cut network has other inputs than that of the masked one")
        if not situation.name:
            self.worst_cut = max(self.worst_cut, error)
        return None

    def _masked_and_cut(self, graph: ChannelGraph, names: Collection[str]) -> tuple[nn.Module, nn.Module]:
        """Return the two networks to compare; the last two are kept, because copies take most of a proof's time."""
        key = (id(graph), tuple(names))
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        self._last = None
        candidate = self._candidate(graph, names)
        removed = KeptPositions(graph, candidate.kept)
        gone: dict[str, list[tuple[int, Tensor]]] = {}
        for group in map(graph.by_name.__getitem__, names):
            for member in group.members:
                positions = torch.from_numpy(removed.removed(group, member))
                gone.setdefault(member.parameter, []).append((member.axis, positions))

        def mask(name: str, tensor: Tensor) -> Tensor:
            tensor = tensor.clone() if name in gone else self.own(name, tensor)
            for axis, positions in gone.get(name, ()):
                tensor.index_fill_(axis, positions.to(tensor.device), 0.0)
            return tensor

        pair = (rebuild(self.model, mask), cut(self.model, graph, candidate))
        # The graph is held as well, so that no other graph gets its id.
        self._last, self._last_graph = (key, pair), graph
        return pair

    def own(self, name: str, tensor: Tensor) -> Tensor:
        """Return a parameter as it is, and a copy of a buffer, which a forward pass may change."""
        return tensor.clone() if name in self._buffers else tensor

    def _candidate(self, graph: ChannelGraph, names: Collection[str]) -> Candidate:
        rng = np.random.default_rng(self._seed + 1)
        kept = {}
        for group in graph.groups:
            # Drawn for every group, so that a group keeps the same channels whichever other groups are cut.
            width = int(rng.integers(1, group.num_channels)) if group.num_channels > 1 else 1
            channels = sorted(rng.permutation(group.num_channels)[:width].tolist())
            if group.name in names:
                kept[group.name] = tuple(channels)
        return Candidate("proof", kept)

    def run(self, model: nn.Module, situation: Situation | None = None, norms: NormScales | None = None) -> Tensor:
        """Return all outputs of `model`, whose mode is set, as one vector."""
        situation = situation or self.first
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            model.train(situation.training)
            with torch.random.fork_rng(devices=[]), torch.no_grad(), ProofArithmetic(norms):
                torch.manual_seed(self._seed)
                outputs = list(tensors_in(call(model, situation.inputs, small=True)))
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
        parts = [torch.view_as_real(out) if out.is_complex() else out for out in outputs]
        return torch.cat(
            [torch.empty(0, dtype=torch.float64), *(out.detach().cpu().reshape(-1).double() for out in parts)]
        )

    def _difference(self, out: Tensor) -> float:
        if out.shape != self._reference.shape:
            return float("inf")
        error = float((out - self._reference).abs().max()) / self._scale
        return error if np.isfinite(error) else float("inf")


STATISTICS = ("running_mean", "running_var", "weight", "bias")
"""Names of buffers that may take any positive values: the statistics and scales of norms, frozen norms as well."""


def _informative(tensor: Tensor, generator: torch.Generator, keep: bool) -> Tensor:
    """Return the tensor in float64, with random values in [0.5, 1.5) for vectors and constants (scales, statistics).

    With `keep`, it has its own values. What does not change is not copied.
    """
    if not tensor.is_floating_point():
        return tensor
    constant = tensor.dim() <= 1 or not bool((tensor.reshape(-1)[:1] != tensor).any())
    if keep or tensor.numel() == 0 or not constant:
        return tensor.double()
    return (torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5).to(tensor.device)


@contextmanager
def _module_stack(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the names of the running modules in `stack`, outermost first; after an error they stay in `stack`."""
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            continue
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        handles.append(module.register_forward_hook(lambda *_: (stack.pop(), None)[1]))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
