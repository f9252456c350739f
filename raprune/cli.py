"""The command line: flags become a `SearchSpec`, one function is called, its failure becomes one screen and a code.

Exit codes: 0 done, 1 a failure, 2 a request that cannot be right, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from raprune import __version__
from raprune.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    RapruneError,
    Terminated,
    UsageError,
)
from raprune.words import first_lines, public_address

if TYPE_CHECKING:
    from rich.console import Console

    from raprune.spec import SearchSpec

TRACEBACK = "RAPRUNE_TRACEBACK"
"""Environment variable: set to 1, an unexpected error shows where it came from."""


class Commands(TyperGroup):
    """Commands whose failure is told in one screen."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RapruneError as error:
            _tell(error.message, error.hint)
            code = error.exit_code
        except KeyboardInterrupt as stop:
            terminated = isinstance(stop, Terminated)
            _tell("Terminated." if terminated else "Interrupted.", _how_to_resume(ctx.obj) if ctx.obj else "")
            code = EXIT_TERMINATED if terminated else EXIT_INTERRUPTED
        except (BrokenPipeError, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if os.environ.get(TRACEBACK) == "1" or _is_usage(error):
                raise
            _tell(
                f"{type(error).__name__}: {first_lines(str(error))}",
                f"This is a bug, in raprune or in your code that it called. {TRACEBACK}=1 shows where it came from.",
            )
            code = EXIT_FAILURE
        raise typer.Exit(code)


app = typer.Typer(
    name="raprune",
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Condense a trained vision network: search for the sub-networks with the best accuracy for their cost.",
)


def main() -> None:
    """The `raprune` command."""
    app()


Run = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run: its --output, a path or a URI.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

Job = Annotated[Path | None, typer.Argument(metavar="JOB.toml", help="A job; flags override its fields.")]
Model = Annotated[
    str | None,
    typer.Option(help="A name of `raprune models`, timm:NAME, or package.module:function.", show_default=False),
]
Weights = Annotated[str | None, typer.Option(help="Trained weights: .safetensors, or a state dict of torch.save.")]
Data = Annotated[
    str | None,
    typer.Option(help="digits, parquet, imagefolder, a torchvision data set's name, or package.module:function."),
]
Train = Annotated[
    str | None, typer.Option(help="Training split: Parquet path or URI, or a torchvision data set's root.")
]
Validation = Annotated[
    str | None,
    typer.Option(help="Validation split: steers the search. (default: a part of the training split is held out)"),
]
Test = Annotated[str | None, typer.Option(help="Test split: looked at once, for the report.")]
Download = Annotated[bool | None, typer.Option("--download", help="Let torchvision fetch the data set.")]
BudgetFlops = Annotated[float | None, typer.Option(help="Fraction of the dense FLOPs that may remain: 0.3 keeps 30 %.")]
BudgetParams = Annotated[float | None, typer.Option(help="Fraction of the dense parameters that may remain.")]
BudgetLatency = Annotated[
    str | None,
    typer.Option(help="Latency that may remain: 0.5, a fraction of the dense network's, or 3ms, a time a batch."),
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Glob of module names whose channels all stay. Can be given repeatedly.")
]
MinChannels = Annotated[int | None, typer.Option(help="Channels that stay in every group at least.")]
MultipleOf = Annotated[int | None, typer.Option(help="Widths are multiples of this.")]
Seed = Annotated[int | None, typer.Option(help="Two searches with one seed are the same.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other field: --set finalists.train.lr=0.02. Repeatable."),
]

ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--address", help="The cluster's dashboard. (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)"
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Its id, as `raprune jobs` prints it.")]
KUBERAY = "With --kuberay"


@app.command()
def search(
    ctx: typer.Context,
    job: Job = None,
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    train: Train = None,
    validation: Validation = None,
    test: Test = None,
    download: Download = None,
    budget_flops: BudgetFlops = None,
    budget_params: BudgetParams = None,
    budget_latency: BudgetLatency = None,
    methods: Annotated[str | None, typer.Option(help="Methods to search among, by commas: l2,l1,random.")] = None,
    trials: Annotated[int | None, typer.Option(help="Candidates to try before fine-tuning.")] = None,
    time_limit: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Propose nothing new after this: 90, 90s, 10m, 2h.")
    ] = None,
    gpu_hours: Annotated[
        float | None, typer.Option(help="Propose nothing new after so many GPU-hours of trials (else processor-hours).")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Propose nothing new after so many results that did not enlarge the front.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Validation accuracy that a network must keep, in (0, 1].")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Largest loss of validation accuracy: 0.01 is one point.")
    ] = None,
    rungs: Annotated[
        str | None,
        typer.Option(metavar="EPOCHS", help="Successive halving: 0,0.5,2 fine-tunes the best a little, then more."),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="mixed, tpe, nsga2 or random.")] = None,
    finalists: Annotated[int | None, typer.Option(help="Candidates of the front that are fine-tuned.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Fine-tune each finalist so often: mean and interval on the front.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs of fine-tuning for each finalist.")] = None,
    exclude: Exclude = None,
    min_channels: MinChannels = None,
    multiple_of: MultipleOf = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN", help="An earlier run on the same network, whose best widths come first. Repeatable."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Trials side by side. (default: as many as there is room for)")
    ] = None,
    seed: Seed = None,
    output: Annotated[str | None, typer.Option(help="Folder of the run. (default: runs/MODEL-DATA-TIME)")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster. (default: Ray is started here)")] = None,
    page: Annotated[
        bool | None,
        typer.Option("--page/--no-page", help="A web page beside the run. (default: on a running cluster)"),
    ] = None,
    assignments: Assignments = None,
    resume_it: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, if it holds one already.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved job as TOML; start nothing.")] = False,
) -> None:
    """Search for the Pareto front under a budget, fine-tune the best, report them.

    --dry-run prints the job with every field and a comment for each.
    """
    spec = _spec(job, assignments, _given(ctx))
    if dry_run:
        from raprune.reference import commented_job

        typer.echo(commented_job(spec), nl=False)
        return
    ctx.find_root().obj = spec.output
    from raprune.orchestration.search import search as run_search
    from raprune.orchestration.search import search_or_resume

    (search_or_resume if resume_it else run_search)(spec, console=_console())


