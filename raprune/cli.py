"""The command line: flags become a `SearchSpec`, one function is called, and an error becomes one screen and a code.

Exit codes: 0 done, 1 a failure, 2 a request that cannot be right, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raprune import __version__
from raprune.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    RapruneError,
    Terminated,
    UsageError,
)
from raprune.orchestration import interruption
from raprune.report.command_help import PlainCommand, PlainGroup
from raprune.report.formats import first_lines
from raprune.spec import names
from raprune.store.address import public_address

if TYPE_CHECKING:
    from rich.console import Console

    from raprune.results.exports import ExportProof
    from raprune.results.stages import Stages
    from raprune.spec.job import SearchSpec

TRACEBACK = "RAPRUNE_TRACEBACK"
"""Environment variable; 1 makes an unexpected error show its traceback."""


class Commands(PlainGroup):
    """Group of commands that prints each error on one screen."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        with _told(None):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _told(ctx):
            return super().invoke(ctx)


@contextmanager
def _told(ctx: Any) -> Iterator[None]:
    """Print an error or an interruption within the context, and turn it into an exit code."""
    try:
        yield
        return
    except (BrokenPipeError, typer.Exit, typer.Abort):
        raise
    except (Exception, KeyboardInterrupt) as error:
        stop = None if isinstance(error, UsageError) or _is_usage(error) else interruption.behind(error)
        if stop is not None:
            interruption.let_go()
            is_terminated = issubclass(stop, Terminated)
            _tell(
                "Terminated." if is_terminated else "Interrupted.", _how_to_resume(ctx.obj) if ctx and ctx.obj else ""
            )
            code = EXIT_TERMINATED if is_terminated else EXIT_INTERRUPTED
        elif isinstance(error, RapruneError):
            _tell(error.message, error.hint)
            code = error.exit_code
        elif os.environ.get(TRACEBACK) == "1" or _is_usage(error):
            raise
        else:
            _tell(
                f"{type(error).__name__}: {first_lines(str(error))}",
                f"This is a bug in raprune, or in your code that it called. {TRACEBACK}=1 shows the traceback.",
            )
            code = EXIT_FAILURE
    raise typer.Exit(code)


app = typer.Typer(
    name="raprune",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
command = partial(app.command, cls=PlainCommand)


def main() -> None:
    """Run the command line. `python -m raprune` also handles an interruption of its imports."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raprune {__version__}")
        raise typer.Exit


@app.callback()
def raprune(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", metavar="", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Condense a trained vision network: search for the sub-networks with the best accuracy for their cost."""


SEARCHES = "Search"
RESULTS = "Results of a run"
ONE_NETWORK = "One network"
CLUSTERS = "Ray clusters"
REFERENCE = "Reference"
"""Groups of commands in `raprune --help`, in the order in which a newcomer needs them."""

NETWORK = "Network and data"
BUDGET = "Budget and accuracy"
SEARCH = "Search"
PRUNING = "Pruning"
FINETUNING = "Fine-tuning"
PLACE = "Where it runs"
JOB = "Job"
EXPORT = "Exported files"
KUBERAY = "With --kuberay"
"""Groups of options."""


RunPath = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Folder of a run: its --output, a path or a URI.", autocompletion=names.complete_run
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", metavar="")]

Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        help="Format to write: recipe, torch, onnx or huggingface. Repeatable. (default: recipe)",
        metavar="FORMAT",
        rich_help_panel=EXPORT,
    ),
]

Quantize = Annotated[
    str | None,
    typer.Option(help="Also write the ONNX file in this precision: int8.", metavar="PRECISION", rich_help_panel=EXPORT),
]

