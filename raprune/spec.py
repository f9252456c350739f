"""The request, typed and checked once: `SearchSpec` and its parts.

Read from a TOML file, from flags, or both (a flag overrides its field). This module knows no torch: names of models,
data sets and methods are looked up when the workload is built, before the first trial.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import tomllib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from raprune.budget import Budget
from raprune.errors import UsageError

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
Epochs = Annotated[float, Field(ge=0.0)]
LearningRate = Annotated[float, Field(gt=0.0)]
Distillation = Annotated[float, Field(ge=0.0, le=1.0)]
Arguments = dict[str, bool | int | float | str]

PATHS = ("model.weights", "data.train", "data.validation", "data.test", "warm_start")
"""Fields that hold a path or URI to read, or several."""

_LEAST_LOOKAHEAD = 4
"""Where none is asked for: one worker and two then find the same."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelSpec(_Part):
    """The dense network."""

    name: str = "digits-net"
    """A name of `raprune models`, `timm:NAME`, or `package.module:function` of the user's own."""
    weights: str | None = None
    """A `.safetensors` file or a state dict that `torch.load(weights_only=True)` reads. None: trained first."""
    arguments: Arguments = Field(default_factory=dict)
    """Keyword arguments for the model's builder."""


class DataSpec(_Part):
    """Where the images come from."""

    name: str = "digits"
    """`digits`, `parquet`, `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `imagefolder`, `imagenet`, or
    `package.module:function` of the user's own."""
    train: str | None = None
    """Parquet: path or URI of the training split. Image folders: the folder with the class folders, or with `train/`
    and, if there, `val/` and `test/`. Torchvision data sets: the root folder."""
    validation: str | None = None
    """Parquet: path or URI of a validation split. Image folders: its folder. None: `val/` beside `train/` in image
    folders, unless that is the test split; else `validation_fraction` of the training split is held out."""
    test: str | None = None
    """Parquet: path or URI of the test split. Image folders: its folder. None: `test/` beside `train/` in image
    folders, else the search has no test figure."""
    image_column: str = "image"
    label_column: str = "label"
    image_size: PositiveInt | None = None
    """Images are resized (shorter side) and centre-cropped to this size; needed where they differ in size."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Fraction of the training split that steers the search and is never trained on. Unused where the data has a
    validation split of its own."""
    max_images: PositiveInt | None = None
    """Use only so many images of each split, drawn by seed."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean of the normalisation, in [0, 1]. None: measured on the training split."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation, in (0, 1]. None: measured on the training split."""
    augment: Literal["auto", "none", "shift", "shift-flip", "crop-flip"] = "auto"
    """Training augmentation: `shift` pads and crops by an eighth, `crop` cuts out a random part and scales it back,
    `-flip` mirrors half of the images. `auto` is what suits the data set, `shift` where that is not known."""
    stream: bool = False
    """Read the training split as it is trained on instead of holding it in memory: Parquet and image folders. Of its
    images 20,000 are validation at most."""
    resident_images: PositiveInt = 20_000
    """Of a streamed training split, so many images are held in memory, drawn by seed: calibration looks at these."""
    download: bool = False
    """Allow a torchvision data set to be fetched. Nothing is ever fetched otherwise."""
    arguments: Arguments = Field(default_factory=dict)
    """Keyword arguments for the user's own function."""

    @model_validator(mode="after")
    def _digits_need_no_files(self) -> DataSpec:
        if self.name == "digits" and (self.train or self.validation or self.test):
            raise ValueError("the bundled digits read no files; name the kind of data, for example --data parquet")
        return self

    @model_validator(mode="after")
    def _validation_is_a_split_of_its_own(self) -> DataSpec:
        for name in ("train", "test"):
            if self.validation is not None and self.validation == getattr(self, name):
                raise ValueError(
                    f"validation and {name} name the same images, {self.validation}: a search needs validation images "
                    "that it neither trains on nor reports; leave data.validation out, and a part of the training "
                    "split is held out"
                )
        return self