@app.command()
def resume(ctx: typer.Context, run: Run) -> None:
    """Go on with a search that was stopped or killed; what was finished is kept."""
    ctx.find_root().obj = run
    from raprune.orchestration.search import resume as run_resume

    run_resume(run, console=_console())


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def submit(
    ctx: typer.Context,
    address: ClusterAddress = None,
    working_dir: Annotated[Path, typer.Option(help="Folder that goes with the job: its code, small data.")] = Path(),
    install: Annotated[
        str | None,
        typer.Option(
            metavar="REQUIREMENT", help="Have pip install this there: raprune==0.1.0. (default: raprune is sent)"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="In the list of jobs. (default: the run's folder)")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow its log to the end.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print its id as JSON; do not follow it.")] = False,
    kuberay: Annotated[bool, typer.Option("--kuberay", help="Print it as a KubeRay RayJob; submit nothing.")] = False,
    image: Annotated[
        str, typer.Option(help="Image with raprune in it.", rich_help_panel=KUBERAY)
    ] = f"raprune:{__version__}",
    nodes: Annotated[int, typer.Option(help="Workers.", min=1, rich_help_panel=KUBERAY)] = 2,
    cpus: Annotated[int, typer.Option(help="Processors of a worker.", min=1, rich_help_panel=KUBERAY)] = 8,
    gpus: Annotated[int, typer.Option(help="GPUs of a worker.", min=0, rich_help_panel=KUBERAY)] = 1,
    memory: Annotated[str, typer.Option(help="Memory of a worker.", rich_help_panel=KUBERAY)] = "32Gi",
    token_secret: Annotated[
        str, typer.Option(help="Secret with Ray's token as auth_token.", rich_help_panel=KUBERAY)
    ] = "raprune-ray-token",
    secret: Annotated[
        list[str] | None,
        typer.Option(help="Secret that becomes environment variables. Repeatable.", rich_help_panel=KUBERAY),
    ] = None,
) -> None:
    """Run a search on a cluster. JOB.toml and all flags of `raprune search` are taken too.

    A run that --output holds already goes on.
    """
    wanted = _parsed_as_search(ctx)
    job, overrides = wanted.params["job"], _overrides(wanted.params["assignments"], _given(wanted))
    from raprune.orchestration import jobs
    from raprune.orchestration import kuberay as rayjob

    if kuberay:
        pods = rayjob.Pods(
            image=image,
            nodes=nodes,
            cpus=cpus,
            gpus=gpus,
            memory=memory,
            token_secret=token_secret,
            secrets=tuple(secret or ()),
        )
        jobs.print_manifest(job, overrides, pods, install=install, name=name)
        return
    code = jobs.submit(
        job,
        overrides,
        address=address,
        working_dir=working_dir,
        install=install,
        name=name,
        wait=wait,
        as_json=as_json,
        dry_run=wanted.params["dry_run"],
        console=_console(),
    )
    raise typer.Exit(code)


@app.command()
def jobs(
    address: ClusterAddress = None,
    everything: Annotated[bool, typer.Option("--all", help="Also jobs that are not raprune's.")] = False,
    as_json: AsJson = False,
) -> None:
    """The jobs of a cluster, and the best that each has found so far."""
    from raprune.orchestration.jobs import print_jobs

    print_jobs(address, everything=everything, as_json=as_json, console=_console())


@app.command()
def logs(
    job_id: JobId,
    address: ClusterAddress = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """What a job on a cluster has printed."""
    from raprune.orchestration.jobs import print_logs

    raise typer.Exit(print_logs(job_id, address, follow=follow, console=_console()))


@app.command()
def stop(job_id: JobId, address: ClusterAddress = None) -> None:
    """End a job on a cluster; submitted again, its run goes on."""
    from raprune.orchestration.jobs import stop as run_stop

    run_stop(job_id, address, console=_console())


@app.command()
def status(run: Run, as_json: AsJson = False) -> None:
    """How far a run is: trials, front, hypervolume, best within the budget."""
    from raprune.report import print_status

    print_status(run, console=_console(), as_json=as_json)


@app.command()
def front(
    run: Run,
    as_json: AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="Also what is dominated or over the budget.")] = False,
    ablation: Annotated[bool, typer.Option("--ablation", help="The methods side by side, in place of it.")] = False,
) -> None:
    """The Pareto front of a run."""
    from raprune.report import print_ablation, print_front

    if ablation:
        print_ablation(run, console=_console(), as_json=as_json)
        return
    print_front(run, console=_console(), as_json=as_json, everything=everything)


