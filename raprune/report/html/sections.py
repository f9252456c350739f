"""The sections of a report, one function each. A section whose content is not known yet has a sentence that says so."""

from __future__ import annotations

from collections.abc import Sequence

from raprune.checks.symptoms import symptoms
from raprune.plugins import GIVEN
from raprune.report import figures, formats
from raprune.report.html.job import job_of
from raprune.report.html.markup import facts, figure, listing, notice, paragraph, section, table
from raprune.report.summary import compared, summary, ways_told
from raprune.report.tables import drop, finetuned_of, how_timed, latency_conditions, why_starred
from raprune.results.exports import ExportProof
from raprune.results.rows import CandidateRow
from raprune.results.run_results import RunResults
from raprune.results.timings import measured_at, slow
from raprune.spec.fields import normalisation_in_words
from raprune.store.address import last_part
from raprune.store.record import ACCURACY, DataRecord, RecordedSource

FINISHED = "finished"
MOST_ERRORS = 5


def title(results: RunResults) -> str:
    job = results.run.job
    model = job.model.name
    return f"{model} on {_data_name(job.data)}: Pareto front" if model else "Pareto front"


def lead(results: RunResults) -> str:
    """Return the result in a sentence, after notices if the run has not ended or its dense network looks wrong."""
    chosen = results.chosen
    beaten = [compared(comparison, results.run) for comparison in results.comparisons if comparison.is_beaten]
    before = "" if results.progress.finished else _unfinished(results)
    before += "".join(notice(sentence) for sentence in [*symptoms(results.run, results.test), *beaten])
    if chosen is None:
        return before + paragraph("No network within the budget is known yet.")
    return before + paragraph(summary(chosen, results.run, results.times), name="lead")


def _unfinished(results: RunResults) -> str:
    now, state = results.progress, results.run.state or "not begun"
    tuned = f", {finetuned_of(now)} fine-tuned" if now.finetuned else ""
    how_far = f"This run is not finished ({state}): {now.searched} of {now.trials} candidates were searched{tuned}."
    until = f"What follows is what was recorded until {formats.moment(results.ended_at)}." if results.ended_at else ""
    return notice(how_far, until)


def asked(results: RunResults) -> str:
    """Return the section on the request and the dense network."""
    run, job, dense = results.run, results.run.job, results.dense
    finalists, tuned = job.finalists, job.finalists.train.epochs
    groups = results.groups
    network = (
        f"{dense.flops:,} FLOPs ({dense.flops // 2:,} MACs), {dense.params:,} parameters"
        if dense is not None and dense.flops is not None
        else ""
    )
    accuracies = [
        f"{value:.2%} {name}"
        for name, value in (("validation", run.dense_accuracy), ("test", results.test.dense))
        if value is not None
    ]
    sizes = (("train", run.data.train), ("validation", run.data.validation), ("test", run.data.test))
    splits = [f"{size:,} {name}" for name, size in sizes if size]
    entries = {
        "Dense network": f"{job.model.name or ''}{_whence(job.model.weights)}",
        "Dense cost": network,
        f"Dense {run.metric}": ", ".join(accuracies),
        "Channels": f"{sum(groups.values()):,} in {len(groups)} groups that can be cut" if groups else "",
        "Images": ", ".join(splits),
        "Normalisation": _normalisation(run.data),
        "Budget": _budget(results),
        f"Required {run.metric}": "" if results.floor is None else f"{results.floor:.2%} on the validation split",
        "Methods": ", ".join(job.methods),
        "Search": "" if job.search.trials is None else f"{job.search.trials} candidates",
        "Fine-tuning": f"{finalists.count} finalists, {formats.epochs_in_words(tuned)}, {finalists.seeds} seed"
        f"{'' if finalists.seeds == 1 else 's'}{_cuts(finalists.steps)}"
        if finalists.count is not None and tuned is not None
        else "",
        "Recipe": finalists.train.recipe or "",
        "Teacher": f"{job.teacher.name}{_whence(job.teacher.weights)}" if job.teacher.name else "",
    }
    return section("The request", facts(entries))


