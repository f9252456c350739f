"""The files of an export: which are wanted, how they are written to a local folder, and brought to their place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from raprune.data.targets import BOXES
from raprune.errors import ModelError, StoreError, UsageError
from raprune.models.programs import FILES, ONNX, Description, check_installed
from raprune.pruning.artifact import read_recipe
from raprune.pruning.hugging_face import CARD, CONFIG, HUB_FILES, CardFigures, card, config_of
from raprune.pruning.proving import CALIBRATION, write_programs
from raprune.pruning.quantising import INT8_FILE, PRECISIONS
from raprune.pruning.workload import Workload
from raprune.records import Trial
from raprune.results.exports import EXPORT_FILE, ExportProof
from raprune.store.folder import Store
from raprune.store.networks import HUB_WEIGHTS, RECIPE, WEIGHTS
from raprune.training.tasks.task import LOGITS

RECIPE_FORMAT, HUB = "recipe", "huggingface"
FORMATS = (RECIPE_FORMAT, *FILES, HUB)
"""Names of the formats that a network is exported to."""


@dataclass(frozen=True, kw_only=True)
class WantedFiles:
    """A checked request for an export."""

    has_recipe: bool
    programs: tuple[str, ...]
    """Formats of programs."""
    quantize: str | None
    has_hub: bool

    @property
    def needs_data(self) -> bool:
        """True if an export needs more than the recipe and the weights."""
        return bool(self.programs) or self.has_hub

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files; the recipe, which makes a folder one of a network, is the last."""
        programs = [FILES[kind] for kind in self.programs] + ([INT8_FILE] if self.quantize else [])
        hub = HUB_FILES if self.has_hub else ()
        recipe = (WEIGHTS, RECIPE) if self.has_recipe else ()
        named = (*programs, *((EXPORT_FILE,) if programs else ()), *hub, *recipe)
        return tuple(sorted(dict.fromkeys(named), key=lambda file: file == RECIPE))


def checked(formats: Sequence[str], quantize: str | None) -> WantedFiles:
    """Check the formats and the precision of an export.

    Raises:
        UsageError: if one is unknown, does not fit the others, or its libraries are not installed.
    """
    for kind in formats:
        if kind not in FORMATS:
            raise UsageError(f"--format {kind}: no such format.", hint=f"Valid: {', '.join(FORMATS)}.")
        check_installed(kind)
    if quantize is not None and quantize not in PRECISIONS:
        raise UsageError(f"--quantize {quantize}: no such precision.", hint=f"Valid: {', '.join(PRECISIONS)}.")
    if quantize is not None and ONNX not in formats:
        raise UsageError(
            f"--quantize {quantize} quantises an ONNX file, and --format is {', '.join(formats)}.",
            hint=f"Add --format {ONNX}.",
        )
    programs = tuple(kind for kind in FILES if kind in formats)
    return WantedFiles(
        has_recipe=RECIPE_FORMAT in formats, programs=programs, quantize=quantize, has_hub=HUB in formats
    )


def check_free(target: Store, wanted: WantedFiles) -> None:
    """Refuse a folder that holds a file of the export.

    Raises:
        StoreError: with the name of the file.
    """
    for file in reversed(wanted.files):
        # Weights without a recipe are what an interrupted export left.
        if file != WEIGHTS and target.exists(file):
            raise StoreError(f"{target.name} holds a {file} already.", hint="Give another folder.")


def write_wanted(
    wanted: WantedFiles, folder: Path, *, model: nn.Module, workload: Workload, of: Trial, figures: CardFigures
) -> ExportProof | None:
    """Write what is wanted besides recipe and weights to a local folder, which holds these two.

    Returns the proof of the programs; None if there are none.

    Raises:
        ModelError: if a format does not take the network.
    """
    data, spec, task = workload.data, workload.spec, workload.task
    if wanted.programs and task.targets == BOXES:
        raise ModelError(
            f"--format {', '.join(wanted.programs)}: PyTorch exports no detector: the number of boxes that suppression "
            "(torchvision::nms) leaves depends on the image.",
            hint=f"Export {RECIPE_FORMAT}, which raprune.load reads into your own class.",
        )
    if wanted.has_hub:
        recipe = read_recipe(Store(folder), "")
        classes = data.label_names if task.targets == BOXES or task.output == LOGITS else ()
        config = config_of(recipe, classes=classes, image_shape=data.image_shape)
        (folder / CONFIG).write_text(json.dumps(config, indent=1))
        text = card(
            recipe,
            figures,
            task=spec.task,
            metric=task.metric,
            classes=len(classes),
            outputs=data.num_classes,
            image_shape=data.image_shape,
        )
        (folder / CARD).write_text(text)
        (folder / HUB_WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    if not wanted.programs:
        return None
    description = Description(
        network=of.network,
        trial_id=of.trial_id,
        image_shape=data.image_shape,
        classes=data.label_names,
        mean=data.mean,
        std=data.std,
        task=spec.task,
        output=task.output,
    )
    calibration = None
    if wanted.quantize:
        generator = torch.Generator().manual_seed(spec.seed)
        calibration = workload.calibration(min(spec.search.calibration, CALIBRATION), generator)
    proof = write_programs(
        wanted.programs,
        folder,
        model=model,
        dense=workload.model,
        data=data,
        description=description,
        task=task,
        calibration=calibration,
    )
    (folder / EXPORT_FILE).write_text(json.dumps(proof.to_json(), indent=1))
    return proof


def deliver(folder: Path, target: Store, wanted: WantedFiles) -> tuple[str, ...]:
    """Copy the finished files of an export from a local folder to `target`; return their names."""
    # An ONNX network of more than 2 GB has a second file for its weights.
    beside = [path.name for file in wanted.files for path in folder.glob(f"{file}.*")]
    for file in (*beside, *wanted.files):
        target.write_bytes(file, (folder / file).read_bytes())
    return (*wanted.files, *beside)
