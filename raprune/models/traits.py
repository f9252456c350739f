"""The properties of a network and its images by which the recipe of its training is chosen."""

from __future__ import annotations

from torch import nn

from raprune.data.dataset import Dataset
from raprune.spec.recipes import Traits


def traits_of(model: nn.Module, data: Dataset) -> Traits:
    """Return the traits of `model` on the images of `data`."""
    modules = list(model.modules())
    return Traits(
        has_layer_norm=any(_is_of_transformers(module) for module in modules),
        has_depthwise=any(
            isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels for module in modules
        ),
        image_size=max(data.image_shape[1:]),
        is_plain=data.augment == "none" and data.stream is None and data.drawn is None,
        has_floats=data.has_floats,
    )


def _is_of_transformers(module: nn.Module) -> bool:
    """True for layer norm and attention, also those that timm and transformers define themselves."""
    known = isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.MultiheadAttention)
    return known or type(module).__name__.endswith(("LayerNorm", "LayerNorm2d", "RMSNorm", "SelfAttention"))