def _normalisation(data: DataRecord) -> str:
    """Return the normalisation of a run, empty for an older run without this record."""
    if data.mean is None or data.std is None or data.normalisation is None:
        return ""
    return normalisation_in_words(data.mean, data.std, data.normalisation)


def front(results: RunResults) -> str:
    """Return the section with the figure and the table of the front."""
    rows, metric = results.listed, results.run.metric
    if not rows:
        return section("The front", paragraph("No candidate is on the front yet."))
    hovers = {row.candidate: _recipe(row) for row in rows}
    drawn = figures.element(
        "front", results, label=f"Validation {metric} over cost; the table below has the figures", hovers=hovers
    )
    caption = (
        f"Validation {metric} over {figures.front.cost_title(results)}: {len(results.rows)} candidates, "
        f"{len(results.front)} of them on the front; the others are faint. The axis is the logarithm of the error."
    )
    pruned = any(row.weights_pruned for row in rows)
    timings = results.times.conditions
    has_latency = any(formats.latency_share(row) for row in rows)
    head = ["★", "candidate", "method", "#epochs", "#FLOPs %", "#FLOPs", "#params %", "#params"]
    head += ["#nonzero %"] * pruned + ["#latency %"] * has_latency
    head += [f"#faster, batch of {timing.batch_size}" for timing in timings]
    head += ["#validation %", "#test %", "#drop, points"]
    cells = [
        [
            "★" * row.starred,
            row.candidate,
            row.method,
            f"{row.epochs:g}",
            formats.percent(row.flops_fraction),
            formats.count(row.flops),
            formats.percent(row.params_fraction),
            formats.count(row.params),
            *([formats.percent(row.nonzero_fraction)] * pruned),
            *([formats.latency_share(row)] * has_latency),
            *(formats.times_as_fast(timing.speedup(row.candidate)) for timing in timings),
            formats.accuracy(row.val_accuracy, row.val_interval),
            formats.accuracy(row.test_accuracy, row.test_interval),
            drop(row, results.run, results.test),
        ]
        for row in rows
    ]
    ids = [f"candidate-{row.candidate}" for row in rows]
    return section(
        "The front",
        figure(drawn, caption),
        table("The networks of the front", head, cells, ids=ids),
        _notes(results),
        _siblings(results),
    )


def _siblings(results: RunResults) -> str:
    """Return the table of the smaller dense networks beside the front; empty if there are none."""
    dense = results.dense
    if not results.comparisons or dense is None or not dense.flops or not dense.params:
        return ""
    head = ["network", "weights", "#FLOPs %", "#FLOPs", "#params %", "#params", "#validation %", "#test %"]
    cells = [
        [
            sibling.name,
            sibling.weights,
            formats.percent(sibling.flops / dense.flops),
            formats.count(sibling.flops),
            formats.percent(sibling.params / dense.params),
            formats.count(sibling.params),
            formats.accuracy(sibling.val_accuracy),
            formats.accuracy(sibling.test_accuracy),
        ]
        for sibling in results.siblings
    ]
    sentences = [compared(comparison, results.run) for comparison in results.comparisons]
    return table("Smaller dense networks beside the front", head, cells) + paragraph(*sentences)


