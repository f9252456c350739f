"""Results of a run in the terminal: the status block, and the front and the methods as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from raprune.report import formats
from raprune.results.ablation import AblationRow
from raprune.results.front import floor_of, is_baseline, standard_error
from raprune.results.progress import Progress
from raprune.results.rows import CandidateRow
from raprune.results.test_split import SplitAccuracies
from raprune.results.timings import Times, Timing, measured_at, runtime_words, slow
from raprune.store.record import ACCURACY, LatencyRecord, RunRecord

WIDE = 118
"""Width of a terminal, in characters, that shows the whole table of most runs."""

GIVE_WAY = (
    *("memory", "MACs", "FLOPs count", "params count", "interval", "params", "nonzero", "latency", "faster alone"),
    *("method", "epochs", "drop", "faster"),
)
"""Columns of the front, the least important first, that are left out in this order if the terminal is too narrow.
`method` is shortened instead. Star, candidate, fraction of the FLOPs and accuracies always stay."""

_SHORTEST_METHOD = 8
"""Minimum number of characters of a method's name."""


_EDGES = 2
"""Number of characters of a table's left and right edge."""


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A column of the front: its header, a cell for each row."""

    header: str
    cells: list[str]
    name: str
    """Entry of GIVE_WAY; empty for a column that always stays."""
    width: int


def render_progress(now: Progress) -> RenderableType:
    """The status block of a run: a few lines, whatever the number of trials."""
    grid = render_standing(now)
    left = "" if now.left_s is None else f", about {formats.duration(now.left_s)} of search left" if now.left_s else ""
    spent = f", {now.gpu_hours:.2f} GPU-hours" if now.gpu_hours else ""
    in_all = "in all" if now.finished else "so far"
    grid.add_row("time", f"{formats.duration(now.elapsed_s)} {in_all}{left}{spent}")
    return grid


def render_standing(now: Progress) -> Table:
    """The standing of the trials: states, front, best network."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    states = ", ".join(f"{count} {state.lower()}" for state, count in now.states.items()) or "none yet"
    steps = f", {now.steps} more on the way to them" if now.steps else ""
    grid.add_row("trials", f"{now.searched} of {now.trials} searched ({states}){steps}")
    if now.finetuned or now.finetunings:
        grid.add_row("fine-tuned", finetuned_of(now))
    grid.add_row("front", f"{now.front} candidates, hypervolume {now.hypervolume:.4f}")
    if now.best is not None:
        dense = "" if now.dense_accuracy is None else f", dense {now.dense_accuracy:.2%}"
        grid.add_row(
            "best",
            f"{now.best.val_accuracy:.2%} {_on_validation(now.metric)} at {now.best.flops_fraction:.1%} of the FLOPs "
            f"({escape(now.best.method)}, {_how(now.best)}){dense}",
        )
    return grid


def _on_validation(metric: str) -> str:
    """Return the metric on the validation split in words; accuracy goes without saying."""
    return "validation" if metric == ACCURACY else f"validation {metric}"


def finetuned_of(now: Progress) -> str:
    """The number of finished fine-tunings, and of all fine-tunings if this number is known."""
    return f"{now.finetuned}" if now.finetunings is None else f"{now.finetuned} of {now.finetunings}"


