"""What a run is on the screen: the block that says how far it is, the front and the methods as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from raprune import words
from raprune.front import Progress, Row, budgeted, floor_of, is_control, standard_error, weights_pruned
from raprune.times import Times, Timing, measured_at, slow

WIDE = 118
"""Columns of a terminal from which the table shows absolute costs and MACs as well."""


def render_progress(now: Progress) -> RenderableType:
    """The block that says how far a run is: a few lines, whatever the number of trials."""
    grid = render_standing(now)
    left = "" if now.left_s is None else f", about {words.duration(now.left_s)} of search left" if now.left_s else ""
    spent = f", {now.gpu_hours:.2f} GPU-hours" if now.gpu_hours else ""
    in_all = "in all" if now.finished else "so far"
    grid.add_row("time", f"{words.duration(now.elapsed_s)} {in_all}{left}{spent}")
    return grid


def render_standing(now: Progress) -> Table:
    """What the trials have come to."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    states = ", ".join(f"{count} {state.lower()}" for state, count in now.states.items()) or "none yet"
    steps = f", {now.steps} more on the way to them" if now.steps else ""
    grid.add_row("trials", f"{now.searched} of {now.trials} searched ({states}){steps}")
    if now.finalists:
        others = now.finetuned - now.finalists
        more = f", and the best of {others} other method{'' if others == 1 else 's'}" if others > 0 else ""
        grid.add_row("fine-tuned", f"{min(now.finetuned, now.finalists)} of {now.finalists}{more}")
    grid.add_row("front", f"{now.front} candidates, hypervolume {now.hypervolume:.4f}")
    if now.best is not None:
        dense = "" if now.dense_accuracy is None else f", dense {now.dense_accuracy:.2%}"
        grid.add_row(
            "best",
            f"{now.best['val_accuracy']:.2%} validation at {now.best['flops_fraction']:.1%} of the FLOPs "
            f"({escape(now.best['method'])}, {_how(now.best)}){dense}",
        )
    return grid