def chosen(results: RunResults) -> str:
    """Return the section on the chosen network: comparison with the dense one, origin, and proof."""
    row, dense, test = results.chosen, results.dense, results.test
    if row is None or dense is None or dense.flops is None or dense.params is None:
        return ""
    images = test.images or 0
    cells = [
        ["FLOPs for one image", f"{dense.flops:,}", f"{row.flops:,}", formats.percent(row.flops_fraction)],
        ["MACs for one image", f"{dense.flops // 2:,}", f"{row.macs:,}", formats.percent(row.flops_fraction)],
        ["parameters", f"{dense.params:,}", f"{row.params:,}", formats.percent(row.params_fraction)],
    ]
    if dense.memory_bytes is not None and row.memory_bytes is not None and row.memory_fraction is not None:
        sizes = (f"{count:,}" for count in (dense.memory_bytes, row.memory_bytes))
        cells.append(["peak bytes of activations of an image", *sizes, formats.percent(row.memory_fraction)])
    for timing in results.times.conditions:
        if (time_ms := timing.candidates.get(row.candidate)) is not None:
            what = f"time of a batch of {timing.batch_size}, measured"
            cells.append([what, *_compared_ms(timing.dense_ms, time_ms)])
    measured = row.measured
    if measured is not None and measured.measured_latency_ms and measured.measured_latency_fraction:
        whole = measured.measured_latency_ms / measured.measured_latency_fraction
        cells.append(["latency of the budget, measured", *_compared_ms(whole, measured.measured_latency_ms)])
    if row.latency_ms is not None and row.latency_fraction is not None:
        whole = row.latency_ms / row.latency_fraction
        cells.append(["latency of the budget, predicted", *_compared_ms(whole, row.latency_ms)])
    dense_val = formats.accuracy(dense.val_accuracy)
    metric = results.run.metric
    cells.append([f"validation {metric}, %", dense_val, formats.accuracy(row.val_accuracy, row.val_interval), ""])
    if row.test_accuracy is not None:
        against = f"{drop(row, results.run, test)} points"
        tested = [
            formats.accuracy(test.dense),
            formats.accuracy(row.test_accuracy, row.test_interval),
            against,
        ]
        cells.append([f"test {metric}, % ({images:,} images)", *tested])
    for name, tested_at in row.test_further.items():
        of_dense = formats.accuracy(test.dense_further.get(name))
        cells.append([f"test {name}, %", of_dense, formats.accuracy(tested_at), ""])
    settings = _settings(row)
    steps = {
        "Candidate": f"{row.candidate} (trial {row.trial_id})",
        "Method": f"{row.method}{f' with {settings}' if settings else ''}, widths by {row.allocation}",
        "Blocks that went": ", ".join(row.identity),
        f"Validation {metric}": _way(row),
        "Cuts": f"{row.cuts}, with training after each" if row.cuts > 1 else "",
        "Seeds": f"{len(row.repeats)}: mean, ± half the 95 % interval" if len(row.repeats) > 1 else "",
        "Measured for": measured_at(results.times.conditions),
        "Export": f"raprune export {results.name} {row.candidate} FOLDER",
        "Load": "raprune.load(YourNet(), 'FOLDER')",
    }
    return section(
        "The chosen network",
        table("Comparison with the dense network", ["network", "#dense", "#chosen", "#of dense, %"], cells),
        facts(steps),
        _exported(results.exports.get(row.candidate)),
        _proof(results),
    )


def _exported(proof: ExportProof | None) -> str:
    """Return the table of the programs that the network was exported to; empty if it was not."""
    if proof is None:
        return ""
    sizes = [times.batch_size for times in proof.files[0].times]
    judged = "top-1" if proof.metric == ACCURACY else proof.metric
    head = ["file", "precision", "#MB", f"#{judged} %", "#largest difference", *(f"#ms, batch of {n}" for n in sizes)]
    cells = [
        [
            file.file,
            file.precision,
            f"{file.size_bytes / 1e6:.3g}",
            formats.accuracy(file.accuracy),
            f"{file.max_difference:.1e}",
            *(f"{times.network_ms:.3g} ({formats.times_as_fast(times.speedup)})" for times in file.times),
        ]
        for file in proof.files
    ]
    threads = f"{proof.threads} thread{'s' * (proof.threads != 1)}"
    return table("Exported as a program", head, cells) + paragraph(
        f"Compared with PyTorch on {proof.images:,} validation images, on which it has {proof.accuracy:.2%} {judged}. "
        f"In brackets: how much faster than the dense network in float32, exported alike; on {proof.device}, {threads}."
    )


def _compared_ms(dense_ms: float, time_ms: float) -> list[str]:
    return [f"{dense_ms:.3g} ms", f"{time_ms:.3g} ms", formats.percent(time_ms / dense_ms)]