class TrainSpec(_Part):
    """One run of the training loop: SGD with momentum, one-cycle learning rate, cross-entropy.

    A job trains twice, each time by a subclass with defaults of its own. A field of that subclass takes a plain
    `TrainSpec` too: the fields that were given to it count, all others keep the defaults of the subclass.
    """

    epochs: Epochs = 1.0
    """Passes over the training images; a fraction trains on part of one."""
    batch_size: PositiveInt = 128
    lr: LearningRate = 0.1
    """Peak learning rate of the one-cycle schedule."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    temperature: Annotated[float, Field(gt=0.0)] = 4.0
    """Softening of the teacher's logits (Hinton et al. 2015)."""
    distillation: Distillation = 0.9
    """Weight of the teacher's logits against the labels; 0 trains on labels alone. Unused without a teacher."""
    features: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the teacher's feature maps beside the rest of the loss; 0 leaves them out. Unused without a teacher."""
    warm_up: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15
    """Share of the steps over which the learning rate rises, before half a cosine brings it down."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay a step of the moving average of the weights that training ends with; 0 ends with the weights themselves."""
    accumulate: PositiveInt = 1
    """Parts that a batch goes through the network in, one after another: less memory for the same batch."""
    sync_batch_norm: bool = False
    """Batch statistics over the batches of all workers instead of each its own."""
    channels_last: bool = True
    """Lay images and weights out channels-last where the network allows it: faster convolutions."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward and backward pass; weights and the optimiser stay in float32. `auto` is bfloat16 on GPUs. On
    processors that have it, bfloat16 trains wide networks up to twice as fast."""

    @model_validator(mode="before")
    @classmethod
    def _only_what_was_given(cls, value: Any) -> Any:
        if isinstance(value, TrainSpec) and not isinstance(value, cls):
            return value.model_dump(exclude_unset=True)
        return value


class DenseTrainSpec(TrainSpec):
    """Training of the dense network when no weights are given."""

    epochs: Epochs = 40.0
    """Passes over the training images; a fraction trains on part of one."""
    lr: LearningRate = 0.2
    """Peak learning rate of the one-cycle schedule."""
    distillation: Distillation = 0.0
    """Weight of the teacher's logits against the labels. Unused: the dense network has no teacher."""


class FinetuneSpec(TrainSpec):
    """Fine-tuning of a finalist, distilled from the dense network."""

    epochs: Epochs = 20.0
    """Passes over the training images; a fraction trains on part of one."""
    lr: LearningRate = 0.05
    """Peak learning rate of the one-cycle schedule."""