Job = Annotated[Path | None, typer.Argument(metavar="JOB.toml", help="Job file; options override its fields.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="Network: a name of `raprune models`, or package.module:function.",
        metavar="NAME",
        rich_help_panel=NETWORK,
        autocompletion=names.complete_model,
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="What the network is trained for: classification, multi_label, regression, segmentation, detection, or "
        "package.module:Class.",
        metavar="NAME",
        rich_help_panel=NETWORK,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Trained weights: .safetensors, or a state dict written by torch.save.",
        metavar="FILE",
        rich_help_panel=NETWORK,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help=f"Data set: {', '.join(names.list_datasets())}, or package.module:function.",
        metavar="NAME",
        rich_help_panel=NETWORK,
        autocompletion=names.complete_dataset,
    ),
]
Train = Annotated[
    str | None,
    typer.Option(
        help="Training split: a Parquet path or URI, a folder of images, or the root of a torchvision data set.",
        metavar="PATH",
        rich_help_panel=NETWORK,
    ),
]
Validation = Annotated[
    str | None,
    typer.Option(
        help="Validation split, by which the search chooses. (default: a held-out part of the training split)",
        metavar="PATH",
        rich_help_panel=NETWORK,
    ),
]
Test = Annotated[
    str | None,
    typer.Option(help="Test split, evaluated once, for the report.", metavar="PATH", rich_help_panel=NETWORK),
]
Download = Annotated[
    bool | None,
    typer.Option("--download", help="Let torchvision download the data set.", metavar="", rich_help_panel=NETWORK),
]
# These are texts: the job checks every fraction in one place, with one message.
BudgetFlops = Annotated[
    str | None,
    typer.Option(
        help="Fraction of the dense FLOPs that may remain: 0.3 keeps 30 %.", metavar="FRACTION", rich_help_panel=BUDGET
    ),
]
BudgetParams = Annotated[
    str | None,
    typer.Option(help="Fraction of the dense parameters that may remain.", metavar="FRACTION", rich_help_panel=BUDGET),
]
BudgetMemory = Annotated[
    str | None,
    typer.Option(
        help="Peak activation memory that may remain: 0.5 is a fraction of the dense peak, 64MiB a size per batch.",
        metavar="FRACTION|SIZE",
        rich_help_panel=BUDGET,
    ),
]
BudgetLatency = Annotated[
    str | None,
    typer.Option(
        help="Latency that may remain: 0.5 is a fraction of the dense latency, 3ms a time per batch.",
        metavar="FRACTION|TIME",
        rich_help_panel=BUDGET,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Glob pattern of module names whose channels all stay. Repeatable.", metavar="GLOB", rich_help_panel=BUDGET
    ),
]
MinChannels = Annotated[
    int | None,
    typer.Option(help="Minimum number of channels that stay in each group.", metavar="N", rich_help_panel=BUDGET),
]
MultipleOf = Annotated[
    str | None,
    typer.Option(
        help="Number that all widths are multiples of; auto: the step at which latency falls.",
        metavar="N",
        rich_help_panel=BUDGET,
    ),
]
Depth = Annotated[
    bool | None,
    typer.Option(
        "--depth/--no-depth",
        help="Let whole residual blocks go, too: for a budget of latency.",
        metavar="",
        rich_help_panel=BUDGET,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="Recipe of the fine-tuning: short, short-transformer, cifar, cnn, mobile or transformer. "
        "(default: by network and epochs)",
        metavar="NAME",
        rich_help_panel=FINETUNING,
    ),
]
TeacherName = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        help="Network that teaches instead of the dense one: a name as for --model.",
        metavar="NAME",
        rich_help_panel=FINETUNING,
        autocompletion=names.complete_model,
    ),
]
TeacherWeights = Annotated[
    str | None,
    typer.Option(help="File of the teacher's trained weights.", metavar="FILE", rich_help_panel=FINETUNING),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of all random numbers; one seed gives one result.", metavar="N", rich_help_panel=JOB),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Value of any field of the job: --set finalists.train.lr=0.02. Repeatable.",
        rich_help_panel=JOB,
    ),
]

ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="URL of the cluster's dashboard. (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)",
        metavar="URL",
    ),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Id or name of a job, as `raprune jobs` prints it.")]


