"""The networks of `zoo_timm.py` cut by half by the other libraries.

    uv run --group dev python jobs/benchmarks/zoo_timm_peers.py

torch-pruning 1.6.1 and torch-kirigami 0.2.1 get each network with random weights, in a process of its own on one
thread, at its own image size, and remove half of the channels of all that they find, at random or in order; the
classifier is left alone. torch-pruning is told the heads of timm's attention and the numbers are set after the cut, as
its examples do. What comes back runs on a batch of two.

* *prunes*: it runs, and its outputs are finite; with the fraction of the dense network's FLOPs, counted by PyTorch. It
  is not compared with a masked network: torch-pruning says of no channel where it was.
* *does not run*: the library returns a network that raises an error or gives no finite number.
* *refuses*: the library raises an error. *stopped*: it has no result within a minute of CPU time.

`zoo_timm_peers.py NAME ...` measures these networks; `--libraries` one of the libraries; `--missing` only what has no
row; `--seconds N` starts nothing after N seconds. The rows are kept in `zoo_timm_peers.jsonl`, and `zoo_timm_peers.md`
is written from all of them, with the figures of raprune from `zoo_timm.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zoo_timm
from kept_rows import KeptRows, origin_now
from zoo_timm import FAMILIES, limited

ROWS = Path(__file__).with_name("zoo_timm_peers.jsonl")
TABLE = Path(__file__).with_name("zoo_timm_peers.md")
PRUNES, DOES_NOT_RUN, REFUSES, STOPPED = OUTCOMES = ("prunes", "does not run", "refuses", "stopped")
HALF = 0.5


@dataclass(frozen=True)
class Row:
    """One network and one library."""

    name: str
    library: str
    outcome: str
    flops: float = 1.0
    """Fraction of the dense network's FLOPs."""
    message: str = ""
    """The last line of the error."""
    cpu_seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names; default all")
    parser.add_argument("--libraries", nargs="+", choices=list(CUTS), default=list(CUTS), help="default both")
    parser.add_argument("--missing", action="store_true", help="only what has no row")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing after so many seconds")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(examine(arguments.models[0], arguments.libraries[0])))
        return
    kept, started = KeptRows(ROWS, Row, lambda row: row.key), time.monotonic()
    for library in arguments.libraries:
        for name in arguments.models or FAMILIES:
            if arguments.missing and (name, library) in kept:
                continue
            if time.monotonic() - started > arguments.seconds:
                break
            row = measured(name, library)
            kept.add(row, origin_now())
            print(f"{library}, {name}: {said(row)}, {row.cpu_seconds:.0f} s", flush=True)
    TABLE.write_text(table(kept))


def measured(name: str, library: str) -> Row:
    """Run the child of one network and library."""
    done, seconds = limited([sys.executable, __file__, name, "--libraries", library, "--child"])
    if done.returncode == 0:
        return Row(name, library, **json.loads(done.stdout.splitlines()[-1]), cpu_seconds=seconds)
    if done.returncode < 0:
        return Row(name, library, STOPPED, cpu_seconds=seconds)
    raise RuntimeError(f"{name}, {library}: {done.stderr[-1000:]}")


def said(row: Row) -> str:
    """The outcome in words."""
    return f"prunes, {row.flops:.1%}" if row.outcome == PRUNES else f"{row.outcome}: {row.message}".rstrip(": ")


def table(kept: KeptRows[Row]) -> str:
    """The Markdown file."""
    ours = KeptRows(zoo_timm.ROWS, zoo_timm.Row, lambda row: row.name).rows
    names = sorted({row.name for row in kept.rows.values()})
    lines = [
        "# timm's families, cut by half by other libraries",
        "",
        "Made by `jobs/benchmarks/zoo_timm_peers.py`, whose docstring says what the outcomes mean. A figure is the "
        "fraction of the FLOPs that is left.",
        "",
    ]
    for library in CUTS:
        outcomes = Counter(row.outcome for row in kept.rows.values() if row.library == library)
        if outcomes:
            each = ", ".join(f"{outcome} {outcomes[outcome]}" for outcome in OUTCOMES)
            lines.append(f"* {library}, {outcomes.total()} networks: {each}.")
    lines += [
        "",
        f"| network | raprune | {' | '.join(CUTS)} | measured |",
        "| --- | --- |" + " --- |" * (len(CUTS) + 1),
    ]
    for name in names:
        rows = [kept.rows.get((name, library)) for library in CUTS]
        origins = sorted({f"{(o := kept.origins[row.key]).commit}, {o.date}" for row in rows if row})
        cells = [
            f"{ours[name].half_flops:.1%}" if name in ours else "",
            *("" if row is None else said(row)[:90] for row in rows),
        ]
        lines.append(f"| {name} | {' | '.join(cell.replace('|', '/') for cell in cells)} | {'; '.join(origins)} |")
    return "\n".join(lines) + "\n"