def render_rows(
    rows: list[CandidateRow],
    run: RunRecord,
    test: SplitAccuracies,
    *,
    times: Times | None = None,
    width: int = WIDE,
) -> RenderableType:
    """The table of the rows and of the dense network; the `starred` row has a star.

    The drop is the difference in test accuracy if it was measured, else in validation accuracy, in points. Its standard
    error is that of one accuracy on this number of images; two networks on the same images differ by less.
    """
    if not rows:
        return "No candidate is on the front yet."
    times = times or Times()
    columns = _fitting(_columns(rows, run, test, times), width)
    shown = {column.name for column in columns}
    gap = 2 if _table_width(columns, gap=2) <= width else 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for column in columns:
        left = column.header in ("candidate", "method") or column.name == "interval"
        table.add_column(column.header, justify="left" if left else "right", no_wrap=True, width=column.width)
    for number, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        is_starred = number < len(rows) and rows[number].starred
        table.add_row(*map(escape, cells), style="bold" if is_starred else None)
    notes = ["FLOPs count a multiply-add as 2, for one image."]
    if "MACs" in shown:
        notes = ["FLOPs count a multiply-add as 2 (MACs as 1), for one image."]
    if "epochs" in shown:
        notes.insert(0, "Epochs: of training since the dense network.")
    if any(row.parent for row in rows):
        notes.append("-ft: fine-tuned.")
    notes += [f"-c{cuts}: in {formats.cuts_in_words(cuts)}." for cuts in sorted({row.cuts for row in rows} - {1})]
    if "nonzero" in shown:
        notes.append("Nonzero: parameters that are not exactly zero.")
    if run.metric != ACCURACY:
        notes.append(f"val and test: {run.metric}, in %.")
    notes += filter(None, [why_starred(rows, run)])
    seeds = max(len(r.repeats) for r in rows)
    if seeds > 1:
        interval = ", with their 95 % confidence interval" if "interval" in shown else ""
        figures = "accuracies" if run.metric == ACCURACY else "figures"
        notes.append(f"Fine-tuned {figures} are means over {seeds} seeds{interval}.")
    if "drop" in shown and test.images:
        error = f", ± standard error of {test.images} images" if run.metric == ACCURACY else ""
        notes.append(f"Drop: test {run.metric} against dense, in points{error}.")
        notes += _further(rows, test)
    elif "drop" in shown:
        notes.append(f"Drop: validation {run.metric} against dense, in points; the test split was not touched.")
    timings = times.conditions if "faster alone" in shown else times.conditions[-1:] if "faster" in shown else ()
    notes += how_timed(rows, run, timings, has_latency="latency" in shown)
    remark = slow(rows, times)
    return Group(table, f"[dim]{escape(' '.join(notes))}[/dim]", *([escape(remark)] if remark else []))


def _further(rows: list[CandidateRow], test: SplitAccuracies) -> list[str]:
    """Return a sentence for each further figure of the starred row, or of the only one, and of the dense network."""
    told = [row for row in rows if row.starred or len(rows) == 1][:1]
    return [
        f"Test {name}: {figure:.2%} of {row.candidate}, {formats.accuracy(test.dense_further.get(name))}% of dense."
        for row in told
        for name, figure in row.test_further.items()
    ]