class SamplerSpec(_Part):
    """How the search proposes."""

    trials: PositiveInt = 64
    """Candidates to try before fine-tuning."""
    time_limit_s: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds after which nothing new is proposed; running trials, fine-tuning and the report still end."""
    gpu_hours: Annotated[float, Field(gt=0.0)] | None = None
    """GPU-hours of trials (processor-hours where there is no GPU) after which nothing new is proposed."""
    patience: PositiveInt | None = None
    """Stop proposing after so many results in a row that did not enlarge the front's hypervolume. None: never."""
    rungs: tuple[Annotated[float, Field(ge=0.0)], ...] = (0.0,)
    """Epochs of fine-tuning behind a candidate at each rung of successive halving: `[0, 0.5, 2]` judges all after
    repair, a part after half an epoch, and a part of those after two. Only the last rung's results count."""
    keep: Fraction = 1 / 3
    """Share of the candidates at a rung that go on to the next one: the best by front rank."""
    sampler: Literal["mixed", "tpe", "nsga2", "random"] = "mixed"
    """`mixed`: changes of the widths on the front, and for one proposal in six TPE, which seeks all but widths."""
    warm_starts: bool = True
    """Begin with widths by predicted damage, uniform and global ones, and with those of earlier runs (`warm_start`).
    Without it the sampler proposes from the first trial after the controls on: for comparisons."""
    lookahead: PositiveInt | None = None
    """Proposal n waits for the results up to n - lookahead, whatever the number of workers: the more, the more
    trials can run side by side, the fewer, the sooner the sampler learns. Part of what a seed reproduces. None: twice
    the workers that the search begins with, 4 at least; `run.json` says which, for a repetition on another cluster."""
    smallest: Fraction = 0.1
    """Smallest target, as a share of the budget: targets are spread between the two."""
    min_channels: PositiveInt = 1
    """Channels that stay in every group at least."""
    multiple_of: PositiveInt = 1
    """Widths are multiples of this (never below `min_channels`, and a group of fewer channels stays whole)."""
    calibration_images: Annotated[int, Field(ge=2)] = 1024
    """Training images for batch-norm re-estimation and for methods that look at activations."""
    eval_batch_size: PositiveInt = 512

    @field_validator("rungs")
    @classmethod
    def _rungs_rise(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if not rungs or rungs[0] != 0 or any(b <= a for a, b in pairwise(rungs)):
            raise ValueError("rungs are epochs, from 0 (repair only), each more than the one before: [0, 0.5, 2]")
        return rungs

    def lookahead_for(self, workers: int) -> int:
        """`lookahead`, or what it is where none is asked for and so many `workers` begin."""
        return self.lookahead or max(_LEAST_LOOKAHEAD, 2 * workers)


class FinalistSpec(_Part):
    """Who is fine-tuned at the end."""

    count: Annotated[int, Field(ge=0)] = 16
    """Candidates of the front that are fine-tuned, spread over it."""
    train: FinetuneSpec = FinetuneSpec()
    seeds: PositiveInt = 1
    """Times that each is fine-tuned, by another seed each time: the front then says mean and interval."""
    each_method: bool = True
    """Fine-tune the best of each method within the budget as well, the controls too: methods are compared after
    equal fine-tuning."""


class ResourceSpec(_Part):
    """What the search may use."""

    address: str | None = None
    """Address of a running Ray cluster. None: Ray is started in the process."""
    workers: PositiveInt | None = None
    """Trials side by side. None: as many as the cluster's processors or GPUs carry."""
    scale_up_s: Annotated[float, Field(ge=0.0)] = 0.0
    """Seconds to wait until an autoscaler has brought nodes for so many workers, or for one; then the search goes on
    with what came. 0: the cluster is as large as it is."""
    cpus_per_trial: Annotated[float, Field(gt=0.0)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0.0)] | None = None
    """None: one GPU where the cluster has some, else none. Fractions share a card."""
    train_workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that train one network together (DDP), in a group of Ray Train. 0: the search's own workers train,
    each a network by itself. None: a group of all GPUs where these are at least twice the networks to train."""
    cpus_per_train_worker: Annotated[float, Field(gt=0.0)] = 1.0
    gpus_per_train_worker: Annotated[float, Field(ge=0.0)] | None = None
    """None: one GPU where the cluster has some, else none."""
    store_patience_s: Annotated[float, Field(ge=0.0)] = 300.0
    """Seconds to wait for the filesystem of the run's folder when it is away, before the run ends to be resumed."""


class PageSpec(_Part):
    """The run's page, which Ray Serve shows beside the search."""

    serve: bool | None = None
    """None: where a running cluster was joined. `raprune serve` shows any run, with or without it."""
    host: str = "127.0.0.1"
    """Where Ray Serve listens on the head node, if nobody has started it before; other than loopback, the page has a
    token."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of Ray Serve, if nobody has started it before."""
    linger_s: Annotated[float, Field(ge=0.0)] = 3600.0
    """Seconds that the page stays once the run is at rest and nobody has it open. 0: it goes when the run ends."""


CONTROLS = ("random", "l1")
"""Methods that every search tries: a method that does not beat them is not worth its trouble."""