@command(rich_help_panel=SEARCHES)
def search(
    ctx: typer.Context,
    job: Job = None,
    model: Model = None,
    weights: Weights = None,
    task: TaskName = None,
    data: Data = None,
    train: Train = None,
    validation: Validation = None,
    test: Test = None,
    download: Download = None,
    budget_flops: BudgetFlops = None,
    budget_params: BudgetParams = None,
    budget_latency: BudgetLatency = None,
    budget_memory: BudgetMemory = None,
    min_accuracy: Annotated[
        str | None,
        typer.Option(
            help="Minimum validation accuracy of a network, or value of the task's metric, in (0, 1].",
            metavar="FRACTION",
            rich_help_panel=BUDGET,
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            help="Maximum loss of validation accuracy: 0.01 is one point.", metavar="FRACTION", rich_help_panel=BUDGET
        ),
    ] = None,
    exclude: Exclude = None,
    min_channels: MinChannels = None,
    multiple_of: MultipleOf = None,
    depth: Depth = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods to search among, separated by commas: taylor,l2. (default: five that need no training)",
            metavar="NAMES",
            rich_help_panel=SEARCH,
            autocompletion=names.complete_methods,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Number of candidates to try before fine-tuning.", metavar="N", rich_help_panel=SEARCH),
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Stop proposing candidates after this duration (90s, 10m, 2h).",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    gpu_hours: Annotated[
        float | None,
        typer.Option(
            help="Stop proposing candidates after this many GPU-hours of trials (CPU-hours where there is no GPU).",
            metavar="HOURS",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop proposing candidates after this many results in a row that did not enlarge the front.",
            metavar="N",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    rungs: Annotated[
        str | None,
        typer.Option(
            metavar="EPOCHS",
            help="Epochs of fine-tuning at each rung of successive halving, separated by commas: 0,0.5,2.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Sampler that proposes candidates: mixed, tpe, gp, nsga2 or random.",
            metavar="NAME",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            help="Run on the same network and data whose best widths are tried first. Repeatable.",
            rich_help_panel=SEARCH,
            autocompletion=names.complete_run,
        ),
    ] = None,
    finalists: Annotated[
        int | None,
        typer.Option(help="Number of candidates of the front to fine-tune.", metavar="N", rich_help_panel=FINETUNING),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Number of epochs of fine-tuning for each finalist.", metavar="EPOCHS", rich_help_panel=FINETUNING
        ),
    ] = None,
    recipe: RecipeOption = None,
    teacher: TeacherName = None,
    teacher_weights: TeacherWeights = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Number of times to fine-tune each finalist; the front then shows mean and interval.",
            metavar="N",
            rich_help_panel=FINETUNING,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of trials that run at the same time. (default: as many as fit)",
            metavar="N",
            rich_help_panel=PLACE,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of a running Ray cluster. (default: start Ray on this machine)",
            metavar="HOST:PORT",
            rich_help_panel=PLACE,
        ),
    ] = None,
    page: Annotated[
        bool | None,
        typer.Option(
            "--page/--no-page",
            help="Serve a web page of the run. (default: on a running cluster)",
            metavar="",
            rich_help_panel=PLACE,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Folder of the run, a path or a URI. (default: runs/MODEL-DATA-TIME)",
            metavar="FOLDER",
            rich_help_panel=JOB,
        ),
    ] = None,
    store_front: Annotated[
        bool | None,
        typer.Option(
            "--store-front/--no-store-front",
            help="Store the weights of every network of the front when the search ends. (default: yes)",
            metavar="",
            rich_help_panel=JOB,
        ),
    ] = None,
    resume_it: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume the run in --output, if it holds one already.", metavar="", rich_help_panel=JOB
        ),
    ] = False,
    seed: Seed = None,
    assignments: Assignments = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the job as TOML, each field with its value, and start nothing.",
            metavar="",
            rich_help_panel=JOB,
        ),
    ] = False,
) -> None:
    """Search for the Pareto front under a budget, fine-tune its best networks and report them.

    JOB.toml and the options set the same fields; --dry-run prints all of them.
    """
    spec = _spec(job, assignments, _given(ctx))
    if dry_run:
        from raprune.spec.reference import commented_job

        typer.echo(commented_job(spec), nl=False)
        return
    ctx.find_root().obj = spec.output
    console = _console()
    with _loading(console) as stages:
        from raprune.orchestration.search import search as run_search
        from raprune.orchestration.search import search_or_resume

        (search_or_resume if resume_it else run_search)(spec, console=console, stages=stages)