def widths(results: RunResults) -> str:
    """Return the section on the widths of the groups in some networks of the front."""
    shown, groups = results.spread, results.groups
    if not shown or not groups:
        return ""
    drawn = figures.element("widths", results, label="Channels that stayed, by layer; the table below has the figures")
    head = ["group of channels", "#dense", *(f"#{row.candidate}" for row in shown)]
    cells = [[name, str(dense), *(str(row.width_of(name, dense)) for row in shown)] for name, dense in groups.items()]
    whole: dict[str, list[str]] = {}
    for name, _, reason in results.run.graph.frozen:
        known = whole.setdefault(reason, [])
        if name not in known:
            known.append(name)
    stays = [f"{formats.few(names)}: {reason}" for reason, names in whole.items()]
    return section(
        "Widths by layer",
        figure(drawn, "Channels that stayed in each group, in the network's order; grey is the dense network."),
        table("Channels in each group", head, cells),
        paragraph(f"Unpruned in every candidate: {'; '.join(stays)}." if stays else ""),
    )


def methods(results: RunResults) -> str:
    """Return the section that compares the methods."""
    rows = results.ablation
    if not rows:
        return ""
    drawn = figures.element(
        "ablation", results, label=f"Best {results.run.metric} of each method; the table below has the figures"
    )
    head = ["method", f"#up to, % of the {rows[0].cost_in_words}", "#fine-tuned, epochs", "#epochs in all", "candidate"]
    head += ["#FLOPs %", "#params %", "#validation %", "#test %"]
    cells = [
        [
            row.method,
            f"{100 * row.limit:.1f}",
            f"{row.finetuning_epochs:g}",
            f"{row.best.epochs:g}",
            row.best.candidate,
            formats.percent(row.best.flops_fraction),
            formats.percent(row.best.params_fraction),
            formats.accuracy(row.best.val_accuracy, row.best.val_interval),
            formats.accuracy(row.best.test_accuracy, row.best.test_interval),
        ]
        for row in rows
    ]
    return section(
        "The methods side by side",
        figure(drawn, "The best network of each method within the budget, and within two smaller budgets."),
        table("The best of each method, after equal fine-tuning", head, cells),
        paragraph("random and l1 are baselines: a method that does not beat them is not worth its cost."),
    )


def cost(results: RunResults) -> str:
    """Return the section on progress over compute time, and on failed trials."""
    if not results.spent:
        return ""
    unit, per_hour = figures.cost.unit_of(results)
    drawn = figures.element("cost", results, label=f"Hypervolume and best {results.run.metric} over {unit}")
    last = results.spent[-1]
    at_all = (
        f"{per_hour * results.hours:.3g} {unit} of trials in all; the last one to enlarge the front ended after "
        f"{per_hour * (last.gpu_hours if results.on_gpus else last.hours):.3g}."
    )
    failed = sum(results.errors.values())
    errors = [[str(number), formats.shortened(text)] for text, number in results.errors.most_common(MOST_ERRORS)]
    return section(
        "Progress over compute time",
        figure(drawn, f"The front within the budget over the {unit} of all trials, also failed and stopped ones."),
        paragraph(
            at_all,
            "Hypervolume is the fraction that the front dominates of the area between error 0 at cost 0 and error 1 at "
            "the budget.",
        ),
        table(f"{failed} failed trials", ["#trials", "error"], errors) if failed else "",
    )


def repeat(results: RunResults) -> str:
    """Return the section with everything that is needed to repeat the run."""
    run = results.run
    entries = {
        "Seed": "" if run.job.seed is None else str(run.job.seed),
        "Versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "Machine": run.machine or "",
        "Data": run.data.fingerprint or "",
        "Weights": run.weights_hash or "",
        "Architecture": run.architecture or "",
        "Run": results.name,
        "Recorded": f"{formats.moment(run.started_at)} to {formats.moment(results.ended_at)}" if run.started_at else "",
    }
    job = job_of(run.spec)
    return section(
        "Reproduction",
        facts(entries),
        paragraph("The job's fields that differ from the defaults; run.json has every field.") if job else "",
        listing(f"# raprune search job.toml\n{job}") if job else "",
    )