@app.command()
def pick(
    run: Run,
    budget_flops: BudgetFlops = None,
    budget_params: BudgetParams = None,
    budget_latency: BudgetLatency = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Pick the cheapest with this validation accuracy, in (0, 1].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The best candidate of a run within any budget, without new work."""
    from raprune.budget import Budget
    from raprune.report import print_pick

    if min_accuracy is not None and not 0.0 < min_accuracy <= 1.0:
        raise UsageError(f"--min-accuracy {min_accuracy:g}: above 0 and at most 1.", hint="For 95 %: 0.95")
    budget = Budget(flops=budget_flops, params=budget_params)
    print_pick(run, budget, latency=budget_latency, console=_console(), min_accuracy=min_accuracy, as_json=as_json)


@app.command()
def report(
    run: Run,
    output: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where to write. (default: the run's folder, in report/)")
    ] = None,
) -> None:
    """Write a run's report: one HTML file to send to someone, and its figures as PDF, SVG and PNG."""
    from raprune.document import report as write

    write(run, folder=output, console=_console())


@app.command()
def inspect(
    ctx: typer.Context,
    model_or_job: Annotated[str | None, typer.Argument(metavar="MODEL|JOB.toml", help="What to look at.")] = None,
    weights: Weights = None,
    data: Data = None,
    train: Train = None,
    channels: Annotated[int | None, typer.Option(help="Channels of an image, where no data is named.", min=1)] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width. (default: the smallest)", min=1)] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes, where no data is named.", min=1)] = None,
    exclude: Exclude = None,
    seed: Seed = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Which channels fall together, what stays and why, and the lowest FLOPs that can be reached.

    A model's name alone needs no data; with --data or a job, the images have the data's shape.
    """
    is_job = model_or_job is None or model_or_job.endswith(".toml")
    job = Path(model_or_job) if model_or_job and is_job else None
    spec = _spec(job, assignments, ({} if is_job else {"model.name": model_or_job}) | _given(ctx))
    from raprune.inspection import inspect_by_name, show

    if is_job or data is not None:
        from raprune.check import inspect_job

        found = inspect_job(spec)
    else:
        found = inspect_by_name(spec.model, channels=channels, image_size=image_size, num_classes=num_classes)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        show(found, _console())


@app.command()
def prune(
    ctx: typer.Context,
    job: Job = None,
    output: Annotated[str | None, typer.Option(help="Folder for recipe.json and weights.safetensors.")] = None,
    method: Annotated[str, typer.Option(help="A name of `raprune methods`.")] = "l2",
    allocation: Annotated[str, typer.Option(help="How scores become widths: uniform or global_rank.")] = "uniform",
    finetune: Annotated[bool, typer.Option("--finetune", help="Distil from the dense network afterwards.")] = False,
    epochs: Annotated[float | None, typer.Option(help="Epochs of fine-tuning.")] = None,
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    train: Train = None,
    validation: Validation = None,
    test: Test = None,
    download: Download = None,
    budget_flops: BudgetFlops = None,
    budget_params: BudgetParams = None,
    budget_latency: BudgetLatency = None,
    exclude: Exclude = None,
    min_channels: MinChannels = None,
    multiple_of: MultipleOf = None,
    seed: Seed = None,
    assignments: Assignments = None,
) -> None:
    """Make one candidate, in this process, without Ray: scored, cut, repaired, measured."""
    spec = _spec(job, assignments, _given(ctx, but=("output",)))
    from raprune.report import print_single
    from raprune.single import prune_once

    console = _console()
    with console.status("pruning") as working:
        made = prune_once(
            spec,
            method=method,
            allocation=allocation,
            folder=output,
            finetune=finetune,
            on_epoch=lambda what, epoch: working.update(f"training ({what}): epoch {epoch.number}"),
        )
    print_single(made.trial, spec, dense_accuracy=made.dense_accuracy, console=console)


@app.command()
def serve(
    run: Run,
    host: Annotated[str, typer.Option(help="Address to listen at; one that is not this machine's needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.")] = 8501,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with the page's token. (or RAPRUNE_PAGE_TOKEN)")
    ] = None,
) -> None:
    """Show a run in the browser, while it goes on or afterwards; Ctrl-C ends it."""
    from raprune.page.serve import serve as run_serve

    run_serve(run, host=host, port=port, token_file=token_file, console=_console())


@app.command()
def export(
    run: Run,
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="Its id, as `raprune front RUN` prints it.")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder for recipe.json and weights.safetensors.")],
) -> None:
    """Write a candidate as a recipe and weights that load into plain PyTorch."""
    from raprune.single import export as run_export

    run_export(run, candidate, folder)
    typer.echo(f"Wrote {folder}/recipe.json and weights.safetensors; raprune.load(model, {folder!r}) reads them.")


@app.command()
def methods() -> None:
    """List the methods with their hyper-parameters and where they come from, and the allocations."""
    from raprune.allocate import list_allocations
    from raprune.methods import list_methods

    for method in list_methods():
        origin = "" if method.origin == "raprune" else f"  [{method.origin}]"
        typer.echo(f"{method.name:<15} {method.title}{origin}")
        if method.settings:
            typer.echo(" " * 16 + ", ".join(method.settings))
    typer.echo("\nAllocations, which divide the budget over the layers:")
    for name, title in list_allocations().items():
        typer.echo(f"{name:<15} {title}")


@app.command()
def models() -> None:
    """List the names that --model takes."""
    from raprune.models import list_models

    for name in list_models():
        typer.echo(name)


@app.command()
def check(
    ctx: typer.Context,
    job: Job = None,
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    train: Train = None,
    validation: Validation = None,
    test: Test = None,
    download: Download = None,
    budget_flops: BudgetFlops = None,
    budget_params: BudgetParams = None,
    budget_latency: BudgetLatency = None,
    exclude: Exclude = None,
    seed: Seed = None,
    assignments: Assignments = None,
    method: Annotated[
        str | None, typer.Option(help="Check a method: a name of `raprune methods`, or package.module:Class.")
    ] = None,
) -> None:
    """Check that a model and data, your own functions among them, fit together.

    --method checks that a method does what every method must; with a job too, both are checked.
    """
    if method is not None:
        from raprune.check import check_method

        check_method(method, console=_console())
        if job is None:
            return
    spec = _spec(job, assignments, _given(ctx))
    from raprune.check import check as run_check

    run_check(spec, console=_console())


dashboards = typer.Typer(no_args_is_help=True, help="raprune's dashboard for Grafana.")
app.add_typer(dashboards, name="dashboards")


@dashboards.command("install")
def install_dashboards(
    folder: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Grafana's, as /etc/grafana. (default: that of Ray's latest session here)"),
    ] = None,
) -> None:
    """Put the dashboard of runs where Grafana finds it: Ray's, whose charts stand in the Metrics tab, or another."""
    from raprune.dashboards import install, next_steps

    typer.echo(next_steps(install(folder)))