@command(rich_help_panel=SEARCHES)
def resume(ctx: typer.Context, run: RunPath) -> None:
    """Resume a search that was stopped or killed; finished work is kept."""
    ctx.find_root().obj = run
    console = _console()
    with _loading(console) as stages:
        from raprune.orchestration.search import resume as run_resume

        run_resume(run, console=console, stages=stages)


@command(rich_help_panel=RESULTS)
def runs(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder that holds runs: a path or a URI.")] = "runs",
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder, newest first: state, trials, budget, best network."""
    from raprune.report.terminal import print_runs

    print_runs(folder, console=_console(), as_json=as_json)


@command(rich_help_panel=RESULTS)
def status(run: RunPath, as_json: AsJson = False) -> None:
    """Show the progress of a run: trials, front, hypervolume, best network within the budget."""
    from raprune.report.terminal import print_status

    print_status(run, console=_console(), as_json=as_json)


@command(rich_help_panel=RESULTS)
def front(
    run: RunPath,
    as_json: AsJson = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Print dominated networks and networks over the budget as well.", metavar="")
    ] = False,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Print the comparison of the methods instead of the front.", metavar="")
    ] = False,
) -> None:
    """Print the Pareto front of a run, or the comparison of its methods."""
    from raprune.report.terminal import print_ablation, print_front

    if ablation:
        print_ablation(run, console=_console(), as_json=as_json)
        return
    print_front(run, console=_console(), as_json=as_json, everything=everything)


@command(rich_help_panel=RESULTS)
def pick(
    ctx: typer.Context,
    run: RunPath,
    budget_flops: BudgetFlops = None,
    budget_params: BudgetParams = None,
    budget_latency: BudgetLatency = None,
    budget_memory: BudgetMemory = None,
    min_accuracy: Annotated[
        str | None,
        typer.Option(
            help="Minimum validation accuracy, or value of the task's metric, in (0, 1]; the cheapest is picked.",
            metavar="FRACTION",
            rich_help_panel=BUDGET,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pick the best network of a run under another budget, without new work."""
    from raprune.report.terminal import print_pick
    from raprune.spec.toml import load_limits

    limits = load_limits(_given(ctx))
    print_pick(
        run,
        limits.budget,
        min_accuracy=limits.min_accuracy,
        console=_console(),
        as_json=as_json,
    )


@command(rich_help_panel=RESULTS)
def report(
    run: RunPath,
    output: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Folder of the report. (default: report/ in the folder of the run)"),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=FILE",
            help="Smaller network of the family, with its trained weights, to set beside the front. Repeatable.",
        ),
    ] = None,
) -> None:
    """Write the report of a run: one HTML file to send to someone, and its figures as PDF, SVG and PNG.

    --compare measures smaller networks, which were trained alike, on the data of the run. The report keeps them, and
    says where one of them is the better choice.
    """
    from raprune.report.html import report as write

    console, siblings = _console(), []
    if compare:
        with _loading(console) as stages:
            from raprune.pruning.siblings import NamedNetwork, measure_siblings

            siblings = measure_siblings(run, [NamedNetwork.of(text) for text in compare], stages=stages)
    write(run, folder=output, siblings=siblings, console=console)


