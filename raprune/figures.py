"""The picture of a run: `html`, one page that needs no network, and `png`. No torch, no ray."""

from __future__ import annotations

import html as markup
import io
import json
import math
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from raprune.front import Row
from raprune.spec import read_latency

# Okabe and Ito (2008): told apart with every kind of colour vision, on white and on black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
DENSE_COLOUR = "#888888"

ACCURACY_AXIS = "validation accuracy, % (logarithm of the error)"

MAX_WIDTHS = 24
"""Layers that a hover text lists; the table of the store has them all."""


def html(
    rows: Sequence[Row],
    front: Sequence[Row],
    run: Mapping[str, Any],
    test: Mapping[str, Any],
    ablation: Sequence[Row] = (),
    spent: Sequence[Row] = (),
) -> str:
    """A page with the front, every other candidate faded, the recipe on hover, the front and the methods as tables.

    `spent`, what the front had become after so much work, is a figure of its own.
    """
    from plotly.offline import get_plotlyjs

    figure = {"data": _traces(rows, front, run), "layout": _layout(rows, run), "config": _CONFIG}
    return _PAGE.substitute(
        title=markup.escape(_title(run)),
        summary=markup.escape(_summary(front, run, test)),
        figure=_script(figure),
        spent=_script(_spent_figure(spent)),
        unit="GPU-hours" if _on_gpus(spent) else "hours of workers",
        rows="\n".join(_table_row(row) for row in front),
        ablation="\n".join(_ablation_row(row) for row in ablation),
        plotly=get_plotlyjs(),
    )