def _parsed_as_search(ctx: typer.Context) -> typer.Context:
    """What is left of a command's arguments, as `search` would read them."""
    group = ctx.find_root().command
    assert isinstance(group, TyperGroup)
    read: Any = group.commands["search"].make_context(ctx.info_name, list(ctx.args), parent=ctx.parent)
    return read


def _given(ctx: typer.Context, *, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """Field of the spec -> value, of the flags that a command was given; `but` are fields of which it was not asked."""
    from raprune.spec import FLAGS

    readers = {"methods": _names, "search.rungs": _names, "search.time_limit_s": _seconds}
    given = {field: ctx.params.get(flag[2:].replace("-", "_")) for field, flag in FLAGS.items() if field not in but}
    # A flag that can be repeated is empty when it was not given.
    return {
        field: readers[field](value) if field in readers else value
        for field, value in given.items()
        if value not in (None, [], ())
    }


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _spec(job: Path | None, assignments: list[str] | None, fields: dict[str, Any]) -> SearchSpec:
    from raprune.spec import load_spec

    return load_spec(job, _overrides(assignments, fields))


def _overrides(assignments: list[str] | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Field -> value, of --set and of the flags, which win."""
    given = dict(_assignment(text) for text in assignments or [])
    return given | fields


def _assignment(text: str) -> tuple[str, Any]:
    """The field and the value of `field=value`: a TOML value, or a string that needs no quotes."""
    field, equals, value = text.partition("=")
    if not equals or not field.strip():
        raise UsageError(f"--set {text}: not FIELD=VALUE.", hint="For example --set finalists.train.lr=0.02")
    try:
        return field.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return field.strip(), value.strip()


def _seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", duration.strip())
    if match is None:
        raise UsageError(f"--time-limit {duration}: not a duration.", hint="For example 90, 90s, 10m or 2h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # What goes to a file or a pipe is not folded to eighty columns.
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=140)


def _how_to_resume(output: str) -> str:
    from raprune.store import Store

    try:
        recorded = Store(output).is_run()
    except RapruneError:
        recorded = True
    if not recorded:
        return "Nothing was recorded yet; start it again."
    return f"Go on with it: raprune resume {public_address(output)}"


def _tell(message: str, hint: str) -> None:
    """Writes an error to stderr: what went wrong, and what to do."""
    coloured = sys.stderr.isatty()
    typer.echo(f"{typer.style('Error:', fg='red', bold=True) if coloured else 'Error:'} {message}", err=True)
    if hint:
        typer.echo(typer.style(hint, dim=True) if coloured else hint, err=True)


def _is_usage(error: Exception) -> bool:
    """Whether typer tells it: it exits with 2 by itself."""
    return hasattr(error, "exit_code") and hasattr(error, "show")


if __name__ == "__main__":
    main()