@command(rich_help_panel=ONE_NETWORK)
def inspect(
    ctx: typer.Context,
    model_or_job: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|JOB.toml",
            help="Network: a name of `raprune models`, package.module:function, or a job file that names one.",
            autocompletion=names.complete_model,
        ),
    ] = None,
    weights: Weights = None,
    task: TaskName = None,
    data: Data = None,
    train: Train = None,
    channels: Annotated[
        int | None,
        typer.Option(
            help="Number of channels of an image, if no data is named.", min=1, metavar="N", rich_help_panel=NETWORK
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Height and width of an image, if no data is named. (default: the size that the network is made for)",
            min=1,
            metavar="PIXELS",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(help="Number of classes, if no data is named.", min=1, metavar="N", rich_help_panel=NETWORK),
    ] = None,
    exclude: Exclude = None,
    seed: Seed = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Show which channels of a network are coupled, which stay and why, and the lowest FLOPs that can be reached.

    The name of a network alone needs no data. With --data or a job, the images have the shape of the data.
    """
    is_job = model_or_job is None or model_or_job.endswith(".toml")
    job = Path(model_or_job) if model_or_job and is_job else None
    spec = _spec(job, assignments, ({} if is_job else {"model.name": model_or_job}) | _given(ctx))
    from raprune.checks.inspect import inspect_by_name, show

    if is_job or data is not None:
        from raprune.checks.job import inspect_job

        found = inspect_job(spec)
    else:
        found = inspect_by_name(spec.model, channels=channels, image_size=image_size, num_classes=num_classes)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        show(found, _console())


@command(rich_help_panel=ONE_NETWORK)
def prune(
    ctx: typer.Context,
    job: Job = None,
    model: Model = None,
    weights: Weights = None,
    task: TaskName = None,
    data: Data = None,
    train: Train = None,
    validation: Validation = None,
    test: Test = None,
    download: Download = None,
    budget_flops: BudgetFlops = None,
    budget_params: BudgetParams = None,
    budget_latency: BudgetLatency = None,
    budget_memory: BudgetMemory = None,
    exclude: Exclude = None,
    min_channels: MinChannels = None,
    multiple_of: MultipleOf = None,
    depth: Depth = None,
    method: Annotated[
        str,
        typer.Option(
            help="Method: a name of `raprune methods`, or package.module:Class.",
            metavar="NAME",
            rich_help_panel=PRUNING,
            autocompletion=names.complete_methods,
        ),
    ] = "l2",
    allocation: Annotated[
        str,
        typer.Option(
            help="Rule that turns scores into widths: uniform or global_rank.",
            metavar="NAME",
            rich_help_panel=PRUNING,
        ),
    ] = "uniform",
    finetune: Annotated[
        bool,
        typer.Option(
            "--finetune",
            help="Fine-tune by distillation from the dense network.",
            metavar="",
            rich_help_panel=FINETUNING,
        ),
    ] = False,
    epochs: Annotated[
        float | None,
        typer.Option(help="Number of epochs of fine-tuning.", metavar="EPOCHS", rich_help_panel=FINETUNING),
    ] = None,
    recipe: RecipeOption = None,
    teacher: TeacherName = None,
    teacher_weights: TeacherWeights = None,
    output: Annotated[
        str | None,
        typer.Option(help="Folder for recipe.json and weights.safetensors.", metavar="FOLDER", rich_help_panel=JOB),
    ] = None,
    formats: Formats = None,
    quantize: Quantize = None,
    seed: Seed = None,
    assignments: Assignments = None,
) -> None:
    """Prune one network in this process, without Ray: score, cut, repair, measure."""
    spec = _spec(job, assignments, _given(ctx, but=("output",)))
    console = _console()
    with _loading(console) as stages:
        from raprune.checks.diagnosis import examine
        from raprune.pruning.export import prune_once
        from raprune.report.terminal import print_single

        made = prune_once(
            spec,
            method=method,
            allocation=allocation,
            folder=output,
            formats=_formats(formats),
            quantize=quantize,
            finetune=finetune,
            stages=stages,
            examine=examine,
        )
    print_single(
        made.trial,
        spec,
        dense_accuracy=made.dense_accuracy,
        console=console,
        warnings=made.warnings,
        metric=made.metric,
    )
    if made.latency is not None:
        console.print(made.latency.sentence, markup=False, highlight=False)
    _print_proof(made.proof, console)


@command(rich_help_panel=CLUSTERS)
def latency(
    is_served: Annotated[
        bool, typer.Option("--serve", help="Time networks for runs on other machines, until Ctrl-C.", metavar="")
    ] = False,
    host: Annotated[
        str,
        typer.Option(help="Address to listen at; others than loopback are reached by other machines.", metavar="HOST"),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes any free port.", metavar="PORT")] = 8502,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="File that holds the token. (default: RAPRUNE_LATENCY_TOKEN, else a new one)"
        ),
    ] = None,
) -> None:
    """Serve the times of networks on this device to runs on other machines (`latency.target` of a job)."""
    from raprune.cost.timing_worker import run as run_worker

    if not is_served:
        raise UsageError("raprune latency: nothing to do.", hint="Start a timing worker: raprune latency --serve")
    run_worker(host=host, port=port, token_file=token_file)


@command(rich_help_panel=RESULTS)
def serve(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FOLDER",
            help="Folder of a run, or a folder of several runs; a path or a URI.",
            autocompletion=names.complete_run,
        ),
    ],
    host: Annotated[
        str,
        typer.Option(help="Address to listen at; an address that other machines reach needs a token.", metavar="HOST"),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes any free port.", metavar="PORT")] = 8501,
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="File that holds the token of the page. (default: RAPRUNE_PAGE_TOKEN)"),
    ] = None,
) -> None:
    """Serve a web page of a run, or of all runs in a folder, until Ctrl-C; the page shows a search live."""
    from raprune.page.serve import serve as run_serve

    run_serve(run, host=host, port=port, token_file=token_file, console=_console())


@command(rich_help_panel=RESULTS)
def export(
    run: RunPath,
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK", help="Name of a network, as `raprune front RUN` prints it, or id of a trial."
        ),
    ],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder for the files of the network.")],
    formats: Formats = None,
    quantize: Quantize = None,
) -> None:
    """Export a network of a run: a recipe and weights for PyTorch, a torch.export program, or ONNX.

    recipe: recipe.json and weights.safetensors, for your own network class. torch: model.pt2, a program that needs no
    code. onnx: model.onnx. huggingface: config.json, model.safetensors and a model card. Programs are compared with
    PyTorch on validation images of the run and timed beside the dense network.
    """
    console = _console()
    with _loading(console) as stages:
        from raprune.pruning.delivery import RECIPE_FORMAT
        from raprune.pruning.export import export as run_export

        wanted = _formats(formats)
        made = run_export(
            run,
            network,
            folder,
            formats=wanted,
            quantize=quantize,
            stages=stages,
            tell=lambda text: console.print(text, markup=False),
        )
    *others, last = made.files
    files = f"{', '.join(others)} and {last}" if others else last
    loads = f" raprune.load(model, {folder!r}) reads them." if wanted == [RECIPE_FORMAT] else ""
    typer.echo(
        f"Wrote {files} to {folder}: network {made.network}, trial {made.trial_id}, "
        f"validation {made.metric} {made.val_accuracy:.2%}.{loads}"
    )
    _print_proof(made.proof, console)


@command(rich_help_panel=CLUSTERS, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def submit(
    ctx: typer.Context,
    address: ClusterAddress = None,
    working_dir: Annotated[
        Path, typer.Option(help="Folder to send with the job: code and small data.", metavar="FOLDER")
    ] = Path(),
    install: Annotated[
        str | None,
        typer.Option(
            metavar="REQUIREMENT",
            help="Requirement that pip installs on the cluster: raprune==0.1.0. (default: send raprune with the job)",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name in the list of jobs. (default: the name of the run's folder)", metavar="NAME"),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the log of the job to its end.", metavar="")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the id of the job as JSON; do not follow the log.", metavar="")
    ] = False,
    kuberay: Annotated[
        bool, typer.Option("--kuberay", help="Print the job as a RayJob of KubeRay; submit nothing.", metavar="")
    ] = False,
    image: Annotated[
        str, typer.Option(help="Container image with raprune in it.", metavar="IMAGE", rich_help_panel=KUBERAY)
    ] = f"raprune:{__version__}",
    nodes: Annotated[int, typer.Option(help="Number of workers.", min=1, metavar="N", rich_help_panel=KUBERAY)] = 2,
    cpus: Annotated[
        int, typer.Option(help="Number of CPUs of each worker.", min=1, metavar="N", rich_help_panel=KUBERAY)
    ] = 8,
    gpus: Annotated[
        int, typer.Option(help="Number of GPUs of each worker.", min=0, metavar="N", rich_help_panel=KUBERAY)
    ] = 1,
    memory: Annotated[
        str, typer.Option(help="Memory of each worker.", metavar="QUANTITY", rich_help_panel=KUBERAY)
    ] = "32Gi",
    token_secret: Annotated[
        str, typer.Option(help="Secret that holds Ray's token as auth_token.", metavar="NAME", rich_help_panel=KUBERAY)
    ] = "raprune-ray-token",
    secret: Annotated[
        list[str] | None,
        typer.Option(
            help="Secret that becomes environment variables. Repeatable.", metavar="NAME", rich_help_panel=KUBERAY
        ),
    ] = None,
) -> None:
    """Submit a search to a cluster; takes JOB.toml and all options of `raprune search`.

    If --output holds a run already, the run is resumed.
    """
    wanted = _parsed_as_search(ctx)
    job, overrides = wanted.params["job"], _overrides(wanted.params["assignments"], _given(wanted))
    from raprune.orchestration.jobs import client
    from raprune.orchestration.jobs import kuberay as rayjob

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
        client.print_manifest(job, overrides, pods, install=install, name=name)
        return
    code = client.submit(
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


@command(rich_help_panel=CLUSTERS)
def jobs(
    address: ClusterAddress = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List all jobs, not only those of raprune.", metavar="")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the jobs of a cluster and the best network that each has found so far."""
    from raprune.orchestration.jobs.client import print_jobs

    print_jobs(address, everything=everything, as_json=as_json, console=_console())


@command(rich_help_panel=CLUSTERS)
def logs(
    job: JobName,
    address: ClusterAddress = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow the log to the end of the job.", metavar="")
    ] = False,
) -> None:
    """Print the log of a job on a cluster."""
    from raprune.orchestration.jobs.client import print_logs

    raise typer.Exit(print_logs(job, address, follow=follow, console=_console()))