def png(rows: Sequence[Row], front: Sequence[Row], run: Mapping[str, Any]) -> bytes:
    """The same picture as PNG, 1600 x 1000 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    chosen = {row["candidate"] for row in front}
    labelled = set()
    for method, colour in _colours(rows).items():
        for epochs, marker in ((False, "o"), (True, "D")):
            for on_front in (True, False):
                part = [
                    row
                    for row in rows
                    if row["method"] == method
                    and bool(row["epochs"]) == epochs
                    and (row["candidate"] in chosen) == on_front
                ]
                if part:
                    label = f"{method}, {'fine-tuned' if epochs else 'repaired'}"
                    axes.scatter(
                        [_cost(row, run) for row in part],
                        [_error(row["val_accuracy"], run) for row in part],
                        s=44 if on_front else 22,
                        marker=marker,
                        c=colour,
                        alpha=1.0 if on_front else 0.3,
                        linewidths=0,
                        label=None if label in labelled else label,
                        zorder=4 if on_front else 3,
                    )
                    labelled.add(label)
    by_cost = sorted(front, key=lambda row: _cost(row, run))
    axes.step(
        [_cost(row, run) for row in by_cost],
        [_error(row["val_accuracy"], run) for row in by_cost],
        where="post",
        color="#444444",
        linewidth=1,
        label="front",
        zorder=2,
    )
    dense, budget = run.get("dense", {}), _budget(run)
    if dense.get("val_accuracy") is not None:
        level = _error(dense["val_accuracy"], run)
        axes.axhline(level, color=DENSE_COLOUR, linewidth=1, linestyle=":", label="dense network")
    if budget is not None:
        axes.axvline(100 * budget, color="#444444", linewidth=1, linestyle="--", label=f"budget {100 * budget:g} %")
    ticks = _accuracy_ticks()
    axes.set_yscale("log")
    axes.set_yticks(list(ticks), labels=list(ticks.values()), minor=False)
    axes.set_yticks([], minor=True)
    axes.set_ylim(*_error_range(rows, run))
    axes.set_xlim(0, _cost_end(rows, run))
    axes.set_xlabel(_cost_title(run))
    axes.set_ylabel(ACCURACY_AXIS)
    axes.set_title(_title(run), fontsize=10)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(fontsize=8, loc="outside lower center", ncols=4, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _traces(rows: Sequence[Row], front: Sequence[Row], run: Mapping[str, Any]) -> list[dict[str, Any]]:
    chosen, by_cost = {row["candidate"] for row in front}, sorted(front, key=lambda row: _cost(row, run))
    line: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [_cost(row, run) for row in by_cost],
        "y": [_error(row["val_accuracy"], run) for row in by_cost],
        "line": {"shape": "hv", "width": 1.5, "color": DENSE_COLOUR},
        "hoverinfo": "skip",
    }
    traces = [line]
    for method, colour in _colours(rows).items():
        for on_front in (False, True):
            part = [row for row in rows if row["method"] == method and (row["candidate"] in chosen) == on_front]
            if part:
                traces.append(_points(part, run, markup.escape(method), colour, on_front=on_front))
                traces[-1]["showlegend"] = on_front or not any(row["method"] == method for row in front)
    dense = run.get("dense", {})
    if dense.get("val_accuracy") is not None:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "dense network",
                "x": [100],
                "y": [_error(dense["val_accuracy"], run)],
                "marker": {"symbol": "star", "size": 14, "color": DENSE_COLOUR},
                "hovertemplate": f"dense network<br>validation {dense['val_accuracy']:.2%}<extra></extra>",
            }
        )
    return traces


def _points(part: Sequence[Row], run: Mapping[str, Any], method: str, colour: str, *, on_front: bool) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": method,
        "legendgroup": method,
        "x": [_cost(row, run) for row in part],
        "y": [_error(row["val_accuracy"], run) for row in part],
        "text": [_recipe(row) for row in part],
        "hovertemplate": "%{text}<extra></extra>",
        "error_y": _intervals(part, run),
        "marker": {
            "color": colour,
            "size": 11 if on_front else 7,
            "opacity": 1.0 if on_front else 0.35,
            "symbol": ["diamond" if row["epochs"] else "circle" for row in part],
        },
    }


def _intervals(part: Sequence[Row], run: Mapping[str, Any]) -> dict[str, Any]:
    """Error bars of means over several seeds, in percent of error."""
    widths = [100 * (row["val_interval"] or 0.0) for row in part]
    if not any(widths):
        return {"visible": False}
    errors = [_error(row["val_accuracy"], run) for row in part]
    # The axis is a logarithm: a bar must not reach down to no error at all.
    down = [min(width, 0.9 * error) for width, error in zip(widths, errors, strict=True)]
    return {"type": "data", "symmetric": False, "array": widths, "arrayminus": down, "thickness": 1}


def _script(figure: Mapping[str, Any]) -> str:
    # A closing tag inside a string would end the script.
    return json.dumps(figure).replace("</", "<\\/")


def _on_gpus(spent: Sequence[Row]) -> bool:
    return any(row["gpu_hours"] for row in spent)


def _spent_figure(spent: Sequence[Row]) -> dict[str, Any]:
    """Hypervolume and best accuracy over the GPU-hours (without GPUs the workers' hours) of all trials so far."""
    hours = [row["gpu_hours" if _on_gpus(spent) else "hours"] for row in spent]
    line = {"type": "scatter", "mode": "lines", "x": hours}
    texts = [f"{h:.3g} h, {row['trial_id']}: {row['points']} on the front" for h, row in zip(hours, spent, strict=True)]
    shown = {"text": texts, "hovertemplate": "%{y:.4g}<br>%{text}<extra></extra>"}
    volume = {"name": "hypervolume", "y": [row["hypervolume"] for row in spent]}
    best = {"name": "best validation accuracy, %", "y": [100 * row["val_accuracy"] for row in spent], "yaxis": "y2"}
    axis = {"zeroline": False}
    return {
        "data": [
            line | shown | volume | {"line": {"shape": "hv", "width": 2, "color": PALETTE[0]}},
            line | shown | best | {"line": {"shape": "hv", "width": 2, "color": PALETTE[1], "dash": "dot"}},
        ],
        "layout": {
            "autosize": True,
            "xaxis": axis | {"title": {"text": "GPU-hours" if _on_gpus(spent) else "hours of workers"}},
            "yaxis": axis | {"title": {"text": "hypervolume"}},
            "yaxis2": axis
            | {"title": {"text": "best validation accuracy, %"}, "overlaying": "y", "side": "right", "showgrid": False},
            "shapes": [],
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02},
            "margin": {"t": 40, "r": 70, "b": 60, "l": 70},
        },
        "config": _CONFIG,
    }