def _cuts(steps: Sequence[int]) -> str:
    """Return the numbers of cuts behind a comma; empty where each finalist is cut at once."""
    return "" if tuple(steps) == (1,) else f", in {' and in '.join(map(formats.cuts_in_words, steps))}"


def _notes(results: RunResults) -> str:
    rows, test, times = results.listed, results.test, results.times
    has_latency = any(formats.latency_share(row) for row in rows)
    seeds, metric = max(len(row.repeats) for row in rows), results.run.metric
    error = f", ± standard error of {test.images:,} images" if metric == ACCURACY and test.images else ""
    return paragraph(
        why_starred(rows, results.run),
        f"{_figures(metric)} are means over {seeds} seeds, ± half of their 95 % confidence interval."
        if seeds > 1
        else "",
        ways_told(results.cuts),
        f"Drop: test {metric} against the dense network{error}; the test split was used once."
        if test.images
        else f"Drop: validation {metric} against the dense network; the test split was not used.",
        "Epochs: training since the dense network. FLOPs count a multiply-add as 2.",
        *how_timed(rows, results.run, times.conditions, has_latency=has_latency),
        slow(rows, times),
    )


def _figures(metric: str) -> str:
    return "Accuracies" if metric == ACCURACY else f"Values of {metric}"


def _proof(results: RunResults) -> str:
    proof = results.run.graph.proof
    if proof is None:
        return ""
    return paragraph(
        "The groups were proved before any cut, in double precision: a permutation of their channels changes the "
        f"outputs by at most {proof.permutation_error:.1e} of their size, and cut networks differ from the network "
        f"whose removed channels are zeroed by {proof.cut_error:.1e}."
    )


def _way(row: CandidateRow) -> str:
    after = (("after the cut", row.accuracy_after_cut), ("after repair", row.accuracy_after_repair))
    steps = [f"{formats.accuracy(accuracy)} % {when}" for when, accuracy in after if accuracy is not None]
    if row.epochs:
        steps.append(f"{formats.accuracy(row.val_accuracy)} % after {formats.epochs_in_words(row.epochs)} of training")
    return ", ".join(steps)


def _recipe(row: CandidateRow) -> str:
    """Return the description of a point: lines on candidate, method, cost, accuracy and training."""
    return "\n".join(
        [
            f"{row.candidate} ({row.trial_id})",
            f"{row.method}({_settings(row)}), widths by {row.allocation}",
            f"{row.flops_fraction:.1%} of the FLOPs, {row.params_fraction:.1%} of the parameters",
            f"validation {formats.accuracy(row.val_accuracy, row.val_interval)} %, "
            f"test {formats.accuracy(row.test_accuracy, row.test_interval)} %",
            f"trained {formats.epochs_in_words(row.epochs)} since the dense network"
            if row.epochs
            else "not fine-tuned",
        ]
    )


def _settings(row: CandidateRow) -> str:
    """Return the settings of the method, floats to three significant digits."""
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in row.settings.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _budget(results: RunResults) -> str:
    budget, dense = results.budget, results.dense
    whole = {} if dense is None else {"flops": dense.flops, "params": dense.params, "memory": dense.memory_bytes}
    parts = [
        f"at most {100 * limit:g} % of the {spoken}" + (f" ({limit * size:,.0f})" if (size := whole.get(name)) else "")
        for name, spoken in (("flops", "FLOPs"), ("params", "parameters"), ("memory", "peak bytes of activations"))
        if (limit := budget.fractions[name]) is not None
    ]
    if budget.limits_latency:
        share = f"{budget.latency_ms:g} ms" if budget.latency is None else f"{100 * budget.latency:g} %"
        known = results.run.latency
        under = f", for {latency_conditions(known)}" if known else ""
        parts.append(f"at most {share} of the latency{under}")
    return "; ".join(parts)


def _data_name(data: RecordedSource) -> str:
    """Return the data set's name, or the file's name if the data set is a file of the user."""
    name = data.name or "?"
    if name not in ("parquet", "imagefolder") or not data.train:
        return name
    return last_part(data.train)


def _whence(weights: str | None) -> str:
    return f", weights {last_part(weights)}" if weights and not weights.startswith(GIVEN) else ""