class LatencySpec(_Part):
    """How latency is measured: on a worker's device, by CUDA events there."""

    batch_size: PositiveInt = 1
    """Images that go through the network together."""
    repeats: PositiveInt = 20
    """Timings of a layer; their median counts."""
    widths: Annotated[int, Field(ge=2)] = 6
    """Widths of each layer that are timed; those between are interpolated."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    threads: PositiveInt = 1
    """Processor threads, where the device is the processor."""


class SearchSpec(_Part):
    """The whole request."""

    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    budget_flops: Fraction | None = None
    """Fraction of the dense network's FLOPs that may remain. 0.3 where nothing at all is asked for: no other budget, no
    accuracy."""
    budget_params: Fraction | None = None
    """Fraction of the dense network's parameters that may remain."""
    budget_latency: str | float | None = None
    """Latency that may remain: a fraction of the dense network's (0.5), or a time a batch ("3ms")."""
    min_accuracy: Fraction | None = None
    """Validation accuracy below which a candidate is of no use: others come first, and it is not recommended."""
    max_drop: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Largest loss of validation accuracy against the dense network: 0.01 is one point."""
    methods: tuple[str, ...] = ("l2", "l1", "random")
    """Methods the search chooses among. `random` and `l1` are tried in any case, as controls."""
    settings: dict[str, Arguments] = Field(default_factory=dict)
    """Method -> its hyper-parameters that are fixed instead of searched over."""
    allocations: tuple[str, ...] = ()
    """How widths are found: names of `raprune methods`. Empty: the search chooses among all."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of module names whose channels all stay."""
    search: SamplerSpec = SamplerSpec()
    dense: DenseTrainSpec = DenseTrainSpec()
    finalists: FinalistSpec = FinalistSpec()
    resources: ResourceSpec = ResourceSpec()
    latency: LatencySpec = LatencySpec()
    page: PageSpec = PageSpec()
    warm_start: tuple[str, ...] = ()
    """Folders of earlier runs on the same network and data: their best widths are proposed first."""
    seed: Annotated[int, Field(ge=0)] = 0
    output: str = ""
    """Folder of the run: a path or the URI of a pyarrow filesystem. Empty: `runs/<model>-<data>-<date>-<time>`."""
    statistics: str = ""
    """Folder of what runs on the same network share: scores, removal orders, sparsity-trained networks. Empty:
    `statistics` beside the run's folder."""

    @field_validator("methods")
    @classmethod
    def _at_least_one_method(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if not methods:
            raise ValueError("name at least one method; `raprune methods` lists them")
        return methods

    @field_validator("budget_latency")
    @classmethod
    def _latency_reads(cls, value: str | float | None) -> str | float | None:
        if value is not None:
            read_latency(value)
        return value

    @model_validator(mode="after")
    def _some_budget(self) -> SearchSpec:
        """30 % of the FLOPs for whoever asks for nothing."""
        costs = (self.budget_flops, self.budget_params, self.budget_latency)
        if all(value is None for value in (*costs, self.min_accuracy, self.max_drop)):
            # The spec is frozen for everybody else.
            object.__setattr__(self, "budget_flops", 0.3)
        return self

    @model_validator(mode="after")
    def _output_named(self) -> SearchSpec:
        if not self.output:
            what = re.sub(r"[^\w.-]+", "-", f"{self.model.name}-{self.data.name}")
            # The spec is frozen for everybody else.
            object.__setattr__(self, "output", f"runs/{what}-{time.strftime('%Y%m%d-%H%M%S')}")
        return self

    @property
    def statistics_folder(self) -> str:
        """Where shared statistics lie."""
        if self.statistics:
            return self.statistics
        place, question, query = self.output.partition("?")
        parent, slash, _ = place.rstrip("/").rpartition("/")
        if parent.endswith((":/", "://")):
            # The run is a whole bucket: there is nothing beside it.
            parent = place.rstrip("/")
        return f"{parent}{slash}statistics{question}{query}"

    @property
    def cost(self) -> str:
        """What accuracy is set against: `flops`, or `latency` where that alone is budgeted."""
        return "latency" if self.budget_latency is not None and self.budget_flops is None else "flops"

    @property
    def budget(self) -> Budget:
        """What may remain. A latency that is given as a time becomes a fraction once the dense network was measured:
        until then it is free."""
        latency = None if self.budget_latency is None else read_latency(self.budget_latency)[0]
        return Budget(flops=self.budget_flops, params=self.budget_params, latency=latency)


def latency_fraction(value: str | float, dense_ms: float) -> float:
    """A latency budget, `read_latency`'s, as a fraction of the dense network's `dense_ms`; at most 1."""
    fraction, time_ms = read_latency(value)
    return min(1.0, time_ms / dense_ms) if time_ms is not None else fraction or 1.0


def read_latency(value: str | float) -> tuple[float | None, float | None]:
    """`(fraction of the dense network, milliseconds)`, one of them None: 0.5 and "50%" are fractions, "3ms" is a time.

    Raises:
        ValueError: if it is neither, or outside of (0, 1] or of (0, inf).
    """
    text = str(value).strip().lower()
    match = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)\s*(%|us|ms|s)?", text)
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    unit = match[2] if match else None
    if unit in ("us", "ms", "s") and number > 0:
        return None, number * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
    fraction = number / 100 if unit == "%" else number
    if 0 < fraction <= 1:
        return fraction, None
    raise ValueError("a latency budget is a fraction of the dense network's, above 0 and at most 1, or a time: 3ms")


