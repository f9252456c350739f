"""The Parquet mapping of a trial: the columns of `RUN/trials`, and a trial as one row of them and back."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from raprune.records import Candidate, CandidateOutline, KeptChannels, Metrics, Proposal, Stage, Trial, TrialState
from raprune.spec.budget import Budget

Row = dict[str, Any]
"""One row of `SCHEMA` in pyarrow's own form: column -> value. It stays inside `store` and the page's reader."""

SCHEMA = pa.schema(
    [
        pa.field("trial_id", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("settings", pa.string(), nullable=False),
        pa.field("allocation", pa.string(), nullable=False),
        pa.field("keep_ratios", pa.string(), nullable=False),
        pa.field("target_flops", pa.float64(), nullable=False),
        pa.field("target_params", pa.float64()),
        pa.field("target_latency", pa.float64()),
        pa.field("target_memory", pa.float64()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("parent", pa.string()),
        pa.field("step", pa.int64()),
        pa.field("rung", pa.int64()),
        pa.field("repeat", pa.int64()),
        pa.field("cuts", pa.int64()),
        pa.field("state", pa.string(), nullable=False),
        pa.field("candidate", pa.string()),
        pa.field("candidate_settings", pa.string()),
        pa.field("widths", pa.string()),
        pa.field("identity", pa.string()),
        pa.field("kept", pa.string()),
        pa.field("kept_bits", pa.binary()),
        pa.field("val_accuracy", pa.float64()),
        pa.field("val_loss", pa.float64()),
        pa.field("flops", pa.int64()),
        pa.field("params", pa.int64()),
        pa.field("flops_fraction", pa.float64()),
        pa.field("params_fraction", pa.float64()),
        pa.field("zeros", pa.int64()),
        pa.field("latency_ms", pa.float64()),
        pa.field("latency_fraction", pa.float64()),
        pa.field("memory_bytes", pa.int64()),
        pa.field("memory_fraction", pa.float64()),
        pa.field("accuracy_after_cut", pa.float64()),
        pa.field("accuracy_after_repair", pa.float64()),
        pa.field("epochs", pa.float64(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("gpu_seconds", pa.float64(), nullable=False),
        pa.field("started_at", pa.float64(), nullable=False),
        pa.field("worker", pa.string(), nullable=False),
    ]
)
"""One row a trial. Mappings are JSON; `candidate_settings` is null where the candidate has the proposal's settings.

