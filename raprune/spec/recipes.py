"""Recipes: named sets of fields of a training, and the rule that chooses one where a job names none. No torch.

`recipes.toml` has the sets, each with its source.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

LONG_EPOCHS = 100.0
"""Number of epochs from which strong augmentation pays. It is the shortest training for which its sources state it
(Wightman et al., 2021, "ResNet strikes back", procedure A3)."""

SMALL_IMAGE = 64
"""Largest side in pixels of the images for which `cifar` is made."""

BATCH_SIZE = 128
"""Images of a batch for which recipes state the learning rate. It grows linearly with the batch (Goyal et al.)."""

FieldValue = str | int | float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named set of fields of a training."""

    about: str
    """Trainings that it is for, in a sentence."""
    source: str
    """Origin of its values."""
    fields: Mapping[str, FieldValue]
    """Fields of `TrainSpec`."""
    dense: Mapping[str, FieldValue]
    """Fields that differ where a network is trained from random weights."""

    def fields_for(self, batch_size: int, *, is_dense: bool) -> dict[str, FieldValue]:
        """Return the fields for batches of this size; `is_dense`: the network has random weights."""
        fields = {**self.fields, **self.dense} if is_dense else dict(self.fields)
        if "lr" in fields:
            fields["lr"] = float(fields["lr"]) * batch_size / BATCH_SIZE
        return fields


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The properties of network and images by which trainings are decided."""

    has_layer_norm: bool
    """Layer norm or attention."""
    has_depthwise: bool
    """Depthwise convolutions."""
    image_size: int
    """Larger side of an image in pixels."""
    is_plain: bool = False
    """True if training images are in memory and the data set's augmentation changes none."""
    has_floats: bool = False
    """True if images are floats, which no policy can change: its operations are made for pixels from 0 to 255."""

    @property
    def kind(self) -> str:
        """The network in words."""
        if self.has_layer_norm:
            return "a network with layer norm or attention"
        return f"a {'network with depthwise convolutions' if self.has_depthwise else 'convolutional network'}"


@cache
def recipes() -> dict[str, Recipe]:
    """Return all recipes by name."""
    tables = tomllib.loads(resources.files("raprune.spec").joinpath("recipes.toml").read_text(encoding="utf-8"))
    return {
        name: Recipe(about=table["about"], source=table["source"], fields=table["fields"], dense=table.get("dense", {}))
        for name, table in tables.items()
    }


def chosen(traits: Traits, epochs: float) -> str:
    """Return the name of the recipe for a training of so many epochs."""
    if traits.has_layer_norm:
        return "transformer" if epochs >= LONG_EPOCHS else "short-transformer"
    if epochs < LONG_EPOCHS:
        return "short"
    if traits.image_size <= SMALL_IMAGE:
        return "cifar"
    return "mobile" if traits.has_depthwise else "cnn"


def documented() -> str:
    """Return the table of all recipes in Markdown, for docs/training.md."""
    rows = ["| recipe | for | fields | from |", "| --- | --- | --- | --- |"]
    for name, recipe in recipes().items():
        fields = _listed(recipe.fields) + (f"; from random weights {_listed(recipe.dense)}" if recipe.dense else "")
        rows.append(f"| `{name}` | {recipe.about} | {fields} | {recipe.source} |")
    return "\n".join(rows) + "\n"


def _listed(fields: Mapping[str, FieldValue]) -> str:
    return ", ".join(f"`{name}` {value}" for name, value in fields.items())


if __name__ == "__main__":
    print(documented(), end="")
