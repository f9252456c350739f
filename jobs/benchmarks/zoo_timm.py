"""One small network of each timm family, traced and cut: `uv run --group dev python jobs/benchmarks/zoo_timm.py`.

Each network has random weights and runs in a process of its own on one thread, at its own image size. A network that
needs more than a minute of CPU time is stopped, which its row says. The child traces it, proves the graph on the
smallest image that the network takes, and cuts a random half of the channels of every group. The cut network runs on
a batch of two and on a second image size, in float64; where no norm runs across the channels of any group, its outputs
are compared with those of the dense network whose removed channels are zeroed.

`zoo_timm.py NAME ...` measures these networks; `--missing` only those without a row; `--seconds N` starts no network
after N seconds. The rows are kept in `zoo_timm.jsonl`, and the table `zoo_timm.md` is written from all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bar import show
from kept_rows import KeptRows, origin_now

LIMIT_S = 60
"""CPU seconds of a network, the start of Python and PyTorch with them."""
LARGE_PX = 400
"""Size from which on the batch of two has images of the proof's size, because those of its own take minutes."""
WHOLE = 0.97
"""Fraction of the parameters on channels that can go from which on a network counts as wholly prunable."""
ROWS = Path(__file__).with_name("zoo_timm.jsonl")
TABLE = Path(__file__).with_name("zoo_timm.md")

FAMILIES = [
    "beit_base_patch16_224",
    "eca_botnext26ts_256",
    "mobileone_s0",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "cpubone_nano",
    "crossvit_tiny_240",
    "csatv2",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "davit_tiny",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientnet_lite0",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "eva02_tiny_patch14_224",
    "fasternet_s",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "ghostnet_050",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "levit_128s",
    "lowformer_b0",
    "mambaout_femto",
    "maxvit_pico_rw_256",
    "caformer_s18",
    "gmixer_12_224",
    "mixnet_s",
    "mobilenetv3_small_050",
    "mobilenetv5_base",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "mvitv2_tiny",
    "naflexvit_base_patch16_gap",
    "nasnetalarge",
    "nest_tiny",
    "nextvit_small",
    "nf_regnet_b0",
    "nf_resnet26",
    "dm_nfnet_f0",
    "pit_xs_224",
    "pnasnet5large",
    "pvt_v2_b0",
    "qwen3_vit_88m",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "res2next50",
    "resnest14d",
    "resnet18",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "vit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "test_vit_relpos",
    "samvit_base_patch16_224",
    "vitamin_small_224",
    "volo_d1_224",
    "ese_vovnet19b_slim_dw",
    "legacy_xception",
    "xception41p",
    "xcit_nano_12_p8_224",
]
"""The smallest network of each family; of some families a second one, of another kind."""

TRUE_REASONS = (
    "the network's output",
    "reads the network's input",
    "only a statistic is taken",
    "all its channels are coupled",
    "the positions of a table",
    "the rows of a table",
    "they are the heads of attention",
    "meets an axis without channels",
    "a scalar parameter",
)
"""Beginnings of reasons why channels stay that no rule can mend."""