@command(rich_help_panel=CLUSTERS)
def stop(job: JobName, address: ClusterAddress = None) -> None:
    """Stop a job on a cluster; submit it again to resume its run."""
    from raprune.orchestration.jobs.client import stop as run_stop

    run_stop(job, address, console=_console())


@command(rich_help_panel=REFERENCE)
def methods() -> None:
    """List the methods with their papers and settings, and the allocations."""
    from raprune.methods import list_methods
    from raprune.pruning.allocate import list_allocations

    for method in list_methods():
        origin = "" if method.origin == "raprune" else f"  [{method.origin}]"
        typer.echo(f"{method.name:<15} {method.title}{origin}")
        for line in filter(None, (", ".join(method.settings), method.labels)):
            typer.echo(" " * 16 + line)
    typer.echo("\nAllocations, which divide the budget over the layers:")
    for name, title in list_allocations().items():
        typer.echo(f"{name:<15} {title}")


@command(rich_help_panel=REFERENCE)
def models() -> None:
    """List the names that --model takes."""
    typer.echo("\n".join(names.list_models()))


@command(rich_help_panel=SEARCHES)
def check(
    ctx: typer.Context,
    job: Job = None,
    model: Model = None,
    weights: Weights = None,
    task: TaskName = None,
    data: Data = None,
    train: Train = None,
    validation: Validation = None,
    test: Test = None,
    download: Download = None,
    budget_flops: BudgetFlops = None,
    budget_params: BudgetParams = None,
    budget_latency: BudgetLatency = None,
    budget_memory: BudgetMemory = None,
    exclude: Exclude = None,
    seed: Seed = None,
    assignments: Assignments = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Method to check against the contract of all methods: a name, or package.module:Class.",
            metavar="NAME",
            rich_help_panel=PRUNING,
            autocompletion=names.complete_methods,
        ),
    ] = None,
) -> None:
    """Check that network, weights and data fit together, including functions of your own.

    --method checks a method against the contract of all methods. With a job as well, both are checked.
    """
    if method is not None:
        from raprune.checks.job import check_method

        check_method(method, console=_console())
        if job is None:
            return
    spec = _spec(job, assignments, _given(ctx))
    from raprune.checks.job import check as run_check

    run_check(spec, console=_console())


