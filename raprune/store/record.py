"""The typed content of `run.json`: `RunRecord`. Runs of every version are read, so a field that is not there is None.

Nobody else reads `run.json` by name, but for the job in it: `RunRecord.job` has the fields of the job that results,
report and page show, whichever version wrote it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from raprune.spec.job import CutSteps

ACCURACY = "accuracy"
"""Metric of classification: a fraction of the images, so that their number gives its standard error."""


class _Part(BaseModel):
    """A part of `run.json`. Fields of other versions are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    # A JSON edge: what programs and the page read.
    def to_json(self) -> dict[str, Any]:
        """Plain data: the fields that were written, and no others."""
        return self.model_dump(mode="json", exclude_unset=True)


class RecordedModel(_Part):
    """The network that was asked for."""

    name: str | None = None
    weights: str | None = None


class RecordedTraining(_Part):
    """The training of the finalists that was asked for."""

    epochs: float | None = None
    recipe: str | None = None
    """None in runs of versions that had no recipes."""


class RecordedFinalists(_Part):
    """The finalists that were asked for."""

    count: int | None = None
    seeds: int = 1
    steps: CutSteps = (1,)
    train: RecordedTraining = RecordedTraining()


class RecordedSampler(_Part):
    """The search that was asked for."""

    trials: int | None = None
    time_limit_s: float | None = None


class RecordedSource(_Part):
    """The data that was asked for."""

    name: str | None = None
    train: str | None = None


class RecordedLatency(_Part):
    """The conditions of latency and memory that were asked for."""

    batch_size: int = 1


class RecordedJob(_Part):
    """The fields of a job that are shown of it."""

    model: RecordedModel = RecordedModel()
    teacher: RecordedModel = RecordedModel()
    """Its name is empty, or None in older runs, where the dense network teaches."""
    data: RecordedSource = RecordedSource()
    methods: tuple[str, ...] = ()
    # JSON: the hyper-parameters of any method.
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    search: RecordedSampler = RecordedSampler()
    latency: RecordedLatency = RecordedLatency()
    finalists: RecordedFinalists = RecordedFinalists()
    min_accuracy: float | None = None
    max_drop: float | None = None
    seed: int | None = None


class DenseRecord(_Part):
    """The dense network: its cost, and its accuracies once they are measured."""

    val_accuracy: float | None = None
    val_loss: float | None = None
    val_images: int | None = None
    flops: int | None = None
    macs: int | None = None
    params: int | None = None
    memory_bytes: int | None = None
    """Peak of the activations of one image."""
    train_accuracy: float | None = None
    train_images: int | None = None


class DataRecord(_Part):
    """The data set: its fingerprint, its sizes in images, its normalisation."""

    name: str | None = None
    fingerprint: str | None = None
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    num_classes: int | None = None
    chance: float | None = None
    """Accuracy of the best blind guess."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    normalisation: str | None = None
    """Origin of mean and standard deviation, in words."""


class ProofRecord(_Part):
    """Relative errors of the proof that the groups of channels are coupled as traced."""

    permutation_error: float
    cut_error: float


class GraphRecord(_Part):
    """The groups of channels."""

    groups: dict[str, int] = Field(default_factory=dict)
    """Group name -> channels in the dense network, in the network's order."""
    frozen: tuple[tuple[str, int, str], ...] = ()
    """Module, channels and reason of what stays whole."""
    notes: tuple[str, ...] = ()
    proof: ProofRecord | None = None


class LatencyRecord(_Part):
    """Conditions of the latency budget, and the dense network's time under them."""

    device: str | None = None
    runtime: str = "eager"
    batch_size: int | None = None
    precision: str | None = None
    dense_ms: float


class PaceRecord(_Part):
    """Measured speed of the dense network on the workers' device, in seconds an image."""

    forward_s: float
    step_s: float


class RunRecord(_Part):
    """A run as `run.json` describes it."""

    # JSON: a job of any version.
    spec: dict[str, Any] = Field(default_factory=dict)
    """The whole job as its version wrote it, for whoever shows or repeats all of it."""
    state: str | None = None
    """`searching` or `finished`."""
    created_at: float | None = None
    """Seconds since the epoch, as `started_at` and `finished_at`."""
    started_at: float | None = None
    finished_at: float | None = None
    stopped: str | None = None
    """Reason why the search ended early."""
    versions: dict[str, str | None] = Field(default_factory=dict)
    machine: str | None = None
    metric: str = ACCURACY
    """Name of the task's metric: what every field that is named after an accuracy holds, at most 1."""
    data: DataRecord = DataRecord()
    architecture: str | None = None
    weights_hash: str | None = None
    dense: DenseRecord | None = None
    """None in a run that knows nothing of its dense network yet."""
    graph: GraphRecord = GraphRecord()
    latency: LatencyRecord | None = None
    pace: PaceRecord | None = None
    """None in runs of versions that did not measure it."""
    warnings: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """A sentence for each node that was given no further workers, because it lost too many."""
    finetunings: int | None = None
    """Number of fine-tunings in all, once the finalists are chosen."""
    # JSON that `raprune.results.stages` types.
    stages: list[dict[str, Any]] | None = None
    """Stages of a finished run, as `raprune.results.stages.RunStages` writes them."""

    @cached_property
    def job(self) -> RecordedJob:
        """The fields of the job that are shown."""
        return RecordedJob.model_validate(self.spec)

    @property
    def finished(self) -> bool:
        """True if the run has ended with its report."""
        return self.state == "finished"

    @property
    def dense_accuracy(self) -> float | None:
        """Validation accuracy of the dense network; None until it is measured."""
        return None if self.dense is None else self.dense.val_accuracy

    @property
    def val_images(self) -> int | None:
        """Images of the validation split; None where nobody wrote their number."""
        return None if self.dense is None else self.dense.val_images
