"""The request, typed and checked once: `SearchSpec` and its parts.

Read from a TOML file, from flags, or both (a flag overrides its field). This module knows no torch: names of models,
data sets and methods are looked up when the workload is built, before the first trial.
"""

from __future__ import annotations

import re
import time
from importlib import resources
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from raprune.plugins import GIVEN, is_user_function
from raprune.spec.budget import Budget, Fraction, with_budget_table
from raprune.spec.fields import VALID, Part

PositiveInt = Annotated[int, Field(gt=0)]
Multiple = PositiveInt | Literal["auto"]
Epochs = Annotated[float, Field(ge=0.0)]
LearningRate = Annotated[float, Field(gt=0.0)]
UpTo1 = Annotated[float, Field(ge=0.0, le=1.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Below1 = Annotated[float, Field(ge=0.0, lt=1.0)]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["one-cycle", "cosine"]
Policy = Literal["none", "rand", "trivial"]
RecipeName = Literal["short", "short-transformer", "cifar", "cnn", "mobile", "transformer"]
RUNGS = "a list of epochs that begins with 0 (repair only) and rises, such as [0, 0.5, 2]"
Rungs = Annotated[tuple[Epochs, ...], Field(json_schema_extra={VALID: RUNGS})]
STEPS = "a whole number of at least 1, or several in a rising list, such as [1, 3]"
CutSteps = Annotated[
    tuple[PositiveInt, ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, int) else given),
    Field(json_schema_extra={VALID: STEPS}),
]
Arguments = Annotated[
    dict[str, bool | int | float | str], Field(json_schema_extra={VALID: "a table of numbers, strings, true or false"})
]
Settings = Annotated[
    dict[str, Arguments], Field(json_schema_extra={VALID: "a table per method, of numbers, strings, true or false"})
]

BUNDLED_NETWORK, BUNDLED_DATA = "mnist-resnet", "mnist-sample"
"""Job of a user who names nothing: a trained network and its images, both in the package."""

PATHS = ("model.weights", "teacher.weights", "data.train", "data.validation", "data.test", "warm_start")
"""Fields that hold a path or URI to read, or several."""

FLAGS = {
    "model.name": "--model",
    "model.weights": "--weights",
    "teacher.name": "--teacher",
    "teacher.weights": "--teacher-weights",
    "task": "--task",
    "data.name": "--data",
    "data.train": "--train",
    "data.validation": "--validation",
    "data.test": "--test",
    "data.download": "--download",
    "budget.flops": "--budget-flops",
    "budget.params": "--budget-params",
    "budget.latency": "--budget-latency",
    "budget.memory": "--budget-memory",
    "min_accuracy": "--min-accuracy",
    "max_drop": "--max-drop",
    "methods": "--methods",
    "exclude": "--exclude",
    "search.trials": "--trials",
    "search.time_limit_s": "--time-limit",
    "search.gpu_hours": "--gpu-hours",
    "search.patience": "--patience",
    "search.rungs": "--rungs",
    "search.sampler": "--sampler",
    "search.min_channels": "--min-channels",
    "search.multiple_of": "--multiple-of",
    "search.depth": "--depth",
    "finalists.count": "--finalists",
    "finalists.seeds": "--seeds",
    "finalists.train.epochs": "--epochs",
    "finalists.train.recipe": "--recipe",
    "resources.address": "--address",
    "resources.workers": "--workers",
    "page.serve": "--page",
    "warm_start": "--warm-start",
    "seed": "--seed",
    "store_front": "--store-front",
    "output": "--output",
}
"""Field -> the flag of the command line that sets it; all others are set by `--set FIELD=VALUE`."""

_LEAST_LOOKAHEAD = 4
"""Default lookahead, with which one worker and two workers find the same."""


class _Subject(Part):
    """A table of the job for which an object of a Python session may stand instead of a name.

    The object is no field: it travels with the job from process to process, and is in no file.
    """

    _given: object | None = PrivateAttr(default=None)

    @property
    def given(self) -> object | None:
        """The object that stands for the name; None if the name says it all."""
        return self._given

    def holding(self, given: object | None) -> Self:
        """The table with this object."""
        copied = self.model_copy()
        copied._given = given
        return copied


class ModelSpec(_Subject):
    """The dense network."""

    name: str = BUNDLED_NETWORK
    """Network: a name of `raprune models`, `timm:NAME`, or `package.module:function` of your own."""
    weights: str | None = None
    """Trained weights: a `.safetensors` file, or a state dict for `torch.load(weights_only=True)`.
    Default: bundled for `mnist-resnet` on `mnist-sample`; else trained first, by `dense`."""
    arguments: Arguments = {}
    """Keyword arguments of the function that builds the network."""


class TeacherSpec(Part):
    """The network that teaches the finalists; without a name it is the dense network."""

    name: str = ""
    """Teacher: a name as for `model.name`. Empty: the dense network."""
    weights: str | None = None
    """Trained weights of the teacher, as for `model.weights`. Default: those that your own function gives it; every
    other teacher needs them."""
    arguments: Arguments = {}
    """Keyword arguments of the function that builds the teacher."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that the teacher's weights need, of pixels in [0, 1]. Default: those of public weights in
    torchvision and timm, else as the data."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel that the teacher's weights need. Default: as for `mean`."""

    @model_validator(mode="after")
    def _is_trained(self) -> TeacherSpec:
        if not self.name and (self.weights or self.arguments):
            came = f"weights {self.weights}" if self.weights else f"arguments {self.arguments}"
            raise ValueError(
                f"teacher.{came} without a network; valid is a teacher with a name (--teacher resnet152), or none"
            )
        if self.name and self.weights is None and not is_user_function(self.name):
            raise ValueError(
                f"teacher.name {self.name!r} (--teacher) has no weights, and a random network teaches nothing; valid "
                "are a file of trained weights (--teacher-weights FILE) and a function of your own that returns a "
                "trained network (package.module:function)"
            )
        return self


class DataSpec(_Subject):
    """The data set, and how its images reach the network."""

    name: str = BUNDLED_DATA
    """Data set: a name, or `package.module:function` of your own. Names are `mnist-sample` and `digits` (bundled),
    `parquet`, `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `imagefolder` and `imagenet`."""
    train: str | None = None
    """Training split: a Parquet path or URI, or the folder of an image folder or torchvision data set. An image folder
    holds a folder per class, or `train/` and, if there, `val/` and `test/`. Default: none; bundled data and your
    own function need none."""
    validation: str | None = None
    """Validation split: a Parquet path or URI, or a folder of images. An image folder without one uses `val/` beside
    `train/`, unless that is the test split. Default: `validation_fraction` of the training split."""
    test: str | None = None
    """Test split: a Parquet path or URI, or a folder of images. It is evaluated once, for the report. An image folder
    without one uses `test/` beside `train/`. Default: that of the data set, if it has one."""
    calibration: str | None = None
    """Images for calibration, which need no labels: a Parquet path or URI, or a folder. Methods and repairs look at
    these instead of training images; a method that needs labels is refused. Default: training images."""
    image_column: str = "image"
    """Column of a Parquet file that holds the images."""
    label_column: str = "label"
    """Column of a Parquet file that holds the labels, masks or boxes. Where there is none of this name, `mask` holds
    masks and `objects` holds boxes."""
    image_size: PositiveInt | None = None
    """Pixels to which the shorter side of each image is resized; the image is then cropped to a square. Needed where
    images differ in size. Default: images keep their size."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Fraction of the training split that steers the search and is never trained on. Unused where the data has a
    validation split of its own."""
    max_images: PositiveInt | None = None
    """Maximum number of images of each split, drawn by seed. Default: all images."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel for the normalisation, of pixels in [0, 1]. Weights need the figures that they were trained
    with: `raprune check` tries the common ones. Without weights they are measured on the training split.
    Default: those of public weights in torchvision and timm, else of the training split."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel for the normalisation, of pixels in [0, 1]. Default: as for `mean`."""
    augment: Literal["auto", "none", "shift", "shift-flip", "crop-flip"] = "auto"
    """Training augmentation. `shift` pads and crops by an eighth, `crop` cuts out a random part and scales it back,
    `-flip` mirrors half of the images. `auto` is what suits the data set, `shift` where that is not known."""
    stream: bool = False
    """Read the training split while training instead of holding it in memory. Parquet and image folders can be
    streamed; at most 20,000 of their images become the validation split."""
    resident_images: PositiveInt = 20_000
    """Number of images of a streamed training split that are held in memory. Drawn by seed; calibration uses these."""
    download: bool = False
    """Allow torchvision to download the data set. Nothing is ever downloaded otherwise."""
    arguments: Arguments = {}
    """Keyword arguments of your own function."""

    @model_validator(mode="after")
    def _bundled_data_needs_no_files(self) -> DataSpec:
        if self.name in ("digits", BUNDLED_DATA) and (self.train or self.validation or self.test):
            raise ValueError(f"the bundled {self.name} reads no files; name the kind of data: --data parquet")
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


class _Training(Part):
    """Fields that every training has. Those that are None here are decided later, and have a value in `TrainSpec`.

    A job trains twice, each time by a subclass with defaults of its own. A field of such a subclass takes a plain
    `TrainSpec` too: the fields that were given to it count, all others keep the defaults of the subclass.
    """

    batch_size: PositiveInt = 128
    """Images in each step of the optimiser, over all workers."""
    optimizer: Optimizer | None = None
    """Optimiser. `sgd` has Nesterov momentum; `adamw` (Loshchilov and Hutter, 2019) trains networks with layer norm or
    attention. Default: `sgd`."""
    momentum: Below1 | None = None
    """Nesterov momentum of SGD (0 is plain SGD); beta 1 of AdamW. Beta 2 of AdamW is 0.999. Default: 0.9."""
    weight_decay: NotNegative | None = None
    """Weight decay: an L2 penalty with `sgd`, decoupled from the gradients with `adamw`. Norms, biases and other
    parameters of one dimension have none. Default: 0.0005."""
    layer_decay: Fraction | None = None
    """Factor of the learning rate from each twelfth of the layers to the one before it. With 0.75 the first layers
    learn slowest (Bao et al., 2022); with 1 all layers learn at one rate. Default: 1."""
    schedule: Schedule | None = None
    """Course of the learning rate. `one-cycle` rises in a line during the warm-up, then falls like half a cosine;
    `cosine` falls like half a cosine over the whole training, and the warm-up only damps its beginning.
    Default: `one-cycle`."""
    warm_up: Below1 | None = None
    """Fraction of the steps in which the learning rate rises. Default: 0.15."""
    final_lr: Below1 | None = None
    """Learning rate at the end, as a fraction of the peak. Default: 0."""
    clip: NotNegative | None = None
    """Largest norm of the gradients of all parameters together; larger ones are scaled down to it. 0 clips nothing.
    Default: 0."""
    label_smoothing: Below1 | None = None
    """Weight of the uniform distribution over all classes in the labels. Default: 0."""
    ema: Below1 | None = None
    """Decay per step of the moving average of the weights; 0 uses no average. Training ends with the average.
    Default: 0."""
    policy: Policy | None = None
    """Policy that changes each training image. `rand` is RandAugment, with two operations of one strength, `trivial` is
    TrivialAugment, with one of a random strength. Images with transforms of their own are left as they are; arrays of
    floats take none.
    Default: `none`."""
    policy_magnitude: Annotated[int, Field(ge=0, le=30)] | None = None
    """Strength of RandAugment's operations. Default: 9."""
    crop_scale: Fraction | None = None
    """Smallest fraction of an image's area that the crop of `crop-flip` keeps. Default: 0.35."""
    erase: UpTo1 | None = None
    """Fraction of the training images of which a random part is erased. Default: 0."""
    mixup: NotNegative | None = None
    """Parameter of the beta distribution by which two images are blended; 0 blends none. Default: 0."""
    cutmix: NotNegative | None = None
    """Parameter of the beta distribution by which a part of an image is another's; 0 cuts nothing. With `mixup` too, a
    coin decides for each batch. The teacher sees the same mixed images. Default: 0."""
    temperature: Annotated[float, Field(gt=0.0)] = 4.0
    """Temperature that softens the teacher's logits (Hinton et al., 2015)."""
    distillation: UpTo1 = 0.9
    """Weight of the teacher's logits against the labels; 0 trains on labels alone. Unused without a teacher."""
    teacher_loss: Literal["logits", "dist"] = "logits"
    """Comparison with the teacher's logits. `logits` is the divergence of the softened outputs; `dist` compares their
    correlations for each image and for each class, which suits a much stronger teacher (Huang et al., 2022)."""
    teacher_once: bool | None = None
    """Compute the teacher's logits once for all epochs. Only where training images are in memory and none is changed.
    Default: true where that is so and the training has two epochs or more, else false."""
    features: NotNegative | Literal["auto"] | None = None
    """Weight of the teacher's feature maps in the loss; 0 leaves them out. Only the dense network has such maps. `auto`
    is the weight with which their gradient is as long as that of the rest of the loss when the training begins.
    Default: `auto` for a finalist of the dense network whose logits are not computed once, else 0."""
    accumulate: PositiveInt = 1
    """Number of parts in which a batch passes the network: more parts need less memory."""
    sync_batch_norm: bool | None = None
    """Compute batch-norm statistics over the batches of all workers instead of each worker's own.
    Default: true where a worker has fewer than 32 images of a batch, else false."""
    cuda_graph: bool = True
    """Replay full batches as a CUDA graph on a GPU. A step is then one launch instead of hundreds, with the same
    results. Groups of processes, float16, and methods whose regulariser changes from step to step train without."""
    channels_last: bool = True
    """Store images and weights channels-last where the network allows it: faster convolutions."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the forward and backward pass. Weights and the optimiser stay in float32. `auto` is bfloat16 on GPUs
    that have it, float16 on older ones, and float32 on CPUs. On CPUs that have it, bfloat16 trains wide networks up to
    twice as fast. The loss is scaled for float16."""

    @model_validator(mode="before")
    @classmethod
    def _only_what_was_given(cls, value: Any) -> Any:
        if isinstance(value, _Training) and not isinstance(value, cls):
            return value.model_dump(exclude_unset=True)
        return value


class TrainSpec(_Training):
    """One run of the training loop: every field has a value."""

    epochs: Epochs = 1.0
    """Passes over the training images; a fraction trains on a part of them."""
    lr: LearningRate = 0.1
    """Peak learning rate."""
    optimizer: Optimizer = "sgd"
    momentum: Below1 = 0.9
    weight_decay: NotNegative = 5e-4
    layer_decay: Fraction = 1.0
    schedule: Schedule = "one-cycle"
    warm_up: Below1 = 0.15
    final_lr: Below1 = 0.0
    clip: NotNegative = 0.0
    label_smoothing: Below1 = 0.0
    ema: Below1 = 0.0
    teacher_once: bool = False
    features: NotNegative | Literal["auto"] = 0.0
    policy: Policy = "none"
    policy_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    crop_scale: Fraction = 0.35
    erase: UpTo1 = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0

    def identity(self) -> dict[str, Any]:
        """Return the fields by which the results of trainings differ, as JSON, for checkpoints and keys.

        A field that earlier versions did not have is left out while it has its default, which trains as they did, so
        that their checkpoints and statistics are found.
        """
        # A graph changes nothing but the speed.
        fields = self.model_dump(mode="json", exclude={"cuda_graph"})
        defaults = TrainSpec.model_fields
        return {name: value for name, value in fields.items() if name not in _ADDED or value != defaults[name].default}

    def by_sgd(self) -> Self:
        """Return the training with SGD, for a method that names the learning rate of its paper.

        With AdamW, the weight decay and the rates by layer would be those of another optimiser.
        """
        if self.optimizer == "sgd":
            return self
        defaults = TrainSpec.model_fields
        changes = {name: defaults[name].default for name in ("optimizer", "momentum", "weight_decay", "layer_decay")}
        return self.model_copy(update=changes)


_ADDED = frozenset(
    {"optimizer", "layer_decay", "schedule", "final_lr", "clip"}
    | {"teacher_loss", "teacher_once", "policy", "policy_magnitude", "crop_scale", "erase", "mixup", "cutmix"}
)
"""Fields of a training that the first version did not have."""


class _OpenTraining(_Training):
    """A training of the job, whose open fields are decided before it begins."""

    default_lr: ClassVar[float] = 0.1
    """Learning rate where neither the job nor a recipe states one."""

    recipe: RecipeName | None = None
    """Recipe of the training. Its fields hold where they are not given here; docs/training.md has the table.
    Default: by network, images and length of the training."""

    def decided(self, *, epochs: float | None = None, lr: float | None = None) -> TrainSpec:
        """Return the training with these `epochs` and `lr`, which override the fields of the same name.

        A field that is still open (`raprune.spec.automatic` decides it) has the default of `TrainSpec`.
        """
        given = {name: value for name, value in (("epochs", epochs), ("lr", lr)) if value is not None}
        fields = {"lr": self.default_lr} | self.model_dump(exclude_none=True, exclude={"recipe"}) | given
        return TrainSpec.model_validate(fields)


class DenseTrainSpec(_OpenTraining):
    """Training of the dense network when no weights are given."""

    epochs: Epochs = 40.0
    """Passes over the training images; a fraction trains on a part of them."""
    default_lr: ClassVar[float] = 0.2

    lr: LearningRate | None = None
    """Peak learning rate. Default: 0.2, unless the recipe states one."""
    distillation: UpTo1 = 0.0
    """Weight of the teacher's logits against the labels. Unused: the dense network has no teacher."""


class FinetuneSpec(_OpenTraining):
    """Fine-tuning of a finalist, distilled from the dense network."""

    epochs: Epochs | None = None
    """Passes over the training images; a fraction trains on a part of them. The less is cut off, the fewer.
    Default: about 3,000 images at most, but 0.25 to 20 passes."""
    lr: LearningRate | None = None
    """Peak learning rate. Default: that of the recipe, else 0.01; 0.02 from 80 steps and 0.05 from 5,000 steps
    on."""


class SamplerSpec(Part):
    """The search: how many candidates are tried, and how they are proposed."""

    trials: PositiveInt = 40
    """Number of candidates that are tried before fine-tuning."""
    time_limit_s: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds after which no candidate is proposed any more. Running trials, fine-tuning and the report still end.
    Default: no limit."""
    gpu_hours: Annotated[float, Field(gt=0.0)] | None = None
    """GPU-hours of trials after which no candidate is proposed any more. CPU-hours where there is no GPU.
    Default: no limit."""
    patience: PositiveInt | None = None
    """Results in a row that may leave the front's hypervolume as it is before proposing stops.
    Default: no limit."""
    rungs: Rungs = (0.0,)
    """Epochs of fine-tuning that a candidate has had at each rung of successive halving. `[0, 0.5, 2]` judges all
    candidates after repair, a part of them after half an epoch, and a part of those after two. Only the results of the
    last rung count."""
    keep: Fraction = 1 / 3
    """Fraction of the candidates at a rung that reach the next one: the best by front rank."""
    sampler: Literal["mixed", "tpe", "gp", "nsga2", "random"] = "mixed"
    """Sampler that proposes the candidates. `mixed` mutates the widths of the front, and asks TPE, which chooses
    everything but widths, for one proposal in six. `tpe`, `gp` (a Gaussian process over widths) and `nsga2` are
    Optuna's."""
    warm_starts: bool = True
    """Begin with widths by predicted damage, uniform and global widths, and those of `warm_start`. Without them the
    sampler proposes every candidate after the baselines: for comparisons of samplers."""
    lookahead: PositiveInt | None = None
    """Number of candidates that may be proposed before the result of the first of them is known. With more, more
    trials run side by side, and a worker is given several short candidates at once: as many as two seconds take, up to
    `lookahead` over twice the workers. With fewer, the sampler learns sooner. A seed reproduces a search only with the
    same lookahead; `run.json` records it. Default: twice the workers that the search begins with, and at least 4."""
    smallest: Fraction = 0.1
    """Smallest target, as a fraction of the budget. Targets are spread between the two."""
    min_channels: PositiveInt = 1
    """Minimum number of channels that stay in every group."""
    multiple_of: Multiple | None = None
    """Number that all widths are a multiple of. A group with fewer channels stays whole; CPUs and GPUs are fast at
    multiples of 8. Where these miss the budget, GPUs get any widths, too. For ONNX Runtime groups of 16 channels are
    enough. `auto`, for a budget of latency, is the step at which the latency of this network falls on its device and
    runtime, which is measured. Without a value it is `auto` for a budget of latency in ONNX Runtime, 8 on GPUs, and on
    CPUs where every group has 32 channels or more. Default: `auto`, 8 or 1, by budget, device and widths."""
    depth: bool = False
    """Let whole residual blocks go, beside channels: `nn.Identity` takes their place. Most useful under a budget of
    latency. The allocation `least_damage` decides on blocks and widths together, and mutations take blocks out and put
    them back. Methods that train while they cut keep all blocks."""
    calibration_images: Annotated[int, Field(ge=2)] | None = None
    """Number of training images for batch-norm re-estimation and for methods that use activations.
    Default: a sixteenth of them, but 256 to 1,024."""
    eval_batch_size: PositiveInt | None = None
    """Images in each batch of evaluation and calibration. Default: 512; on GPUs up to 2,500 small images are evaluated
    at once."""
    eval_precision: Literal["float32", "tf32", "bfloat16"] = "tf32"
    """Precision in which validation images are evaluated. `tf32` rounds the inputs of products on GPUs to 10 bits and
    is float32 on CPUs. `bfloat16` is fastest on GPUs and moves accuracies by up to a quarter of a point. The test split
    is always evaluated in float32."""

    @field_validator("rungs")
    @classmethod
    def _rungs_rise(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if not rungs or rungs[0] != 0 or any(b <= a for a, b in pairwise(rungs)):
            raise ValueError(f"must be {RUNGS}")
        return rungs

    @property
    def calibration(self) -> int:
        """`calibration_images`; 1,024 while it is open."""
        return self.calibration_images or 1024

    @property
    def batch_size(self) -> int:
        """`eval_batch_size`; 512 while it is open."""
        return self.eval_batch_size or 512

    @property
    def step(self) -> int:
        """`multiple_of`; 1 while it is open or not measured."""
        return self.multiple_of if isinstance(self.multiple_of, int) else 1

    def lookahead_for(self, workers: int) -> int:
        """Return `lookahead`, or its default for a search that begins with `workers` workers."""
        return self.lookahead or max(_LEAST_LOOKAHEAD, 2 * workers)


class FinalistSpec(Part):
    """The candidates that are fine-tuned at the end."""

    count: Annotated[int, Field(ge=0)] = 4
    """Number of candidates of the front that are fine-tuned, spread over the front."""
    train: FinetuneSpec = FinetuneSpec()
    seeds: PositiveInt = 1
    """Number of times that each is fine-tuned, with another seed each time. With more than one, the front gives mean
    and 95 % interval."""
    steps: CutSteps = (1,)
    """Number of cuts on the way to each finalist, each followed by its part of the epochs. Each cut takes the same
    fraction of what is left. Of a list, each finalist is made in every way, by equal epochs, and the validation split
    decides. Methods that train while they cut have steps of their own."""
    each_method: bool = True
    """Fine-tune the best candidate of each method within the budget as well. Methods and baselines are then compared
    after equal fine-tuning."""

    @field_validator("steps")
    @classmethod
    def _steps_rise(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not steps or any(b <= a for a, b in pairwise(steps)):
            raise ValueError(f"must be {STEPS}")
        return steps


class ResourceSpec(Part):
    """The Ray cluster, and what each worker gets of it."""

    address: str | None = None
    """Address of a running Ray cluster. Default: Ray is started on this machine and ends with the run."""
    workers: PositiveInt | None = None
    """Number of trials side by side. Default: as many as the CPUs or GPUs of the cluster carry."""
    scale_up_s: Annotated[float, Field(ge=0.0)] = 0.0
    """Seconds to wait until an autoscaler has added nodes for all workers. The search then begins with the nodes that
    came. 0: it takes the cluster as it is."""
    cpus_per_trial: Annotated[float, Field(gt=0.0)] = 1.0
    """Number of CPUs of a trial."""
    gpus_per_trial: Annotated[float, Field(ge=0.0)] | None = None
    """Number of GPUs of a trial; a fraction shares a GPU. Default: one where the cluster has GPUs, else none."""
    train_workers: Annotated[int, Field(ge=0)] | None = None
    """Number of processes that train one network together (DDP), in a group of Ray Train. 0: the workers of the search
    train, each a network by itself. Left open, no group is so large that a GPU has fewer than 64 images of a batch (32
    of 224 pixels). Default: groups of GPUs, where these are at least twice the networks; else 0."""
    cpus_per_train_worker: Annotated[float, Field(gt=0.0)] = 1.0
    """Number of CPUs of each process of such a group."""
    gpus_per_train_worker: Annotated[float, Field(ge=0.0)] | None = None
    """Number of GPUs of each process of such a group. Default: one where the cluster has GPUs, else none."""
    trial_timeout_s: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds without progress after which a trial is ended and recorded as failed. The scores of each group and each
    epoch of a training are progress; a trial that trains has 20 epochs of the dense network more.
    Default: 20 times the median of 8 or more trials, at least 120; 4 hours until then."""
    checkpoint_every_s: Annotated[float, Field(ge=0.0)] = 60.0
    """Minimum number of seconds between two checkpoints of a training; the last epoch is always stored. A lost worker
    repeats what it trained since its last checkpoint. 0: after every epoch."""
    store_patience_s: Annotated[float, Field(ge=0.0)] = 300.0
    """Seconds to wait for an unreachable filesystem of the run's folder. The run then ends and can be resumed; where
    one node alone cannot reach it, only the trials of that node are tried elsewhere."""


class PageSpec(Part):
    """The live page of the run, served by Ray Serve beside the search."""

    serve: bool | None = None
    """Serve the page beside the search. `raprune serve` shows any run without it.
    Default: true on a running cluster, else false."""
    host: str = "127.0.0.1"
    """Address at which Ray Serve listens on the head node, unless it runs already. Other than loopback, the page asks
    for a token."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of Ray Serve, unless it runs already."""
    linger_s: Annotated[float, Field(ge=0.0)] = 3600.0
    """Seconds that the page stays after the run has ended and nobody has it open. 0: it ends with the run."""


BASELINES = ("random", "l1")
"""Methods that every search tries: a method that does not beat them is not worth its trouble."""


class LatencySpec(Part):
    """The measurement of latency, on the device of a worker."""

    batch_size: PositiveInt = 1
    """Images in a batch."""
    repeats: PositiveInt = 20
    """Number of timings of each layer; their median counts."""
    widths: Annotated[int, Field(ge=2)] = 6
    """Number of widths at which each layer is timed. Those between are interpolated."""
    runtime: Literal["eager", "compile", "onnxruntime", "tensorrt"] = "eager"
    """Runtime in which networks are timed. `eager` is PyTorch on the worker's device, and `compile` PyTorch under
    `torch.compile` there: each network that is timed takes seconds to minutes to compile. `onnxruntime` is ONNX Runtime
    on the worker's CPU, in float32; it needs the extra `raprune[export]` on every node. `tensorrt` is TensorRT on the
    worker's GPU through Torch-TensorRT; it has not run on a GPU yet."""
    target: Annotated[str, Field(pattern=r"^https?://[^/]+$", json_schema_extra={VALID: "http://HOST:PORT"})] | None = (
        None
    )
    """Address of a timing worker, which times networks for `onnxruntime` on another device. It is started there by
    `raprune latency --serve`. Default: the worker of the search times them."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the forward pass. `auto` is bfloat16 on GPUs that have it."""
    mode: Literal["graph", "eager"] | None = None
    """How networks are run: by CUDA graphs or call by call. Default: `graph` on GPUs, `eager` on CPUs.

    A replayed graph runs without waiting for Python, as a deployed network does; eager calls of small layers take
    longer than their kernels."""
    threads: PositiveInt = 1
    """Number of CPU threads, where the device is the CPU."""
    report_batch: PositiveInt | None = None
    """Images in the large batch for which the report times whole networks. All CPUs of a node, or one GPU, run it.
    Default: as many as fill the device, at most 64 on a CPU and 256 on a GPU."""


class Limits(Part):
    """The limits that a network must keep: the cost that may remain, and the accuracy that it must have."""

    budget: Budget = Budget()
    min_accuracy: Fraction | None = None
    """Validation accuracy, or value of the task's metric, that a candidate must keep. Candidates below it are not
    recommended and come last for fine-tuning. Default: no limit."""
    max_drop: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Largest loss of validation accuracy or metric against the dense network: 0.01 is one point. Default: no limit."""

    @model_validator(mode="before")
    @classmethod
    def _reads_earlier_fields(cls, values: Any) -> Any:
        return with_budget_table(values) if isinstance(values, dict) else values


class SearchSpec(Limits):
    """The whole job."""

    task: Annotated[str, Field(json_schema_extra={VALID: "a name, or `package.module:Class`"})] = "classification"
    """Task, which sets loss and metric (docs/tasks.md)."""
    model: ModelSpec = ModelSpec()
    teacher: TeacherSpec = TeacherSpec()
    data: DataSpec = DataSpec()
    methods: tuple[str, ...] = ()
    """Methods to choose among: names of `raprune methods`, or `package.module:Class` of your own. `random` and `l1` are
    always tried, as baselines. Empty: `reconstruction`, `taylor`, `activation`, `fpgm` and `l2`, which need no training
    of their own."""
    settings: Settings = {}
    """Hyper-parameters of methods that are fixed instead of searched over, one table per method."""
    allocations: tuple[str, ...] = ()
    """Allocations that the search chooses among: names of `raprune methods`. An allocation divides the budget over the
    layers. Empty: all of them."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of module names whose channels all stay. A block with such a module in it stays, too."""
    search: SamplerSpec = SamplerSpec()
    dense: DenseTrainSpec = DenseTrainSpec()
    finalists: FinalistSpec = FinalistSpec()
    resources: ResourceSpec = ResourceSpec()
    latency: LatencySpec = LatencySpec()
    page: PageSpec = PageSpec()
    warm_start: tuple[str, ...] = ()
    """Folders of earlier runs on the same network and data, whose best widths are proposed first."""
    track: Annotated[
        tuple[Literal["mlflow", "tensorboard", "wandb"], ...],
        Field(json_schema_extra={VALID: "a list of `mlflow`, `tensorboard` and `wandb`"}),
    ] = ()
    """Trackers that show the run: one row for each trial, and one run for each finalist. Their own environment
    variables say where they write; TensorBoard's files are in `tensorboard/` of the run's folder."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything random. Two searches with the same seed give the same result."""
    store_front: bool = True
    """Store the weights of every network of the front when the search ends. Without them `raprune export` makes a
    network that was not trained again, from the data."""
    output: str = ""
    """Folder of the run: a path, or the URI of a pyarrow filesystem. Empty: `runs/<model>-<data>-<date>-<time>`."""
    statistics: str = ""
    """Folder of the scores and sparse-trained networks that runs on one network share. Empty: `statistics` beside the
    folder of the run."""

    @model_validator(mode="after")
    def _some_budget(self) -> SearchSpec:
        """30 % of the FLOPs for whoever asks for nothing."""
        if self.budget.is_free and self.min_accuracy is None and self.max_drop is None:
            # The spec is frozen for everybody else.
            object.__setattr__(self, "budget", Budget(flops=0.3))
        return self

    @model_validator(mode="after")
    def _output_named(self) -> SearchSpec:
        if not self.output:
            what = re.sub(r"[^\w.-]+", "-", f"{self.model.name}-{self.data.name}".replace(GIVEN, ""))
            # The spec is frozen for everybody else.
            object.__setattr__(self, "output", f"runs/{what}-{time.strftime('%Y%m%d-%H%M%S')}")
        return self

    @property
    def weights(self) -> str | None:
        """File of the trained weights: the one that the job names, else the bundled one; None: trained first."""
        bundled = (self.model.name, self.data.name) == (BUNDLED_NETWORK, BUNDLED_DATA) and not self.model.arguments
        if self.model.weights is None and bundled:
            return str(resources.files("raprune.models") / f"{BUNDLED_NETWORK}.safetensors")
        return self.model.weights

    @property
    def statistics_folder(self) -> str:
        """Folder of the shared statistics."""
        if self.statistics:
            return self.statistics
        place, question, query = self.output.partition("?")
        parent, slash, _ = place.rstrip("/").rpartition("/")
        if parent.endswith((":/", "://")):
            # The run is a whole bucket, and has no folder beside it.
            parent = place.rstrip("/")
        return f"{parent}{slash}statistics{question}{query}"