def _recipe(row: Row) -> str:
    def points(accuracy: float | None) -> str:
        return "not measured" if accuracy is None else f"{100 * accuracy:.2f} %"

    settings = ", ".join(f"{name}={value}" for name, value in row["settings"].items())
    lines = [
        f"<b>{row['candidate']}</b> ({row['trial_id']})",
        markup.escape(f"{row['method']}({settings}), widths by {row['allocation']}"),
        f"trained {row['epochs']:g} epochs since the dense network" if row["epochs"] else "repaired, not fine-tuned",
        f"{row['flops_fraction']:.1%} of the FLOPs: {row['flops']:,} ({row['macs']:,} MACs)",
        f"{row['params_fraction']:.1%} of the parameters: {row['params']:,}{_zeros(row)}",
        *([f"{_time(row)} % of the dense network's latency"] if _time(row) else []),
        f"validation {points(row['val_accuracy'])}{_spread(row['val_interval'])}, "
        f"test {points(row['test_accuracy'])}{_spread(row['test_interval'])}",
        f"after cut {points(row['accuracy_after_cut'])}, after repair {points(row['accuracy_after_repair'])}",
    ]
    widths = [f"{markup.escape(group)} {width}" for group, width in row["widths"].items()]
    if len(widths) > MAX_WIDTHS:
        widths = [*widths[:MAX_WIDTHS], f"and {len(widths) - MAX_WIDTHS} more"]
    lines += ["channels: " + ", ".join(widths[:4])] + [", ".join(widths[i : i + 4]) for i in range(4, len(widths), 4)]
    return "<br>".join(lines)


def _spread(interval: float | None) -> str:
    return "" if interval is None else f" ± {100 * interval:.2f}"


def _zeros(row: Row) -> str:
    return f", {row['zeros']:,} of them zero" if row["zeros"] else ""


def _layout(rows: Sequence[Row], run: Mapping[str, Any]) -> dict[str, Any]:
    budget = _budget(run)
    line = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"dash": "dash", "width": 1}}
    shapes = [] if budget is None else [line | {"x0": 100 * budget, "x1": 100 * budget}]
    notes = [] if budget is None else [
        {"x": 100 * budget, "y": 1, "yref": "paper", "text": f"budget {100 * budget:g} %", "showarrow": False,
         "xanchor": "left", "yanchor": "top"}
    ]  # fmt: skip
    dense = run.get("dense", {}).get("val_accuracy")
    if dense is not None:
        error, dots = _error(dense, run), {"dash": "dot", "width": 1}
        shapes.append(line | {"xref": "paper", "x1": 1, "yref": "y", "y0": error, "y1": error, "line": dots})
        notes.append(
            {"x": 0, "xref": "paper", "y": math.log10(error), "text": f"dense {dense:.2%}", "showarrow": False,
             "xanchor": "left", "yanchor": "bottom"}
        )  # fmt: skip
    ticks = _accuracy_ticks()
    return {
        "autosize": True,
        "xaxis": {
            "title": {"text": _cost_title(run)},
            "range": [0, _cost_end(rows, run)],
            "zeroline": False,
        },
        "yaxis": {
            "title": {"text": ACCURACY_AXIS},
            "type": "log",
            "range": [math.log10(end) for end in _error_range(rows, run)],
            "tickvals": list(ticks),
            "ticktext": list(ticks.values()),
            "zeroline": False,
        },
        "shapes": shapes,
        "annotations": notes,
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02},
        "margin": {"t": 70, "r": 20, "b": 60, "l": 70},
        "hoverlabel": {"align": "left"},
    }


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    methods = sorted({row["method"] for row in rows})
    return {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(methods)}


