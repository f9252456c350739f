"""A network in the layout of the Hugging Face Hub: `config.json`, `model.safetensors`, a model card, and the recipe.

Nothing is sent anywhere: the folder is what `hf upload` takes. The card holds figures of the run and no others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raprune.data.arrays import ImageShape
from raprune.store.networks import HUB_WEIGHTS, RECIPE

CONFIG, CARD = "config.json", "README.md"
PIPELINES = {
    "classification": "image-classification",
    "multi_label": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
"""Task -> the Hub's name for it."""
HUB_FILES = (CONFIG, HUB_WEIGHTS, CARD, RECIPE)


@dataclass(frozen=True, kw_only=True)
class CardFigures:
    """Values of the metric for a model card that are not in the recipe; None where they were not measured."""

    dense_validation: float | None = None
    test: float | None = None
    dense_test: float | None = None
    test_images: int | None = None


# A JSON edge: `recipe` is the content of `recipe.json`.
def config_of(recipe: Mapping[str, Any], *, classes: Sequence[str], image_shape: ImageShape) -> dict[str, Any]:
    """Content of `config.json`: the network, its input and its classes."""
    channels, height, width = image_shape
    return {
        "architectures": [recipe["model"]["name"]],
        "model_type": "raprune",
        "model_arguments": recipe["model"].get("arguments", {}),
        "num_channels": channels,
        "image_size": [height, width],
        "image_mean": recipe["data"]["mean"],
        "image_std": recipe["data"]["std"],
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
        "widths": recipe["widths"],
        "torch_dtype": "float32",
        "raprune_version": recipe["versions"].get("raprune"),
    }


# A JSON edge: `recipe` is the content of `recipe.json`.
def card(
    recipe: Mapping[str, Any],
    figures: CardFigures,
    *,
    task: str,
    metric: str,
    classes: int,
    outputs: int,
    image_shape: ImageShape,
) -> str:
    """The model card, as Markdown with the metadata that the Hub reads.

    `classes` is 0 for a task without classes, whose network has so many `outputs`.
    """
    kind = PIPELINES.get(task, "other")
    name, data = recipe["model"]["name"], recipe["data"]["name"]
    title = f"{name}, pruned to {recipe['flops_fraction']:.0%} of its FLOPs"
    header = {
        "library_name": "raprune",
        "pipeline_tag": kind,
        "tags": ["pruning", "model-compression", kind],
        "metrics": [metric],
        "model-index": [
            {
                "name": title,
                "results": [
                    {
                        "task": {"type": kind},
                        "dataset": {"name": data, "type": data, "split": split},
                        "metrics": [{"type": metric, "value": accuracy}],
                    }
                    for split, accuracy in (("validation", recipe["accuracy"]), ("test", figures.test))
                    if accuracy is not None
                ],
            }
        ],
    }
    dense_flops = recipe["flops"] / recipe["flops_fraction"]
    dense_params = recipe["params"] / recipe["params_fraction"]
    rows = [
        ("FLOPs for one image", f"{recipe['flops']:,}", f"{dense_flops:,.0f}"),
        ("parameters", f"{recipe['params']:,}", f"{dense_params:,.0f}"),
        (f"validation {metric}", _percent(recipe["accuracy"]), _percent(figures.dense_validation)),
    ]
    if figures.test is not None:
        images = "" if figures.test_images is None else f" ({figures.test_images:,} images)"
        rows.append((f"test {metric}{images}", _percent(figures.test), _percent(figures.dense_test)))
    size = "x".join(map(str, image_shape))
    wanted = f"{classes} classes" if classes else f"{outputs} outputs"
    lines = [
        # JSON is YAML, and needs no library.
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in header.items()),
        "---",
        "",
        f"# {title}",
        "",
        f"A `{name}` for {wanted} of `{data}`, made smaller by [raprune]"
        "(https://github.com/raprune/raprune): channels that the method "
        f"`{recipe['method']}` found least useful are gone from the weights"
        + (f", and it was trained for {recipe['epochs']:g} epochs since." if recipe["epochs"] else "."),
        "",
        "| | this network | dense network |",
        "| --- | --- | --- |",
        *(f"| {what} | {here} | {dense} |" for what, here, dense in rows),
        "",
        f"FLOPs count a multiply-add as 2. The search chose by the validation {metric}.",
        "",
        "## Use",
        "",
        "```python",
        "import raprune",
        "",
        "network = raprune.load(dense_network, FOLDER)",
        "```",
        "",
        f"`dense_network` is an instance of your own class of `{name}`; its weights are not used, and no code of this "
        f"folder is executed. Images are float32 of shape (batch, {size.replace('x', ', ')}), normalised: "
        f"`(pixel / 255 - mean) / std` with `image_mean` {recipe['data']['mean']} and `image_std` "
        f"{recipe['data']['std']}.",
        "",
        "## Origin",
        "",
        f"Candidate `{recipe['candidate']}`, trial `{recipe['trial_id']}`, seed {recipe['seed']}; versions: "
        + ", ".join(f"{library} {version}" for library, version in recipe["versions"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _percent(accuracy: float | None) -> str:
    return "not measured" if accuracy is None else f"{accuracy:.2%}"