`kept_bits` holds the channels that stay, packed as `raprune.records.KeptChannels.bits` in the order of `widths`. Rows
of versions without that column have them as JSON in `kept`. `identity` is the JSON list of the blocks that are gone,
null where all are there.
"""

OUTLINE = tuple(name for name in SCHEMA.names if name not in ("kept", "kept_bits"))
"""Columns of a trial without its channel indices, which are most of its bytes."""


def to_row(trial: Trial) -> Row:
    """The trial as one row of `SCHEMA`."""
    proposal, candidate, metrics = trial.proposal, trial.candidate, trial.metrics
    assert trial.trial_id == proposal.trial_id, "a trial has the id of its proposal"
    assert candidate is None or candidate.method == proposal.method, "a candidate has the method of its proposal"
    settings = dict(proposal.settings)
    row: Row = dict.fromkeys(SCHEMA.names)
    row |= {
        "trial_id": trial.trial_id,
        "number": proposal.number,
        "stage": proposal.stage.value,
        "method": proposal.method,
        "settings": json.dumps(settings),
        "allocation": proposal.allocation,
        "keep_ratios": json.dumps(dict(proposal.keep_ratios)),
        **target_columns(proposal.target),
        "seed": proposal.seed,
        "parent": proposal.parent,
        "step": proposal.step,
        "rung": proposal.rung,
        "repeat": proposal.repeat,
        "cuts": proposal.cuts,
        "state": trial.state.value,
        "accuracy_after_cut": trial.accuracy_after_cut,
        "accuracy_after_repair": trial.accuracy_after_repair,
        "epochs": trial.epochs,
        "error": trial.error,
        "seconds": trial.seconds,
        "gpu_seconds": trial.gpu_seconds,
        "started_at": trial.started_at,
        "worker": trial.worker,
    }
    if candidate is not None:
        candidate, own = trial.channels, dict(candidate.settings)
        row |= {
            "candidate": candidate.id,
            "candidate_settings": None if own == settings else json.dumps(own),
            "widths": json.dumps(candidate.widths),
            "identity": json.dumps(list(candidate.identity)) if candidate.identity else None,
            "kept_bits": KeptChannels.of(candidate.kept).bits,
        }
    if metrics is not None:
        row |= {
            "val_accuracy": metrics.accuracy,
            "val_loss": metrics.loss,
            "flops": metrics.flops,
            "params": metrics.params,
            "flops_fraction": metrics.flops_fraction,
            "params_fraction": metrics.params_fraction,
            "zeros": metrics.zeros,
            "latency_ms": metrics.latency_ms,
            "latency_fraction": metrics.latency_fraction,
            "memory_bytes": metrics.memory_bytes,
            "memory_fraction": metrics.memory_fraction,
        }
    return row


def from_rows(rows: Iterable[Row]) -> list[Trial]:
    """The trials of many rows."""
    # The garbage collector would look at all trials made so far, again and again: 4 of the 11 s of 100,000 trials.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return [from_row(row) for row in rows]
    finally:
        if was_enabled:
            gc.enable()


def from_row(row: Row) -> Trial:
    """The trial that `to_row` made the row of. A row of `OUTLINE` gives a `CandidateOutline`."""
    settings = json.loads(row["settings"])
    proposal = Proposal(
        number=row["number"],
        method=row["method"],
        allocation=row["allocation"],
        target=_target(row),
        settings=settings,
        keep_ratios=json.loads(row["keep_ratios"]),
        seed=row["seed"],
        stage=Stage(row["stage"]),
        parent=row["parent"],
        step=row["step"],
        # Null in rows of versions without these columns.
        rung=row["rung"] or 0,
        repeat=row["repeat"] or 0,
        cuts=row["cuts"] or 1,
    )
    candidate: Candidate | CandidateOutline | None = None
    metrics = None
    if row["candidate"] is not None:
        own = settings if row["candidate_settings"] is None else json.loads(row["candidate_settings"])
        widths = json.loads(row["widths"])
        # The names of the blocks are the same in thousands of trials.
        gone = tuple(map(sys.intern, json.loads(row.get("identity") or "[]")))
        if row.get("kept_bits") is not None:
            kept = KeptChannels(tuple(widths), row["kept_bits"])
            candidate = Candidate.recorded(row["method"], kept, own, gone, candidate_id=row["candidate"])
        elif row.get("kept") is not None:
            candidate = Candidate(row["method"], json.loads(row["kept"]), own)
        else:
            # The names of the groups are the same in thousands of trials.
            widths = {sys.intern(group): width for group, width in widths.items()}
            candidate = CandidateOutline(
                id=row["candidate"], method=row["method"], settings=own, widths=widths, identity=gone
            )
    if row["flops"] is not None:
        metrics = Metrics(
            accuracy=row["val_accuracy"],
            loss=row["val_loss"],
            flops=row["flops"],
            params=row["params"],
            flops_fraction=row["flops_fraction"],
            params_fraction=row["params_fraction"],
            # Null in rows of versions without this column.
            zeros=row["zeros"] or 0,
            latency_ms=row["latency_ms"],
            latency_fraction=row["latency_fraction"],
            memory_bytes=row["memory_bytes"],
            memory_fraction=row["memory_fraction"],
        )
    return Trial(
        trial_id=row["trial_id"],
        proposal=proposal,
        state=TrialState(row["state"]),
        candidate=candidate,
        metrics=metrics,
        accuracy_after_cut=row["accuracy_after_cut"],
        accuracy_after_repair=row["accuracy_after_repair"],
        epochs=row["epochs"],
        error=row["error"],
        seconds=row["seconds"],
        gpu_seconds=row["gpu_seconds"],
        started_at=row["started_at"],
        worker=row["worker"],
    )


def target_columns(target: Budget) -> dict[str, float | None]:
    """Columns of a proposal's target. FLOPs without a limit are written as 1: the column has no nulls."""
    return {
        "target_flops": 1.0 if target.flops is None else target.flops,
        "target_params": target.params,
        "target_latency": target.latency,
        "target_memory": target.memory,
    }


def _target(row: Row) -> Budget:
    """The target that `target_columns` wrote. All FLOPs beside another limit are read as FLOPs without a limit."""
    flops = row["target_flops"]
    others = {name: row[f"target_{name}"] for name in ("params", "latency", "memory")}
    is_free = flops == 1.0 and any(limit is not None for limit in others.values())
    return Budget(flops=None if is_free else flops, **others)