def _columns(rows: list[CandidateRow], run: RunRecord, test: SplitAccuracies, times: Times) -> list[_Column]:
    """All columns of the front; the last cell of each is the dense network's, if it is known."""
    dense = run.dense

    def column(header: str, cells: Iterable[str], of_dense: str, name: str = "") -> _Column:
        found = [*cells, *([of_dense] if dense is not None else [])]
        return _Column(header=header, cells=found, name=name, width=max(map(cell_len, (header, *found))))

    flops, params = (0, 0) if dense is None else (dense.flops or 0, dense.params or 0)
    dense_accuracy = None if dense is None else dense.val_accuracy
    columns = [
        column("", ("★" * r.starred for r in rows), ""),
        column("candidate", (r.candidate for r in rows), "dense"),
        column("method", (r.method for r in rows), "", "method"),
        column("epochs", (f"{r.epochs:g}" for r in rows), "", "epochs"),
        column("FLOPs", (f"{r.flops_fraction:.1%}" for r in rows), "100.0%"),
        column("", (formats.count(r.flops) for r in rows), formats.count(flops), "FLOPs count"),
        column("MACs", (formats.count(r.macs) for r in rows), formats.count(flops // 2), "MACs"),
        column("params", (f"{r.params_fraction:.1%}" for r in rows), "100.0%", "params"),
        column("", (formats.count(r.params) for r in rows), formats.count(params), "params count"),
    ]
    if any(r.weights_pruned for r in rows):
        columns += [column("nonzero", (f"{r.nonzero_fraction:.1%}" for r in rows), "100.0%", "nonzero")]
    if any(formats.latency_share(r) for r in rows):
        latencies = (share and f"{share}%" for share in map(formats.latency_share, rows))
        columns += [column("latency", latencies, "100.0%", "latency")]
    if any(r.memory_fraction is not None for r in rows):
        memories = ("" if r.memory_fraction is None else f"{r.memory_fraction:.1%}" for r in rows)
        columns += [column("memory", memories, "100.0%", "memory")]
    for timing in times.conditions:
        header = f"faster@{timing.batch_size}" if len(times.conditions) > 1 else "faster"
        name = "faster" if timing is times.conditions[-1] else "faster alone"
        columns += [column(header, (formats.times_as_fast(timing.speedup(r.candidate)) for r in rows), "1x", name)]
    on_validation = [(r.val_accuracy, r.val_interval) for r in rows]
    on_test = [(r.test_accuracy, r.test_interval) for r in rows]
    splits = (("val", on_validation, dense_accuracy), ("test", on_test, test.dense))
    for split, found, of_dense in splits:
        columns += [column(f"{split} %", (_points(accuracy) for accuracy, _ in found), _points(of_dense))]
        intervals = [interval for _, interval in found]
        if any(interval is not None for interval in intervals):
            cells = ("" if interval is None else f"±{100 * interval:.2f}" for interval in intervals)
            columns += [column("", cells, "", "interval")]
    return [*columns, column("drop", (drop(r, run, test) for r in rows), "", "drop")]


def _fitting(columns: list[_Column], width: int) -> list[_Column]:
    """The columns that fit into `width` with a space between two of them; the least important are left out."""
    (whole,) = (column.width for column in columns if column.name == "method")
    for name in GIVE_WAY:
        if _table_width(columns, gap=1) <= width:
            break
        if name == "method":
            columns = [replace(c, width=min(c.width, _SHORTEST_METHOD)) if c.name == name else c for c in columns]
        else:
            columns = [c for c in columns if c.name != name]
    left = max(0, width - _table_width(columns, gap=1))
    return [replace(c, width=min(whole, c.width + left)) if c.name == "method" else c for c in columns]


def _table_width(columns: list[_Column], *, gap: int) -> int:
    return sum(column.width + gap for column in columns) - gap + _EDGES


def how_timed(
    rows: Sequence[CandidateRow], run: RunRecord, timings: Sequence[Timing], *, has_latency: bool
) -> list[str]:
    """Sentences on the conditions of the times in a table, and of the latency in the budget."""
    sentences = [f"Faster: the dense network's time over the network's, for {measured_at(timings)}."] if timings else []
    if has_latency:
        what = "Latency: fraction of the dense network's under the conditions of the budget"
        if (known := run.latency) is not None:
            what += f", {latency_conditions(known)}"
        is_predicted = any(row.measured_latency_fraction is None for row in rows)
        sentences.append(f"{what}{'; ~ as layer times predict it' if is_predicted else ''}.")
    return sentences


def latency_conditions(latency: LatencyRecord) -> str:
    """Conditions of a latency budget, in words."""
    by = runtime_words(latency.runtime)
    return f"a batch of {latency.batch_size}, {latency.precision} on {latency.device}{by}"


def render_ablation(rows: list[AblationRow], run: RunRecord, *, width: int = WIDE) -> RenderableType:
    """The comparison of the methods: a table of the repaired networks, and one for each number of epochs."""
    if not rows:
        return "The run has no complete trial within its budget yet."
    dense = run.dense_accuracy
    notes = (
        f"[dim]For each method, the network with the best validation {run.metric} within the budget: its {run.metric} "
        "in %, at "
        "its fraction of the dense network's cost. Epochs: of training since the dense network, including the method's "
        f"own training.{'' if dense is None else f' Dense: {_points(dense)}.'}[/dim]"
    )
    finetunings = dict.fromkeys(r.finetuning_epochs for r in rows)
    tables = [
        table
        for epochs in finetunings
        for table in _compared([r for r in rows if r.finetuning_epochs == epochs], width)
    ]
    return Group(*tables, notes)


def _compared(rows: list[AblationRow], width: int) -> list[Table]:
    """The methods at each budget, in several tables if not all budgets fit into `width`."""
    cost = rows[0].cost
    headers = {row.limit: f"up to {row.limit:.1%} {row.cost_in_words}" for row in rows}
    trained = {row.method: _trained([r for r in rows if r.method == row.method]) for row in rows}
    cell, epochs = max(map(len, headers.values())), max(len("epochs"), *map(len, trained.values()))
    # A long name is shortened if not even one budget fits beside it. Three characters separate two columns.
    method = min(max(len("method"), *map(len, trained)), max(_SHORTEST_METHOD, width - epochs - cell - 6 - _EDGES))
    together = max(1, (width - method - epochs - 3 - _EDGES) // (cell + 3))
    tables = []
    for start in range(0, len(headers), together):
        budgets = list(headers)[start : start + together]
        epochs_of_tuning = rows[0].finetuning_epochs
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            title=f"Fine-tuned for {formats.epochs_in_words(epochs_of_tuning)}"
            if epochs_of_tuning
            else "Repaired, not fine-tuned",
            title_justify="left",
        )
        table.add_column("method", no_wrap=True, width=method)
        table.add_column("epochs", justify="right", no_wrap=True)
        for budget in budgets:
            table.add_column(headers[budget], justify="right", no_wrap=True)
        for name in trained:
            own = {r.limit: r.best for r in rows if r.method == name}
            cells = [
                f"{_points(r.val_accuracy)} at {r.fraction(cost):.1%}" if (r := own.get(budget)) else "-"
                for budget in budgets
            ]
            table.add_row(escape(name), trained[name], *cells)
        tables.append(table)
    return tables


def _trained(rows: list[AblationRow]) -> str:
    """Minimum and maximum epochs of training of the rows."""
    epochs = sorted({r.best.epochs for r in rows})
    return " to ".join(f"{e:g}" for e in (epochs[0], epochs[-1])[: len(epochs)])


def why_starred(rows: list[CandidateRow], run: RunRecord) -> str:
    """A sentence that explains the star; empty if no row has it."""
    chosen, floor = next((row for row in rows if row.starred), None), floor_of(run)
    if chosen is None:
        return ""
    if floor is not None and chosen.val_accuracy >= floor:
        return f"★ cheapest with the required validation {run.metric}, {floor:.2%}."
    best = "most accurate" if run.metric == ACCURACY else f"best {run.metric}"
    sentences = [f"★ {best} on the validation split within the budget."]
    if floor is not None:
        sentences.append(f"No network has the required validation {run.metric}, {floor:.2%}.")
    baselines = {row.method for row in rows if is_baseline(row, run)}
    ahead = {row.method for row in rows if row.val_accuracy > chosen.val_accuracy} & baselines
    if chosen.method in baselines:
        sentences.append(f"{chosen.method} is a baseline: every method is behind it by more than its standard error.")
    elif ahead:
        sentences.append(f"Ahead by less than the standard error, and only a baseline: {', '.join(sorted(ahead))}.")
    return " ".join(sentences)


def drop(row: CandidateRow, run: RunRecord, test: SplitAccuracies) -> str:
    """The difference of the metric to the dense network in points, + if better; an accuracy with its standard error."""
    dense = run.dense
    if row.test_accuracy is not None and row.dense_test_accuracy is not None:
        accuracy, reference, images = row.test_accuracy, row.dense_test_accuracy, test.images
    elif dense is not None and dense.val_accuracy is not None:
        accuracy, reference, images = row.val_accuracy, dense.val_accuracy, dense.val_images
    else:
        return "-"
    error = f" ± {100 * standard_error(accuracy, images):.2f}" if images and run.metric == ACCURACY else ""
    return f"{100 * (accuracy - reference):+.2f}{error}"


def _how(row: CandidateRow) -> str:
    return formats.epochs_in_words(row.epochs) if row.epochs else "repaired"


def _points(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.2f}"