dashboards = typer.Typer(
    cls=PlainGroup, no_args_is_help=True, rich_markup_mode=None, help="Install raprune's dashboard into Grafana."
)
app.add_typer(dashboards, name="dashboards", rich_help_panel=CLUSTERS)


@dashboards.command("install", cls=PlainCommand)
def install_dashboards(
    folder: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of Grafana, such as /etc/grafana. (default: that of Ray's latest session on this machine)",
        ),
    ] = None,
) -> None:
    """Install the dashboard of runs where Grafana finds it: in the folder of Ray, or in that of another Grafana."""
    from raprune.orchestration.jobs.grafana import install, next_steps

    typer.echo(next_steps(install(folder)))


def _parsed_as_search(ctx: typer.Context) -> typer.Context:
    """The remaining arguments of a command, parsed as those of `search`."""
    group = ctx.find_root().command
    assert isinstance(group, PlainGroup)
    read: Any = group.commands["search"].make_context(ctx.info_name, list(ctx.args), parent=ctx.parent)
    return read


def _given(ctx: typer.Context, *, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """Field of the spec -> value, for the flags of the command line; fields in `but` are left out."""
    from raprune.spec.job import FLAGS

    readers = {"methods": _names, "search.rungs": _names, "search.time_limit_s": _seconds}
    given = {field: ctx.params.get(flag[2:].replace("-", "_")) for field, flag in FLAGS.items() if field not in but}
    # A repeatable flag that was not given is an empty list.
    return {
        field: readers[field](value) if field in readers else value
        for field, value in given.items()
        if value not in (None, [], ())
    }


def _formats(given: list[str] | None) -> list[str]:
    """The formats of an export; one option may name several, separated by commas."""
    return [name for text in given or ["recipe"] for name in _names(text)]


def _print_proof(proof: ExportProof | None, console: Console) -> None:
    """Print the table of exported programs, if there are any."""
    if proof is not None:
        from raprune.report.exports import render_exports

        console.print(render_exports(proof))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _spec(job: Path | None, assignments: list[str] | None, fields: dict[str, Any]) -> SearchSpec:
    from raprune.spec.toml import load_spec

    return load_spec(job, _overrides(assignments, fields))


def _overrides(assignments: list[str] | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Field -> value, from --set and from the flags; a flag overrides --set."""
    given = dict(_assignment(text) for text in assignments or [])
    return given | fields


def _assignment(text: str) -> tuple[str, Any]:
    """The field and the value of `field=value`; the value is TOML, or a string without quotes."""
    field, equals, value = text.partition("=")
    if not equals or not field.strip():
        raise UsageError(f"--set {text}: not FIELD=VALUE.", hint="For example: --set finalists.train.lr=0.02")
    try:
        return field.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return field.strip(), value.strip()


def _seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", duration.strip())
    if match is None:
        raise UsageError(f"--time-limit {duration}: not a duration.", hint="For example: 90, 90s, 10m or 2h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # Rich wraps the output to a file or a pipe at 80 columns.
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=140)


@contextmanager
def _loading(console: Console) -> Iterator[Stages]:
    """Show the stages of a command, beginning with its imports, which take seconds."""
    from raprune.report.display import shown
    from raprune.results.stages import LOAD_LIBRARIES

    with shown(console) as stages:
        stages.begin(LOAD_LIBRARIES)
        yield stages


def _how_to_resume(output: str) -> str:
    from raprune.store.folder import Store

    try:
        recorded = Store(output).is_run()
    except RapruneError:
        recorded = True
    if not recorded:
        return "Nothing was recorded yet: start the search again."
    return f"To resume the run: raprune resume {public_address(output)}"


def _tell(message: str, hint: str) -> None:
    """Write an error to stderr: what was wrong, and what to do."""
    coloured = sys.stderr.isatty()
    typer.echo(f"{typer.style('Error:', fg='red', bold=True) if coloured else 'Error:'} {message}", err=True)
    if hint:
        typer.echo(typer.style(hint, dim=True) if coloured else hint, err=True)


def _is_usage(error: BaseException) -> bool:
    """True if typer prints the error itself and exits with 2."""
    return hasattr(error, "exit_code") and hasattr(error, "show")


if __name__ == "__main__":
    main()