@dataclass(frozen=True)
class Row:
    """One network."""

    name: str
    cpu_seconds: float = 0.0
    error: str = ""
    """Why there is no result."""
    px: int = 0
    """Height and width of the images."""
    groups: int = 0
    trace_seconds: float = 0.0
    prunable: float = 0.0
    """Fraction of the parameters on channels that can go."""
    min_flops: float = 0.0
    """Lowest reachable fraction of the FLOPs."""
    half_flops: float = 0.0
    """Fraction of the FLOPs of the network with a random half of the channels."""
    permutation: float = 0.0
    cut: float = 0.0
    batch: str = ""
    """The half on a batch of two: the difference from the masked network, or that it ran."""
    second: str = ""
    """The same with another image size; says which, or that the dense network takes none."""
    stays: list[tuple[str, str, int]] = field(default_factory=list)
    """Module, reason and number of channels that stay, the output aside."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names; default all")
    parser.add_argument("--missing", action="store_true", help="only networks without a row")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no network after so many seconds")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(examine(arguments.models[0])))
        return
    rows, started = KeptRows(ROWS, Row, lambda row: row.name), time.monotonic()
    for name in arguments.models or FAMILIES:
        if arguments.missing and name in rows:
            continue
        if time.monotonic() - started > arguments.seconds:
            break
        row = measured(name)
        rows.add(row, origin_now())
        print(line(row), flush=True)
    kept = sorted((row for row in rows.rows.values()), key=lambda row: row.name)
    TABLE.write_text(table(kept))
    good = [row for row in kept if is_good(row)]
    show("wholly prunable or with a true reason", figure=len(good), bar=0.98 * len(kept), unit="", more_is_better=True)


def measured(name: str) -> Row:
    """Run the child of one network."""
    done, seconds = limited([sys.executable, __file__, "--child", name])
    if done.returncode == 0:
        return Row(name, seconds, **json.loads(done.stdout.splitlines()[-1]))
    if done.returncode < 0:
        return Row(name, seconds, error=f"stopped after {LIMIT_S} s of CPU time")
    return Row(name, seconds, error=(done.stderr.strip().splitlines() or ["no message"])[-1][:300])


def limited(command: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command on one thread within the limit; return how it ended and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S)),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)


def line(row: Row) -> str:
    """One line for the terminal."""
    if row.error:
        return f"{row.name}: {row.error}"
    least = f"{row.min_flops:.2%} FLOPs, {row.cpu_seconds:.0f} s"
    return f"{row.name}: {row.prunable:.1%} prunable, {least}; {row.batch}; {row.second}; {reasons(row)}"


def is_good(row: Row) -> bool:
    """True if the network is wholly prunable, or everything that stays has a true reason."""
    return not row.error and (row.prunable >= WHOLE or all(why.startswith(TRUE_REASONS) for _, why, _ in row.stays))


def reasons(row: Row) -> str:
    """The reasons why channels stay, most channels first."""
    counts: Counter[str] = Counter()
    for _, reason, channels in row.stays:
        counts[reason.partition(" (in ")[0]] += channels
    return "; ".join(f"{reason} ({count:,})" for reason, count in counts.most_common(4)) or "the output only"


def table(rows: list[Row]) -> str:
    """The Markdown file."""
    good, finished = sum(is_good(row) for row in rows), [row for row in rows if not row.error]
    head = [
        "# What can be pruned in timm's families",
        "",
        f"Made by `jobs/benchmarks/zoo_timm.py` from one small network of each family, {len(rows)} networks with "
        f"random weights, on one thread: {len(finished)} finish within {LIMIT_S} s of CPU time, {good} are prunable "
        f"as a whole (at least {WHOLE:.0%} of the parameters on channels that can go) or name a true reason. "
        "*Half* is the fraction of the FLOPs that a random half of the channels leaves; that network ran on a batch of "
        "two and on a second image size: a figure is the largest difference from the masked dense network in float64, "
        "*ran* stands where a norm runs across channels, so that masking is no reference outside the proof.",
        "",
        "| network | px | groups | prunable | lowest FLOPs | half | batch of two | second size | CPU s | stays |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *(cells(row) for row in rows)]) + "\n"


def cells(row: Row) -> str:
    """One line of the table."""
    if row.error:
        return f"| {row.name} | | | | | | | | {row.cpu_seconds} | {row.error.replace('|', '/')} |"
    shares = [f"{row.prunable:.1%}", f"{row.min_flops:.2%}", f"{row.half_flops:.1%}"]
    parts = [row.name, str(row.px), str(row.groups), *shares, row.batch, row.second, str(row.cpu_seconds)]
    return f"| {' | '.join([*parts, reasons(row).replace('|', '/')])} |"


# -- the child -------------------------------------------------------------------------------------------------------


def examine(name: str) -> dict[str, Any]:
    """Trace, prove and cut one network; return the fields of its row."""
    import timm
    import torch

    from raprune.channels.cut import cut
    from raprune.checks.inspect import inspect, smallest_image
    from raprune.cost.flops import CostModel
    from raprune.records import Candidate

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():  # a classifier of zeros would agree with any other
            torch.nn.init.normal_(parameter, std=0.02)
    config: Any = model.pretrained_cfg
    shape = tuple(config.get("input_size") or (3, 224, 224))
    small = smallest_image(model, shape)
    found = inspect(model, torch.zeros(1, *shape), name=name, proved_on=small)
    graph, data = found.graph, found.to_json()
    generator = torch.Generator().manual_seed(0)
    kept = {
        group.name: tuple(
            sorted(torch.randperm(group.num_channels, generator=generator)[: -(-group.num_channels // 2)].tolist())
        )
        for group in graph.groups
    }
    candidate = Candidate("half", kept)
    flops = CostModel(graph)
    row: dict[str, Any] = {
        "px": shape[-1],
        "groups": len(graph.groups),
        "trace_seconds": round(found.trace_seconds, 2),
        "prunable": data["prunable_params_fraction"],
        "min_flops": data["min_flops_fraction"],
        "half_flops": int(flops.flops([len(kept[group.name]) for group in graph.groups])) / flops.dense_flops,
        "permutation": data["proof"]["permutation_error"],
        "cut": data["proof"]["cut_error"],
        "stays": [
            (entry["module"], entry["reason"], entry["num_channels"])
            for entry in data["frozen"]
            if entry["reason"] != "the network's output"
        ],
    }
    dense = model.double()
    smaller = cut(dense, graph, candidate)
    masked = zeroed(dense, graph, kept) if all(group.maskable for group in graph.groups) else None
    if shape[-1] > LARGE_PX:
        row["batch"] = f"{compared(dense, smaller, masked, (2, *small.shape[1:]))} at {small.shape[-1]} px"
    else:
        row["batch"] = compared(dense, smaller, masked, (2, *shape))
    seconds = [(s := round(shape[-1] * part / 32) * 32) and (shape[0], s, s) for part in (0.75, 1.25)]
    told = "takes no other size"
    for other in seconds:
        if other != shape and runs(dense, (1, *other)):
            told = f"{compared(dense, smaller, masked, (1, *other))} at {other[-1]} px"
            break
    row["second"] = told
    return row


def runs(model: Any, shape: tuple[int, ...]) -> bool:
    """True if the dense network takes images of this shape."""
    import torch

    try:
        with torch.no_grad():
            model(torch.zeros(shape, dtype=torch.float64))
    except Exception:
        return False
    return True


def compared(dense: Any, smaller: Any, masked: Any, shape: tuple[int, ...]) -> str:
    """Return the relative difference between the cut and the masked network, or that the cut one ran."""
    import torch

    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if not runs(dense, shape):
            return "the dense network takes float32 only"
        out = smaller(x)
        if not bool(out.isfinite().all()):
            return "not finite"
        if masked is None:
            return "ran"
        reference = masked(x)
        return f"{float((out - reference).abs().max() / reference.abs().max()):.0e}"


def zeroed(model: Any, graph: Any, kept: dict[str, tuple[int, ...]]) -> Any:
    """Return a copy of the network whose removed channels are zeros."""
    import copy

    import torch

    masked = copy.deepcopy(model)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    with torch.no_grad():
        for group in graph.groups:
            gone = [c for c in range(group.num_channels) if c not in set(kept[group.name])]
            for member in group.members:
                positions = torch.from_numpy(member.indices[gone].reshape(-1))
                tensors[member.parameter].index_fill_(member.axis, positions, 0.0)
    return masked


if __name__ == "__main__":
    main()