def render_rows(
    rows: list[Row],
    run: Mapping[str, Any],
    test: Mapping[str, Any],
    *,
    times: Times | None = None,
    width: int = WIDE,
) -> RenderableType:
    """The table of the rows beside the dense network; the `starred` one has a star.

    The drop is that of the test accuracy where it was measured, else of the validation accuracy, in points, with the
    standard error of a share of so many images (two networks on the same images differ by less than it tells).
    """
    if not rows:
        return "No candidate is on the front yet."
    dense, wide, times = run.get("dense", {}), width >= WIDE, times or Times()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1 if wide else 0, 0, 0))
    nonzero = any(weights_pruned(r) for r in rows)
    # A narrow terminal has room for one of the two: the smaller.
    stored = wide or not nonzero
    timings = times.conditions if wide else times.conditions[-1:]
    # Where there is room for one, what was measured comes before what the budget is of.
    has_latency = (wide or not timings) and any(words.latency_share(r) for r in rows)
    columns = ["", "candidate", "method", "epochs", "FLOPs", *(["", "MACs"] if wide else [])]
    columns += ["params"] * stored + [""] * wide + ["nonzero"] * nonzero + ["latency"] * has_latency
    columns += [f"faster@{timing.batch_size}" for timing in timings] if len(timings) > 1 else ["faster"] * len(timings)
    for header in [*columns, "val %", "test %", "drop"]:
        table.add_column(header, justify="left" if header in ("candidate", "method") else "right", no_wrap=True)
    for r in rows:
        costs = [f"{r['flops_fraction']:.1%}"]
        costs += [words.count(r["flops"]), words.count(r["macs"])] if wide else []
        costs += [f"{r['params_fraction']:.1%}"] * stored + [words.count(r["params"])] * wide
        share = words.latency_share(r)
        costs += [f"{r['nonzero_fraction']:.1%}"] * nonzero + [share and f"{share}%"] * has_latency
        costs += [words.times_as_fast(timing.speedup(r["candidate"])) for timing in timings]
        star = "★" * r["starred"]
        accuracies = [
            _points(r["val_accuracy"], r["val_interval"] if wide else None),
            _points(r["test_accuracy"], r["test_interval"] if wide else None),
            drop(r, dense, test),
        ]
        style = "bold" if star else None
        table.add_row(star, r["candidate"], escape(r["method"]), f"{r['epochs']:g}", *costs, *accuracies, style=style)
    if dense:
        costs = ["100.0%", *([words.count(dense["flops"]), words.count(dense["flops"] // 2)] if wide else [])]
        costs += ["100.0%"] * stored + [words.count(dense["params"])] * wide + ["100.0%"] * (nonzero + has_latency)
        costs += ["1x"] * len(timings)
        table.add_row("", "dense", "", "", *costs, _points(dense.get("val_accuracy")), _points(test.get("dense")), "")
    notes = [
        "[dim]Epochs: of training since the dense network. FLOPs count a multiply-add as 2 (MACs as 1), for one image."
    ]
    if nonzero:
        notes.append("Nonzero: parameters that are not exactly zero.")
    notes += filter(None, [why_starred(rows, run)])
    seeds = max(len(r["repeats"]) for r in rows)
    if seeds > 1:
        interval = ", with their 95 % confidence interval" if wide else ""
        notes.append(f"Fine-tuned accuracies are means over {seeds} seeds{interval}.")
    if test.get("images"):
        notes.append(f"Drop: test accuracy against dense, in points, ± standard error of {test['images']} images.")
    else:
        notes.append("Drop: validation accuracy against dense, in points; the test split was not touched.")
    notes += [escape(sentence) for sentence in how_timed(rows, run, timings, has_latency=has_latency)]
    remark = slow(rows, times)
    return Group(table, " ".join(notes) + "[/dim]", *([escape(remark)] if remark else []))


def how_timed(
    rows: Sequence[Row], run: Mapping[str, Any], timings: Sequence[Timing], *, has_latency: bool
) -> list[str]:
    """Sentences on the conditions of the times that a table shows, and of the latency that a budget is of."""
    sentences = [f"Faster: the dense network's time over the network's, for {measured_at(timings)}."] if timings else []
    if has_latency:
        what = "Latency: fraction of the dense network's under the conditions of the budget"
        if known := run.get("latency"):
            what += f", {latency_conditions(known)}"
        is_predicted = any(row["measured_latency_fraction"] is None for row in rows)
        sentences.append(f"{what}{'; ~ as layer times predict it' if is_predicted else ''}.")
    return sentences


def latency_conditions(latency: Mapping[str, Any]) -> str:
    """Conditions of a latency budget, `latency` of `run.json`, in words."""
    return f"a batch of {latency['batch_size']}, {latency['precision']} on {latency['device']}"


def render_ablation(rows: list[Row], run: Mapping[str, Any]) -> RenderableType:
    """The methods side by side: one table for the repaired networks, one for each number of epochs of fine-tuning."""
    if not rows:
        return "The run has no complete trial within its budget yet."
    dense = run.get("dense", {}).get("val_accuracy")
    notes = (
        "[dim]Of each method the network with the best validation accuracy within the budget: that accuracy in %, at "
        "its share of the dense network's cost. Epochs: of training since the dense network, what the method trains by "
        f"itself among them.{'' if dense is None else f' Dense: {_points(dense)}.'}[/dim]"
    )
    finetunings = dict.fromkeys(r["finetuning_epochs"] for r in rows)
    return Group(*(_compared([r for r in rows if r["finetuning_epochs"] == epochs]) for epochs in finetunings), notes)


def _compared(rows: list[Row]) -> Table:
    epochs = rows[0]["finetuning_epochs"]
    cost, what = budgeted(rows[0])
    budgets = list(dict.fromkeys(r[f"budget_{cost}"] for r in rows))
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"Fine-tuned for {_epochs(epochs)}" if epochs else "Repaired, not fine-tuned",
        title_justify="left",
    )
    table.add_column("method", no_wrap=True)
    table.add_column("epochs", justify="right", no_wrap=True)
    for budget in budgets:
        table.add_column(f"up to {budget:.1%} {what}", justify="right", no_wrap=True)
    for method in dict.fromkeys(r["method"] for r in rows):
        own = {r[f"budget_{cost}"]: r for r in rows if r["method"] == method}
        trained = sorted({r["epochs"] for r in own.values()})
        cells = [
            f"{_points(r['val_accuracy'])} at {r[f'{cost}_fraction']:.1%}" if (r := own.get(budget)) else "-"
            for budget in budgets
        ]
        table.add_row(escape(method), " to ".join(f"{e:g}" for e in (trained[0], trained[-1])[: len(trained)]), *cells)
    return table


def why_starred(rows: list[Row], run: Mapping[str, Any]) -> str:
    """A sentence on why the starred row has the star; empty if none has it."""
    chosen, floor = next((row for row in rows if row["starred"]), None), floor_of(run)
    if chosen is None:
        return ""
    if floor is not None and chosen["val_accuracy"] >= floor:
        return f"★ cheapest with the validation accuracy that was asked for, {floor:.2%}."
    sentences = ["★ most accurate on the validation split within the budget."]
    if floor is not None:
        sentences.append(f"None has the validation accuracy asked for, {floor:.2%}.")
    controls = {row["method"] for row in rows if is_control(row, run)}
    ahead = {row["method"] for row in rows if row["val_accuracy"] > chosen["val_accuracy"]} & controls
    if chosen["method"] in controls:
        sentences.append(f"{chosen['method']} is a control: every method is behind it by more than its standard error.")
    elif ahead:
        sentences.append(f"Ahead by less than the standard error, and only a control: {', '.join(sorted(ahead))}.")
    return " ".join(sentences)


def drop(row: Row, dense: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    """How many points the row's network is better (+) or worse (-) than the dense one, with its standard error."""
    if row["test_accuracy"] is not None and row["dense_test_accuracy"] is not None:
        accuracy, reference, images = row["test_accuracy"], row["dense_test_accuracy"], test.get("images")
    elif dense.get("val_accuracy") is not None:
        accuracy, reference, images = row["val_accuracy"], dense["val_accuracy"], dense.get("val_images")
    else:
        return "-"
    error = f" ± {100 * standard_error(accuracy, images):.2f}" if images else ""
    return f"{100 * (accuracy - reference):+.2f}{error}"


def _how(row: Row) -> str:
    return _epochs(row["epochs"]) if row["epochs"] else "repaired"


def _epochs(number: float) -> str:
    return f"{number:g} epoch{'' if number == 1 else 's'}"


def _points(accuracy: float | None, interval: float | None = None) -> str:
    spread = "" if interval is None else f" ±{100 * interval:.2f}"
    return "-" if accuracy is None else f"{100 * accuracy:.2f}{spread}"