def load_spec(path: Path | None = None, overrides: dict[str, Any] | None = None) -> SearchSpec:
    """The spec of a TOML file with `overrides` (dotted field -> value) laid over it.

    Paths in the file are relative to the file, those in `overrides` to the working folder. Both may name environment
    variables: `${NAME}` or `${NAME:-default}`.

    Raises:
        UsageError: if the file is missing or not TOML, or a field is unknown or out of range.
    """
    values = {} if path is None else _read_toml(path)
    for dotted, value in (overrides or {}).items():
        _set(values, dotted, _resolved(value, Path.cwd()) if dotted in PATHS else value)
    try:
        return SearchSpec.model_validate(values)
    except ValidationError as error:
        raise _usage_error(error, path) from None


def dump_spec(spec: SearchSpec) -> str:
    """The spec as TOML that `load_spec` reads back to an equal one; fields without a value are left out."""
    return to_toml(spec.model_dump(mode="json", exclude_none=True))


def to_toml(fields: Mapping[str, Any]) -> str:
    """Fields of a job as TOML: numbers, strings, lists of these, and tables."""
    return "\n".join(_toml_lines(fields)) + "\n"


def _toml_lines(table: Mapping[str, Any], name: str = "") -> list[str]:
    lines = [f"{_toml_key(key)} = {_toml(value)}" for key, value in table.items() if not isinstance(value, dict)]
    if name and lines:
        lines = ["", f"[{name}]", *lines]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _toml_lines(value, f"{name}.{_toml_key(key)}" if name else _toml_key(key))
    return lines


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: Any) -> str:
    """JSON writes numbers, strings and lists as TOML does, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file.", hint="Give the path of a TOML job; see jobs/.") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: a folder, not a TOML job.", hint="Give the path of a TOML job.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not readable as TOML: {error}", hint="See jobs/ for complete examples.") from None
    for dotted in PATHS:
        *tables, key = dotted.split(".")
        part = values.get(tables[0]) if tables else values
        if isinstance(part, dict) and key in part:
            part[key] = _resolved(part[key], path.absolute().parent)
    return values


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    table = values
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UsageError(
                f"{dotted}: {parent} is not a table here (came: {table!r}).",
                hint=f"Valid at the top: {', '.join(SearchSpec.model_fields)}.",
            )
    table[leaf] = value


def _resolved(value: Any, folder: Path) -> Any:
    """Paths of a field resolved; what is none is left for the check of its type."""
    if isinstance(value, list | tuple):
        return [_resolved(one, folder) for one in value]
    return _resolve_path(value, folder) if isinstance(value, str) else value


def _resolve_path(text: str, folder: Path) -> str:
    """`text` with environment variables filled in, and made relative to `folder` unless absolute or a URI."""

    def fill(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if name in os.environ:
            value = os.environ[name]
            return value if "://" in value else str(Path(value).absolute())
        if default is None:
            raise UsageError(
                f"The job names the environment variable {name}, which is not set.",
                hint=f"Set it: export {name}=...",
            )
        return default

    text = re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", fill, text)
    return text if "://" in text or Path(text).is_absolute() else str(folder / text)


def _usage_error(error: ValidationError, path: Path | None) -> UsageError:
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            *parents, _ = problem["loc"]
            lines.append(f"{field}: no such field. Valid here: {', '.join(_fields_at(parents))}.")
            continue
        came = "" if isinstance(problem["input"], dict) else f" (came: {problem['input']!r})"
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{field}: {message}{came}." if field else f"{message}.")
    where = f"{path}: " if path else ""
    return UsageError(where + "\n".join(lines), hint="`raprune search --dry-run` prints the resolved job.")


def _fields_at(location: list[Any]) -> list[str]:
    part: type[BaseModel] = SearchSpec
    for name in location:
        annotation = part.model_fields[name].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        part = annotation
    return list(part.model_fields)