def _cost_end(rows: Sequence[Row], run: Mapping[str, Any]) -> float:
    """Percent up to which the axis goes: the candidates and the budget, with a margin."""
    budget = _budget(run)
    return 1.08 * max([_cost(row, run) for row in rows] + ([] if budget is None else [100 * budget]), default=100.0)


def _is_latency(run: Mapping[str, Any]) -> bool:
    """Whether accuracy is set against latency: where that, and no FLOPs, has a budget (`SearchSpec.cost`)."""
    spec = run.get("spec", {})
    return spec.get("budget_latency") is not None and spec.get("budget_flops") is None


def _cost(row: Row, run: Mapping[str, Any]) -> float:
    """What the axis shows, in percent of the dense network: FLOPs, or latency as the table of layer times predicts."""
    share = row["latency_fraction"] if _is_latency(run) else row["flops_fraction"]
    return 100.0 if share is None else 100 * float(share)


def _cost_title(run: Mapping[str, Any]) -> str:
    return f"{'predicted latency' if _is_latency(run) else 'FLOPs'}, % of the dense network"


def _budget(run: Mapping[str, Any]) -> float | None:
    """The budget on the axis, as a fraction; None where there is none."""
    spec = run.get("spec", {})
    if _is_latency(run):
        return read_latency(spec["budget_latency"])[0]
    budget: float | None = spec.get("budget_flops")
    return budget


def budgeted(row: Row) -> tuple[str, str]:
    """Of a row of `front.ablation`, the cost that its budget is of: in the row's keys, and in words."""
    named = (("flops", "FLOPs"), ("params", "params"), ("latency", "latency"))
    return next((cost for cost in named if row.get(f"budget_{cost[0]}") is not None), named[0])


def _error(accuracy: float, run: Mapping[str, Any]) -> float:
    """The error in percent, at least that of half a wrong image: what the axis shows on a logarithm."""
    images = run.get("dense", {}).get("val_images")
    return max(100 * (1 - accuracy), 50 / images if images else 0.01)


def _accuracy_ticks() -> dict[float, str]:
    """Error in percent -> the accuracy that is written there."""
    errors = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 50, 75, 100)
    return {error: f"{100 - error:g}" for error in errors}


def _error_range(rows: Sequence[Row], run: Mapping[str, Any]) -> tuple[float, float]:
    """From the largest error of candidates and dense network to the smallest, with a margin."""
    shown = [row["val_accuracy"] for row in rows]
    dense = run.get("dense", {}).get("val_accuracy")
    errors = [_error(accuracy, run) for accuracy in (shown if dense is None else [*shown, dense])] or [1.0, 100.0]
    return max(errors) * 1.2, min(errors) / 1.5


def _title(run: Mapping[str, Any]) -> str:
    spec = run.get("spec", {})
    model, data = spec.get("model", {}).get("name"), spec.get("data", {}).get("name")
    return f"Pareto front: {model} on {data}" if model and data else "Pareto front"