# -- the child -------------------------------------------------------------------------------------------------------


def examine(name: str, library: str) -> dict[str, Any]:
    """Cut one network; return the fields of its row."""
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    config: Any = model.pretrained_cfg
    x = torch.randn(1, *(config.get("input_size") or (3, 224, 224)))

    def flops(network: Any) -> int:
        # The counter hooks the gradients of what needs one, which no_grad leaves without a function.
        network.requires_grad_(False)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(x)
        network.requires_grad_(True)
        return counter.get_total_flops()

    dense = flops(model)
    try:
        model = CUTS[library](model, x, classifiers(model))
    except Exception as error:
        return {"outcome": REFUSES, "message": last_line(error)}
    try:
        with torch.no_grad():
            finite = bool(model(torch.cat([x, x])).isfinite().all())
        left = flops(model) / dense
    except Exception as error:
        return {"outcome": DOES_NOT_RUN, "message": last_line(error)}
    if not finite:
        return {"outcome": DOES_NOT_RUN, "message": "outputs are not finite"}
    return {"outcome": PRUNES, "flops": left}


def last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:200]


def classifiers(model: Any) -> list[Any]:
    """Return the layers that make the outputs: those that timm names, without any the last linear layer."""
    from torch import nn

    named = model.pretrained_cfg.get("classifier") or ()
    modules = dict(model.named_modules())
    found = [modules[name] for name in ((named,) if isinstance(named, str) else named) if name in modules]
    return found or [[m for m in modules.values() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]]


def by_torch_pruning(model: Any, x: Any, outputs: list[Any]) -> Any:
    """Remove half of the channels of each group at random; half of the width of each head."""
    import torch_pruning
    from torch import nn

    attentions = [
        m for m in model.modules() if isinstance(getattr(m, "qkv", None), nn.Linear) and hasattr(m, "num_heads")
    ]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        x,
        torch_pruning.importance.RandomImportance(),
        pruning_ratio=HALF,
        ignored_layers=outputs,
        num_heads={m.qkv: m.num_heads for m in attentions},
        prune_head_dims=True,
    )
    pruner.step()
    for attention in attentions:
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads
    return model


def by_torch_kirigami(model: Any, x: Any, outputs: list[Any]) -> Any:
    """Remove every other channel, or block of channels, of each axis, by one plan.

    To find and verify each channel as a candidate of its own takes more than a minute for most of these networks.
    """
    import torch_kirigami
    from torch import nn
    from torch_kirigami.pruning import Candidate, CandidateSpace, Pruner
    from torch_kirigami.pruning.candidates import discover

    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # as its errors ask for
    graph = torch_kirigami.DependencyGraph.build(model, args=(x,))
    layers = [
        operation
        for operation in graph.operations()
        if isinstance(operation.module, (nn.Conv2d, nn.Linear))
        and not any(operation.module is output for output in outputs)
    ]
    domains = {domain.key: domain for domain in discover(graph, tuple(layers))}
    pruner = Pruner(model, graph=graph)
    first = tuple(Candidate(key, (d.axis.select(range(d.block_size)),), d.axis) for key, d in domains.items())
    space = pruner.filter_candidates(CandidateSpace(first, tuple(d.axis for d in domains.values())))
    removed = []
    for candidate in space.candidates:
        domain = domains[candidate.key]
        size = domain.axis.tensor.shape[domain.axis.dim]
        removed.append(domain.axis.select([i for i in range(size) if i // domain.block_size % 2]))
    pruned, _ = pruner.apply(pruner.plan_remove(removed))
    return pruned


CUTS = {"torch-pruning": by_torch_pruning, "torch-kirigami": by_torch_kirigami}
"""Library -> how it cuts: `(model, image, output layers)` -> the cut network."""


if __name__ == "__main__":
    main()