def _summary(front: Sequence[Row], run: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    dense = run.get("dense", {})
    parts = [f"{len(front)} candidates on the front."]
    if dense:
        parts.append(
            f"Dense network: {dense['flops']:,} FLOPs ({dense['flops'] // 2:,} MACs), {dense['params']:,} parameters."
        )
    if dense.get("val_accuracy") is not None:
        parts.append(f"Its validation accuracy is {dense['val_accuracy']:.2%}.")
    if test.get("dense") is not None:
        parts.append(f"On the {test.get('images', '')} test images it has {test['dense']:.2%}.")
    return " ".join(parts)


def _table_row(row: Row) -> str:
    test = "" if row["test_accuracy"] is None else f"{100 * row['test_accuracy']:.2f}{_spread(row['test_interval'])}"
    cells = [
        row["candidate"],
        row["method"],
        f"{row['epochs']:g}",
        f"{100 * row['flops_fraction']:.1f}",
        f"{row['flops']:,}",
        f"{100 * row['params_fraction']:.1f}",
        f"{row['params']:,}",
        _time(row),
        f"{100 * row['val_accuracy']:.2f}{_spread(row['val_interval'])}",
        test,
    ]
    return _cells(cells)


def _time(row: Row) -> str:
    """Percent of the dense network's latency: measured whole, or, marked, as the table of layer times predicts."""
    if row.get("measured_fraction") is not None:
        return f"{100 * row['measured_fraction']:.1f}"
    return "" if row["latency_fraction"] is None else f"~{100 * row['latency_fraction']:.1f}"


def _ablation_row(row: Row) -> str:
    cost, what = budgeted(row)
    cells = [
        row["candidate"],
        row["method"],
        f"{row['finetuning_epochs']:g}",
        f"{100 * row[f'budget_{cost}']:.1f} % {what}",
        f"{row['epochs']:g}",
        f"{100 * row['flops_fraction']:.1f}",
        f"{100 * row['params_fraction']:.1f}",
        f"{100 * row['nonzero_fraction']:.1f}",
        f"{100 * row['val_accuracy']:.2f}",
        "" if row["test_accuracy"] is None else f"{100 * row['test_accuracy']:.2f}",
    ]
    return _cells(cells)


def _cells(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{markup.escape(cell)}</td>" for cell in cells) + "</tr>"


_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}

# The policy lets nothing be fetched: what is not in the file is not shown.
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #1a1a1a; --back: #ffffff; --line: #d8d8d8; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --back: #16181c; --line: #3a3d44; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 auto;
 max-width: 1200px; padding: 1rem; }
h1 { font-size: 1.3rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 1.5rem 0 0; }
#figure { height: 62vh; min-height: 380px; }
#spent { height: 38vh; min-height: 280px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
td:first-child { font-family: ui-monospace, monospace; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$summary Circles are repaired only, diamonds fine-tuned, faint ones dominated or over the budget.
Point at one for its recipe.</p>
<div id="figure" role="img" aria-label="$title: validation accuracy over FLOPs; the table below has the same figures">
</div>
<div class="wide"><table>
<caption hidden>The front</caption>
<thead><tr><th>candidate</th><th>method</th><th>epochs</th><th>FLOPs %</th><th>FLOPs</th><th>params %</th>
<th>params</th><th>time %</th><th>validation %</th><th>test %</th></tr></thead>
<tbody>
$rows
</tbody></table></div>
<h2>What the search bought</h2>
<p>The front and its best network after so many $unit of trials, stopped and failed ones included.</p>
<div id="spent" role="img" aria-label="Hypervolume and best validation accuracy over $unit; report/spent.json has the
figures"></div>
<h2>The methods side by side</h2>
<p>Of each method the candidate with the best validation accuracy within the budget, after equal fine-tuning.</p>
<div class="wide"><table>
<caption hidden>The methods side by side</caption>
<thead><tr><th>candidate</th><th>method</th><th>fine-tuned, epochs</th><th>up to</th><th>epochs in all</th>
<th>FLOPs %</th><th>params %</th><th>nonzero %</th><th>validation %</th><th>test %</th></tr></thead>
<tbody>
$ablation
</tbody></table></div>
<script>$plotly</script>
<script>
const figure = $figure;
const spent = $spent;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const style = getComputedStyle(document.documentElement);
  const text = style.getPropertyValue("--text"), back = style.getPropertyValue("--back");
  const line = style.getPropertyValue("--line");
  for (const [place, drawn] of Object.entries({ figure, spent })) {
    const layout = structuredClone(drawn.layout);
    Object.assign(layout, { paper_bgcolor: back, plot_bgcolor: back, font: { color: text } });
    for (const axis of [layout.xaxis, layout.yaxis]) Object.assign(axis, { gridcolor: line, linecolor: line });
    for (const shape of layout.shapes) shape.line.color = text;
    Plotly.react(place, drawn.data, layout, drawn.config);
  }
}
dark.addEventListener("change", draw);
draw();
</script>
</body>
</html>
""")
